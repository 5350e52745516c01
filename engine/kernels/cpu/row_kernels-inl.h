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
  ForEachVector(n, [&](int64_t i, int count) {
    StoreValues(out + i, LoadValues(x + i, count), count);
  });
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

// Reduction by multiples of pi / 2 in two parts (the first of 33 bits, so that its product is
// exact), then the Taylor polynomials on |r| <= pi / 4; all in double. Plain loops, which compilers
// turn into vectors.
void Angles(double position, const double* inv_freq, float* cos, float* sin, int64_t n) {
  constexpr double kRoundingShift = 6755399441055744.0;  // 1.5 * 2^52
  constexpr double kTwoOverPi = 0.63661977236758134308;
  constexpr double kHalfPiHigh = 1.57079632673412561417;
  constexpr double kHalfPiLow = 6.07710050650619224932e-11;
  for (int64_t i = 0; i < n; ++i) {
    const double angle = position * inv_freq[i];
    const double turns = (angle * kTwoOverPi + kRoundingShift) - kRoundingShift;
    const double r = (angle - turns * kHalfPiHigh) - turns * kHalfPiLow;
    const double r2 = r * r;
    const double s =
        r + r * r2 * (-1.0 / 6 + r2 * (1.0 / 120 + r2 * (-1.0 / 5040 + r2 * (1.0 / 362880))));
    const double c_tail = 1.0 / 24 + r2 * (-1.0 / 720 + r2 * (1.0 / 40320 - r2 * (1.0 / 3628800)));
    const double c = 1.0 + r2 * (-1.0 / 2 + r2 * c_tail);
    const int quarter = static_cast<int>(turns) & 3;
    const float fs = static_cast<float>(s);
    const float fc = static_cast<float>(c);
    const float x = (quarter & 1) != 0 ? fs : fc;
    const float y = (quarter & 1) != 0 ? fc : fs;
    cos[i] = ((quarter + 1) & 2) != 0 ? -x : x;
    sin[i] = (quarter & 2) != 0 ? -y : y;
  }
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
