// AVX-512 with the dot products of bf16 pairs (AVX512_BF16), for weights in bf16. Activations are
// rounded to bf16 by the caller; sums stay in f32. Compiled with these instruction sets enabled.
#include <immintrin.h>

#include "engine/kernels/cpu/simd_kernels.h"

#if defined(__clang__)
#define HYSERVE_UNROLL _Pragma("unroll")
#else
#define HYSERVE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace hyserve::kernels::cpu {
namespace {

constexpr int kLanes = 16;
constexpr int kCols = 2 * kLanes;
constexpr int kTileRows = 12;

inline __m512 Dot(__m512 acc, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
}

template <int kRows>
inline void StoreColumns(const __m512 (&acc)[kRows][2], float* c, int64_t c_stride, int64_t cols) {
  const auto mask = [](int64_t n) {
    return static_cast<__mmask16>(n >= kLanes ? 0xffff : n <= 0 ? 0 : (1u << n) - 1u);
  };
  HYSERVE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    _mm512_mask_storeu_ps(c + r * c_stride, mask(cols), acc[r][0]);
    _mm512_mask_storeu_ps(c + r * c_stride + kLanes, mask(cols - kLanes), acc[r][1]);
  }
}

template <int kRows>
inline void LoadColumns(__m512 (&acc)[kRows][2], const float* c, int64_t c_stride, int64_t cols,
                        bool accumulate) {
  const auto mask = [accumulate](int64_t n) {
    return static_cast<__mmask16>(!accumulate || n <= 0 ? 0
                                  : n >= kLanes         ? 0xffff
                                                        : (1u << n) - 1u);
  };
  HYSERVE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    acc[r][0] = _mm512_maskz_loadu_ps(mask(cols), c + r * c_stride);
    acc[r][1] = _mm512_maskz_loadu_ps(mask(cols - kLanes), c + r * c_stride + kLanes);
  }
}

template <int kRows>
void PackedPairs(const uint32_t* a, const uint32_t* b, float* c, int64_t c_stride, int64_t pairs,
                 int rows, int cols, bool accumulate) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      PackedPairs<kRows - 1>(a, b, c, c_stride, pairs, rows, cols, accumulate);
      return;
    }
  }
  __m512 acc[kRows][2];
  LoadColumns<kRows>(acc, c, c_stride, cols, accumulate);
  for (int64_t i = 0; i < pairs; ++i) {
    const __m512i b0 = _mm512_loadu_si512(b);
    const __m512i b1 = _mm512_loadu_si512(b + kLanes);
    HYSERVE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(a[r]));
      acc[r][0] = Dot(acc[r][0], x, b0);
      acc[r][1] = Dot(acc[r][1], x, b1);
    }
    a += kTileRows;
    b += kCols;
  }
  StoreColumns<kRows>(acc, c, c_stride, cols);
}

void GemmPackedPairs(const uint32_t* a, const uint32_t* b, float* c, int64_t c_stride,
                     int64_t pairs, int rows, int cols, bool accumulate) {
  PackedPairs<kTileRows>(a, b, c, c_stride, pairs, rows, cols, accumulate);
}

template <int kRows, int kPanels>
void GemvTile(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t panel_stride,
              float* c, int64_t c_stride, int64_t n, int64_t pairs) {
  constexpr int64_t kPrefetch = 2048 / sizeof(uint32_t);
  __m512 acc[kPanels][kRows][2];
  HYSERVE_UNROLL
  for (int p = 0; p < kPanels; ++p) LoadColumns<kRows>(acc[p], nullptr, 0, 0, false);
  for (int64_t i = 0; i < pairs; ++i) {
    HYSERVE_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      const uint32_t* source = b + p * panel_stride + i * kCols;
      _mm_prefetch(reinterpret_cast<const char*>(source + kPrefetch), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(source + kPrefetch + kLanes), _MM_HINT_T0);
      const __m512i b0 = _mm512_loadu_si512(source);
      const __m512i b1 = _mm512_loadu_si512(source + kLanes);
      HYSERVE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m512i x = _mm512_set1_epi32(static_cast<int>(a[r * a_stride + i]));
        acc[p][r][0] = Dot(acc[p][r][0], x, b0);
        acc[p][r][1] = Dot(acc[p][r][1], x, b1);
      }
    }
  }
  HYSERVE_UNROLL
  for (int p = 0; p < kPanels; ++p) {
    StoreColumns<kRows>(acc[p], c + p * kCols, c_stride, n - p * kCols);
  }
}

template <int kRows>
void GemvRows(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t panel_stride,
              int num_panels, float* c, int64_t c_stride, int64_t n, int64_t pairs) {
  constexpr int kPanels = kRows <= 2 ? 4 : 2;
  int p = 0;
  for (; p + kPanels <= num_panels; p += kPanels) {
    GemvTile<kRows, kPanels>(a, a_stride, b + p * panel_stride, panel_stride, c + p * kCols,
                             c_stride, n - p * kCols, pairs);
  }
  for (; p < num_panels; ++p) {
    GemvTile<kRows, 1>(a, a_stride, b + p * panel_stride, panel_stride, c + p * kCols, c_stride,
                       n - p * kCols, pairs);
  }
}

void GemvPairs(const uint32_t* a, int64_t a_stride, int rows, const uint32_t* b,
               int64_t panel_stride, int num_panels, float* c, int64_t c_stride, int64_t n,
               int64_t pairs) {
  switch (rows) {
    case 1: return GemvRows<1>(a, a_stride, b, panel_stride, num_panels, c, c_stride, n, pairs);
    case 2: return GemvRows<2>(a, a_stride, b, panel_stride, num_panels, c, c_stride, n, pairs);
    case 3: return GemvRows<3>(a, a_stride, b, panel_stride, num_panels, c, c_stride, n, pairs);
    default: return GemvRows<4>(a, a_stride, b, panel_stride, num_panels, c, c_stride, n, pairs);
  }
}

}  // namespace

const SimdKernels& Avx512Bf16Kernels() {
  static const SimdKernels table = [] {
    SimdKernels kernels = Avx512Kernels();
    kernels.gemm_packed_pairs = &GemmPackedPairs;
    kernels.gemv_pairs = &GemvPairs;
    return kernels;
  }();
  return table;
}

}  // namespace hyserve::kernels::cpu
