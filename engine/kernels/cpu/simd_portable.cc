// Kernels for any x86-64: SSE2 only, no fused multiply-add.
#include <emmintrin.h>

#include "engine/kernels/cpu/simd_kernels.h"

namespace hyserve::kernels::cpu {
namespace {

struct Simd {
  using F = __m128;
  static constexpr int kWidth = 4;
  static constexpr int kTileRows = 6;
  static constexpr int kGemvPanels = 4;

  static F Zero() { return _mm_setzero_ps(); }
  static F Set(float x) { return _mm_set1_ps(x); }
  static F Load(const float* p) { return _mm_loadu_ps(p); }
  static void Store(float* p, F x) { _mm_storeu_ps(p, x); }
  static F LoadFirst(const float* p, int n) {
    float lanes[4] = {0, 0, 0, 0};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return _mm_loadu_ps(lanes);
  }
  static void StoreFirst(float* p, F x, int n) {
    float lanes[4];
    _mm_storeu_ps(lanes, x);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static F Fma(F a, F b, F c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
  static F Add(F a, F b) { return _mm_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm_div_ps(a, b); }
  static F Max(F a, F b) { return _mm_max_ps(a, b); }
  static F Min(F a, F b) { return _mm_min_ps(a, b); }
  static F Round(F a) { return _mm_cvtepi32_ps(_mm_cvtps_epi32(a)); }
  static F Scale2(F x, F n) {
    const __m128i exponent = _mm_add_epi32(_mm_cvtps_epi32(n), _mm_set1_epi32(127));
    return _mm_mul_ps(x, _mm_castsi128_ps(_mm_slli_epi32(exponent, 23)));
  }
  static F WhereGe(F a, F b, F x) { return _mm_and_ps(_mm_cmpge_ps(a, b), x); }
  static float SumLanes(F x) {
    const __m128 d = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
  }
  static float MaxLanes(F x) {
    const __m128 d = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
  }

  static F LoadBf16(const uint16_t* p) {
    const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), x));
  }
  static void LoadBf16Pair(const uint16_t* p, F& even, F& odd) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    even = _mm_castsi128_ps(_mm_slli_epi32(x, 16));
    odd = _mm_castsi128_ps(_mm_and_si128(x, _mm_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static void StoreBf16(uint16_t* p, F x) {
    uint32_t bits[4];
    _mm_storeu_ps(reinterpret_cast<float*>(bits), x);
    for (int i = 0; i < 4; ++i) {
      const bool nan = (bits[i] & 0x7fffffffu) > 0x7f800000u;
      const uint32_t rounded =
          nan ? bits[i] | 0x400000u : bits[i] + 0x7fffu + ((bits[i] >> 16) & 1u);
      p[i] = static_cast<uint16_t>(rounded >> 16);
    }
  }
  static void Prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
  static void PrefetchL2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

  // r[c] = elements at + c of the 4 rows.
  static void LoadTransposed(const float* const* rows, int64_t at, F (&r)[4]) {
    for (int i = 0; i < 4; ++i) r[i] = _mm_loadu_ps(rows[i] + at);
    _MM_TRANSPOSE4_PS(r[0], r[1], r[2], r[3]);
  }
};

}  // namespace
}  // namespace hyserve::kernels::cpu

#include "engine/kernels/cpu/gemm_kernels-inl.h"
#include "engine/kernels/cpu/attention_kernels-inl.h"
#include "engine/kernels/cpu/row_kernels-inl.h"
#include "engine/kernels/cpu/simd_table-inl.h"

namespace hyserve::kernels::cpu {

const SimdKernels& PortableKernels() {
  static constexpr SimdKernels kTable = MakeTable();
  return kTable;
}

}  // namespace hyserve::kernels::cpu
