// Kernels over single rows, with the vector type Simd that the including file defines.
// No include guard: included once by each simd_*.cc, after attention_kernels-inl.h.

namespace hyserve::kernels::cpu {
namespace {

// Calls body(offset, count) for vectors of a row; the last may be partial.
template <class Body>
inline void ForEachVector(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + Simd::kWidth <= n; i += Simd::kWidth) body(i, Simd::kWidth);
  if (i < n) body(i, static_cast<int>(n - i));
}

inline void StoreValues(float* p, F x, int n) {
  if (n >= Simd::kWidth) {
    Simd::Store(p, x);
  } else {
    Simd::StoreFirst(p, x, n);
  }
}

inline F Sigmoid(F x) {
  const F one = Simd::Set(1.0f);
  return Simd::Div(one, Simd::Add(one, Exp(Simd::Sub(Simd::Zero(), x))));
}

void Bf16ToF32(const uint16_t* x, float* out, int64_t n) {
  ForEachVector(n, [&](int64_t i, int count) { StoreValues(out + i, LoadValues(x + i, count), count); });
}

void F32ToBf16(const float* x, uint16_t* out, int64_t n) {
  ForEachVector(n, [&](int64_t i, int count) {
    const F value = LoadValues(x + i, count);
    if (count == Simd::kWidth) {
      Simd::StoreBf16(out + i, value);
    } else {
      uint16_t edge[Simd::kWidth];
      Simd::StoreBf16(edge, value);
      for (int j = 0; j < count; ++j) out[i + j] = edge[j];
    }
  });
}

void ScaleRow(const float* x, float factor, float* out, int64_t n) {
  const F f = Simd::Set(factor);
  ForEachVector(n, [&](int64_t i, int count) {
    StoreValues(out + i, Simd::Mul(LoadValues(x + i, count), f), count);
  });
}

void Blend(float a, float* out, float b, const float* x, int64_t n) {
  const F fa = Simd::Set(a);
  const F fb = Simd::Set(b);
  ForEachVector(n, [&](int64_t i, int count) {
    const F scaled = Simd::Mul(LoadValues(out + i, count), fa);
    StoreValues(out + i, Simd::Fma(LoadValues(x + i, count), fb, scaled), count);
  });
}

void Gated(const float* x, float factor, const float* gate, bool accumulate, float* out,
           int64_t n) {
  const F f = Simd::Set(factor);
  ForEachVector(n, [&](int64_t i, int count) {
    F value = Simd::Mul(LoadValues(x + i, count), f);
    if (gate != nullptr) value = Simd::Mul(value, Sigmoid(LoadValues(gate + i, count)));
    if (accumulate) value = Simd::Add(LoadValues(out + i, count), value);
    StoreValues(out + i, value, count);
  });
}

void SwiGluRow(const float* gate, const float* up, float* out, int64_t n) {
  ForEachVector(n, [&](int64_t i, int count) {
    const F g = LoadValues(gate + i, count);
    const F value = Simd::Mul(Simd::Mul(g, Sigmoid(g)), LoadValues(up + i, count));
    StoreValues(out + i, value, count);
  });
}

void AddRmsNormRow(float* hidden, const float* delta, const float* weight, float epsilon,
                   float* out, int64_t n) {
  F sum[4] = {Simd::Zero(), Simd::Zero(), Simd::Zero(), Simd::Zero()};
  int chain = 0;
  ForEachVector(n, [&](int64_t i, int count) {
    F x = LoadValues(hidden + i, count);
    if (delta != nullptr) {
      x = Simd::Add(x, LoadValues(delta + i, count));
      StoreValues(hidden + i, x, count);
    }
    sum[chain] = Simd::Fma(x, x, sum[chain]);
    chain = (chain + 1) % 4;
  });
  if (out == nullptr) return;
  const float squares =
      Simd::SumLanes(Simd::Add(Simd::Add(sum[0], sum[1]), Simd::Add(sum[2], sum[3])));
  const float mean = squares / static_cast<float>(n);
  const F factor = Simd::Set(1.0f / __builtin_sqrtf(mean + epsilon));
  ForEachVector(n, [&](int64_t i, int count) {
    const F x = Simd::Mul(LoadValues(hidden + i, count), factor);
    StoreValues(out + i, Simd::Mul(x, LoadValues(weight + i, count)), count);
  });
}

void RotatePairs(float* x1, float* x2, const float* cos, const float* sin, int64_t n) {
  ForEachVector(n, [&](int64_t i, int count) {
    const F a = LoadValues(x1 + i, count);
    const F b = LoadValues(x2 + i, count);
    const F c = LoadValues(cos + i, count);
    const F s = LoadValues(sin + i, count);
    StoreValues(x1 + i, Simd::Sub(Simd::Mul(a, c), Simd::Mul(b, s)), count);
    StoreValues(x2 + i, Simd::Fma(a, s, Simd::Mul(b, c)), count);
  });
}

}  // namespace
}  // namespace hyserve::kernels::cpu
