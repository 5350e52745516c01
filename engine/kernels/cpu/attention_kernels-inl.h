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

// Transposes squares of kWidth keys times kWidth 32-bit elements: f32 values, or pairs of bf16.
// A square that is not whole (null keys, the end of a key) goes through zero-padded copies.
template <typename T>
void PackKeys(const void* const* keys, int dim, float* out) {
  constexpr int kPerElement = sizeof(float) / sizeof(T);
  const int elements = (dim + kPerElement - 1) / kPerElement;
  const int whole_elements = dim / kPerElement;
  for (int j = 0; j < kBlockTokens; j += Simd::kWidth) {
    const float* rows[Simd::kWidth];
    bool all = true;
    for (int i = 0; i < Simd::kWidth; ++i) {
      rows[i] = static_cast<const float*>(keys[j + i]);
      all = all && rows[i] != nullptr;
    }
    float* panel =
        out + static_cast<int64_t>(j / kPanelCols) * elements * kPanelCols + j % kPanelCols;
    for (int e = 0; e < elements; e += Simd::kWidth) {
      const int n = elements - e < Simd::kWidth ? elements - e : Simd::kWidth;
      F square[Simd::kWidth];
      if (all && e + Simd::kWidth <= whole_elements) {
        Simd::LoadTransposed(rows, e, square);
        HYSERVE_UNROLL
        for (int i = 0; i < Simd::kWidth; ++i) {
          Simd::Store(panel + static_cast<int64_t>(e + i) * kPanelCols, square[i]);
        }
      } else {
        T copies[Simd::kWidth][Simd::kWidth * kPerElement] = {};
        const float* copied[Simd::kWidth];
        for (int i = 0; i < Simd::kWidth; ++i) {
          copied[i] = reinterpret_cast<const float*>(copies[i]);
          if (rows[i] == nullptr) continue;
          const T* key = static_cast<const T*>(keys[j + i]) + e * kPerElement;
          const int left = dim - e * kPerElement;
          for (int d = 0; d < Simd::kWidth * kPerElement && d < left; ++d) copies[i][d] = key[d];
        }
        Simd::LoadTransposed(copied, 0, square);
        for (int i = 0; i < n; ++i) {
          Simd::Store(panel + static_cast<int64_t>(e + i) * kPanelCols, square[i]);
        }
      }
    }
  }
}

void PackKeysF32(const void* const* keys, int dim, float* out) { PackKeys<float>(keys, dim, out); }

void PackKeysBf16(const void* const* keys, int dim, uint32_t* out) {
  PackKeys<uint16_t>(keys, dim, reinterpret_cast<float*>(out));
}

void JoinColumns(const float* x, float* out, int num_panels) {
  for (int p = 0; p < num_panels; ++p, x += kPanelCols, out += kPanelCols) {
    for (int i = 0; i < Simd::kWidth; ++i) {
      out[2 * i] = x[i];
      out[2 * i + 1] = x[Simd::kWidth + i];
    }
  }
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
