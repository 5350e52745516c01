// Kernels for AVX-512 (F, BW, DQ, VL). Compiled with these instruction sets enabled.
#include <immintrin.h>

#include "engine/kernels/cpu/simd_kernels.h"

namespace hyserve::kernels::cpu {
namespace {

struct Simd {
  using F = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kTileRows = 12;
  static constexpr int kGemvPanels = 4;  // of one row

  static F Zero() { return _mm512_setzero_ps(); }
  static F Set(float x) { return _mm512_set1_ps(x); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static __mmask16 First(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static F LoadFirst(const float* p, int n) { return _mm512_maskz_loadu_ps(First(n), p); }
  static void StoreFirst(float* p, F x, int n) { _mm512_mask_storeu_ps(p, First(n), x); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Round(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // x * 2^n for integral n in [-126, 127].
  static F Scale2(F x, F n) { return _mm512_scalef_ps(x, n); }
  // x where a >= b, else 0.
  static F WhereGe(F a, F b, F x) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), x);
  }
  static float SumLanes(F x) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
  }
  static float MaxLanes(F x) { return _mm512_reduce_max_ps(x); }

  static F LoadBf16(const uint16_t* p) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  // Even elements of two vectors' worth of bf16, then the odd ones.
  static void LoadBf16Pair(const uint16_t* p, F& even, F& odd) {
    const __m512i x = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static void StoreBf16(uint16_t* p, F x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i result = _mm512_mask_mov_epi32(rounded, nan, quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16)));
  }
  static void Prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
  static void PrefetchL2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

  // r[c] = elements at + c of the 16 rows. Quarters of rows are put together while loading, which
  // leaves the transposition of 4 x 4 squares within each quarter.
  static void LoadTransposed(const float* const* rows, int64_t at, F (&r)[16]) {
    for (int c = 0; c < 16; c += 4) {
      F t[4];
      for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_castps128_ps512(_mm_loadu_ps(rows[i] + at + c));
        t[i] = _mm512_mask_broadcast_f32x4(t[i], 0x00f0, _mm_loadu_ps(rows[4 + i] + at + c));
        t[i] = _mm512_mask_broadcast_f32x4(t[i], 0x0f00, _mm_loadu_ps(rows[8 + i] + at + c));
        t[i] = _mm512_mask_broadcast_f32x4(t[i], 0xf000, _mm_loadu_ps(rows[12 + i] + at + c));
      }
      const F low01 = _mm512_unpacklo_ps(t[0], t[1]);
      const F high01 = _mm512_unpackhi_ps(t[0], t[1]);
      const F low23 = _mm512_unpacklo_ps(t[2], t[3]);
      const F high23 = _mm512_unpackhi_ps(t[2], t[3]);
      r[c] = _mm512_shuffle_ps(low01, low23, 0x44);
      r[c + 1] = _mm512_shuffle_ps(low01, low23, 0xee);
      r[c + 2] = _mm512_shuffle_ps(high01, high23, 0x44);
      r[c + 3] = _mm512_shuffle_ps(high01, high23, 0xee);
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

const SimdKernels& Avx512Kernels() {
  static constexpr SimdKernels kTable = MakeTable();
  return kTable;
}

}  // namespace hyserve::kernels::cpu
