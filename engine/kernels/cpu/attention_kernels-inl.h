// Attention kernels over the vector type Simd that the including file defines.
// No include guard: included once by each simd_*.cc, after gemm_kernels-inl.h.

namespace hyserve::kernels::cpu {
namespace {

// exp(x) for x <= 0 and any other x below the overflow of f32; 0 below the smallest normal result.
// Range reduction by ln 2 in two parts, then the Taylor polynomial of degree 6 on |r| <= ln(2) / 2,
// whose remainder is below 1.3e-7; relative error below 2.5e-7 with rounding.
inline F Exp(F x) {
  const F lowest = Simd::Set(-87.3f);
  const F clamped = Simd::Min(Simd::Max(x, lowest), Simd::Set(88.3f));
  const F n = Simd::Round(Simd::Mul(clamped, Simd::Set(1.44269504088896341f)));
  F r = Simd::Fma(n, Simd::Set(-0.693359375f), clamped);
  r = Simd::Fma(n, Simd::Set(2.12194440e-4f), r);
  F p = Simd::Set(1.3888889e-3f);
  p = Simd::Fma(p, r, Simd::Set(8.3333333e-3f));
  p = Simd::Fma(p, r, Simd::Set(4.1666667e-2f));
  p = Simd::Fma(p, r, Simd::Set(1.6666667e-1f));
  p = Simd::Fma(p, r, Simd::Set(0.5f));
  p = Simd::Fma(p, r, Simd::Set(1.0f));
  p = Simd::Fma(p, r, Simd::Set(1.0f));
  return Simd::WhereGe(x, lowest, Simd::Scale2(p, n));
}

// Loads kWidth values of a key from dim on (fewer at its end, then zeros).
inline F LoadValues(const float* p, int n) {
  return n >= Simd::kWidth ? Simd::Load(p) : Simd::LoadFirst(p, n);
}

inline F LoadValues(const uint16_t* p, int n) {
  if (n >= Simd::kWidth) return Simd::LoadBf16(p);
  uint16_t values[Simd::kWidth] = {};
  for (int i = 0; i < n; ++i) values[i] = p[i];
  return Simd::LoadBf16(values);
}

// Transposes kWidth keys at a time in squares of 32-bit elements: f32 values, or pairs of bf16.
// elements: 32-bit elements of a key, of which the last may be half a pair.
template <class LoadElements>
inline void PackSquares(int elements, float* out, LoadElements load) {
  for (int j = 0; j < kBlockTokens; j += Simd::kWidth) {
    float* panel =
        out + static_cast<int64_t>(j / kPanelCols) * elements * kPanelCols + j % kPanelCols;
    for (int e = 0; e < elements; e += Simd::kWidth) {
      const int n = elements - e < Simd::kWidth ? elements - e : Simd::kWidth;
      F square[Simd::kWidth];
      HYSERVE_UNROLL
      for (int i = 0; i < Simd::kWidth; ++i) square[i] = load(j + i, e, n);
      Simd::Transpose(square);
      if (n == Simd::kWidth) {
        HYSERVE_UNROLL
        for (int i = 0; i < Simd::kWidth; ++i) {
          Simd::Store(panel + static_cast<int64_t>(e + i) * kPanelCols, square[i]);
        }
      } else {
        for (int i = 0; i < n; ++i) {
          Simd::Store(panel + static_cast<int64_t>(e + i) * kPanelCols, square[i]);
        }
      }
    }
  }
}

void PackKeysF32(const void* const* keys, int dim, float* out) {
  PackSquares(dim, out, [keys](int j, int e, int n) {
    const float* key = static_cast<const float*>(keys[j]);
    return key == nullptr ? Simd::Zero() : LoadValues(key + e, n);
  });
}

void PackKeysBf16(const void* const* keys, int dim, uint32_t* out) {
  const int whole = dim / 2;
  PackSquares((dim + 1) / 2, reinterpret_cast<float*>(out), [keys, dim, whole](int j, int e, int n) {
    const uint16_t* key = static_cast<const uint16_t*>(keys[j]);
    if (key == nullptr) return Simd::Zero();
    if (n == Simd::kWidth && e + n <= whole) {
      return Simd::Load(reinterpret_cast<const float*>(key + 2 * e));
    }
    uint16_t edge[2 * Simd::kWidth] = {};
    for (int i = 0; 2 * e + i < dim && i < 2 * n; ++i) edge[i] = key[2 * e + i];
    return Simd::Load(reinterpret_cast<const float*>(edge));
  });
}

// Fixed order of the sum: vector i holds logits i * kWidth .., vectors are added in ascending order
// in two chains (even, odd), then the chains, then the lanes.
void SoftmaxStep(float* s, int rows, int lo, int hi, float* m, float* l, float* o, int64_t o_stride,
                 int o_cols, float* block_max, int64_t block_max_stride) {
  constexpr int kVectors = kBlockTokens / Simd::kWidth;
  const float minus_infinity = -__builtin_inff();
  for (int row = 0; row < rows; ++row, s += kBlockTokens, o += o_stride) {
    for (int j = 0; j < lo; ++j) s[j] = minus_infinity;
    for (int j = hi; j < kBlockTokens; ++j) s[j] = minus_infinity;
    F most = Simd::Load(s);
    for (int v = 1; v < kVectors; ++v) most = Simd::Max(most, Simd::Load(s + v * Simd::kWidth));
    const float block_most = Simd::MaxLanes(most);
    if (block_max != nullptr) block_max[row * block_max_stride] = block_most;
    const float old = m[row];
    const float now = old > block_most ? old : block_most;
    const F shift = Simd::Set(now);
    F sum[2] = {Simd::Zero(), Simd::Zero()};
    for (int v = 0; v < kVectors; ++v) {
      const F p = Exp(Simd::Sub(Simd::Load(s + v * Simd::kWidth), shift));
      Simd::Store(s + v * Simd::kWidth, p);
      sum[v % 2] = Simd::Add(sum[v % 2], p);
    }
    const float total = Simd::SumLanes(Simd::Add(sum[0], sum[1]));
    if (now == old) {
      l[row] += total;
      continue;
    }
    float lanes[Simd::kWidth];
    Simd::Store(lanes, Exp(Simd::Set(old - now)));  // old may be -inf: 0
    const float shrink = lanes[0];
    l[row] = l[row] * shrink + total;
    m[row] = now;
    const F factor = Simd::Set(shrink);
    for (int d = 0; d < o_cols; d += Simd::kWidth) {
      Simd::Store(o + d, Simd::Mul(Simd::Load(o + d), factor));
    }
  }
}

void BlockScores(const float* block_max, int64_t stride, const float* lse, int heads, int64_t n,
                 float* out) {
  for (int64_t i = 0; i < n; i += Simd::kWidth) {
    const int count = n - i < Simd::kWidth ? static_cast<int>(n - i) : Simd::kWidth;
    F best = Simd::Sub(LoadValues(block_max + i, count), Simd::Set(lse[0]));
    for (int h = 1; h < heads; ++h) {
      best = Simd::Max(best, Simd::Sub(LoadValues(block_max + h * stride + i, count),
                                       Simd::Set(lse[h])));
    }
    Simd::StoreFirst(out + i, best, count);
  }
}

}  // namespace
}  // namespace hyserve::kernels::cpu
