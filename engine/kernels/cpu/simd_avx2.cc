// Kernels for AVX2 with FMA. Compiled with these instruction sets enabled.
#include <immintrin.h>

#include "engine/kernels/cpu/simd_kernels.h"

namespace hyserve::kernels::cpu {
namespace {

struct Simd {
  using F = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kTileRows = 6;
  static constexpr int kGemvPanels = 4;

  static F Zero() { return _mm256_setzero_ps(); }
  static F Set(float x) { return _mm256_set1_ps(x); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static __m256i First(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static F LoadFirst(const float* p, int n) { return _mm256_maskload_ps(p, First(n)); }
  static void StoreFirst(float* p, F x, int n) { _mm256_maskstore_ps(p, First(n), x); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static F Round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F Scale2(F x, F n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }
  static F WhereGe(F a, F b, F x) { return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ), x); }
  static float SumLanes(F x) {
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
  }
  static float MaxLanes(F x) {
    const __m128 q = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
  }

  static F LoadBf16(const uint16_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  static void LoadBf16Pair(const uint16_t* p, F& even, F& odd) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    odd = _mm256_castsi256_ps(
        _mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static void StoreBf16(uint16_t* p, F x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(p),
        _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
  }
  static void Prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
  static void PrefetchL2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

  // r[c] = elements at + c of the 8 rows.
  static void LoadTransposed(const float* const* rows, int64_t at, F (&r)[8]) {
    for (int c = 0; c < 8; c += 4) {
      F t[4];
      for (int i = 0; i < 4; ++i) {
        t[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[i] + at + c)),
                                    _mm_loadu_ps(rows[4 + i] + at + c), 1);
      }
      const F low01 = _mm256_unpacklo_ps(t[0], t[1]);
      const F high01 = _mm256_unpackhi_ps(t[0], t[1]);
      const F low23 = _mm256_unpacklo_ps(t[2], t[3]);
      const F high23 = _mm256_unpackhi_ps(t[2], t[3]);
      r[c] = _mm256_shuffle_ps(low01, low23, 0x44);
      r[c + 1] = _mm256_shuffle_ps(low01, low23, 0xee);
      r[c + 2] = _mm256_shuffle_ps(high01, high23, 0x44);
      r[c + 3] = _mm256_shuffle_ps(high01, high23, 0xee);
    }
  }
};

}  // namespace
}  // namespace hyserve::kernels::cpu

#include "engine/kernels/cpu/gemm_kernels-inl.h"
#include "engine/kernels/cpu/attention_kernels-inl.h"
#include "engine/kernels/cpu/row_kernels-inl.h"
#include "engine/kernels/cpu/simd_table-inl.h"

namespace hyserve::kernels::cpu {

const SimdKernels& Avx2Kernels() {
  static constexpr SimdKernels kTable = MakeTable();
  return kTable;
}

}  // namespace hyserve::kernels::cpu
