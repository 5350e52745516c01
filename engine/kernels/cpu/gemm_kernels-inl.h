// Matrix kernels over the vector type Simd that the including file defines.
// No include guard: included once by each simd_*.cc.

#if defined(__clang__)
#define HYSERVE_UNROLL _Pragma("unroll")
#else
#define HYSERVE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace hyserve::kernels::cpu {
namespace {

using F = Simd::F;
constexpr int kPanelCols = 2 * Simd::kWidth;

struct F32Panel {
  using T = float;
  static void Load(const T* p, F& b0, F& b1) {
    b0 = Simd::Load(p);
    b1 = Simd::Load(p + Simd::kWidth);
  }
};

struct Bf16Panel {
  using T = uint16_t;
  static void Load(const T* p, F& b0, F& b1) { Simd::LoadBf16Pair(p, b0, b1); }
};

template <int kRows>
inline void LoadTile(F (&acc)[kRows][2], const float* c, int64_t c_stride, bool accumulate) {
  HYSERVE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    acc[r][0] = accumulate ? Simd::Load(c + r * c_stride) : Simd::Zero();
    acc[r][1] = accumulate ? Simd::Load(c + r * c_stride + Simd::kWidth) : Simd::Zero();
  }
}

template <int kRows>
inline void StoreTile(const F (&acc)[kRows][2], float* c, int64_t c_stride) {
  HYSERVE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    Simd::Store(c + r * c_stride, acc[r][0]);
    Simd::Store(c + r * c_stride + Simd::kWidth, acc[r][1]);
  }
}

// A packed [k][kTileRows].
template <int kRows, class Panel>
void PackedTile(const float* a, const typename Panel::T* b, float* c, int64_t c_stride, int64_t k,
                bool accumulate) {
  F acc[kRows][2];
  LoadTile<kRows>(acc, c, c_stride, accumulate);
  for (int64_t i = 0; i < k; ++i) {
    F b0, b1;
    Panel::Load(b, b0, b1);
    HYSERVE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const F x = Simd::Set(a[r]);
      acc[r][0] = Simd::Fma(x, b0, acc[r][0]);
      acc[r][1] = Simd::Fma(x, b1, acc[r][1]);
    }
    a += Simd::kTileRows;
    b += kPanelCols;
  }
  StoreTile<kRows>(acc, c, c_stride);
}

template <int kRows, class Panel>
void PackedTileOfRows(const float* a, const typename Panel::T* b, float* c, int64_t c_stride,
                      int64_t k, int rows, bool accumulate) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      PackedTileOfRows<kRows - 1, Panel>(a, b, c, c_stride, k, rows, accumulate);
      return;
    }
  }
  PackedTile<kRows, Panel>(a, b, c, c_stride, k, accumulate);
}

template <class Panel>
void GemmPacked(const float* a, const typename Panel::T* b, float* c, int64_t c_stride, int64_t k,
                int rows, int cols, bool accumulate) {
  if (cols == kPanelCols) {
    PackedTileOfRows<Simd::kTileRows, Panel>(a, b, c, c_stride, k, rows, accumulate);
    return;
  }
  float edge[Simd::kTileRows * kPanelCols] = {};
  for (int r = 0; accumulate && r < rows; ++r) {
    for (int j = 0; j < cols; ++j) edge[r * kPanelCols + j] = c[r * c_stride + j];
  }
  PackedTileOfRows<Simd::kTileRows, Panel>(a, b, edge, kPanelCols, k, rows, accumulate);
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < cols; ++j) c[r * c_stride + j] = edge[r * kPanelCols + j];
  }
}

// kRows rows times kPanels panels at once: enough independent chains to hide the latency of the
// multiply-adds, and several streams from memory.
template <int kRows, int kPanels, class Panel>
void GemvTile(const float* a, int64_t a_stride, const typename Panel::T* b, int64_t panel_stride,
              float* c, int64_t c_stride, int64_t n, int64_t k) {
  constexpr int64_t kPrefetchBytes = 1024;
  F acc[kPanels][kRows][2];
  HYSERVE_UNROLL
  for (int p = 0; p < kPanels; ++p) {
    LoadTile<kRows>(acc[p], nullptr, 0, false);
  }
  for (int64_t i = 0; i < k; ++i) {
    HYSERVE_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      const typename Panel::T* source = b + p * panel_stride + i * kPanelCols;
      Simd::Prefetch(reinterpret_cast<const char*>(source) + kPrefetchBytes);
      F b0, b1;
      Panel::Load(source, b0, b1);
      HYSERVE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const F x = Simd::Set(a[r * a_stride + i]);
        acc[p][r][0] = Simd::Fma(x, b0, acc[p][r][0]);
        acc[p][r][1] = Simd::Fma(x, b1, acc[p][r][1]);
      }
    }
  }
  HYSERVE_UNROLL
  for (int p = 0; p < kPanels; ++p) {
    const int64_t cols = n - p * kPanelCols;
    if (cols >= kPanelCols) {
      StoreTile<kRows>(acc[p], c + p * kPanelCols, c_stride);
    } else {
      float edge[kRows * kPanelCols];
      StoreTile<kRows>(acc[p], edge, kPanelCols);
      for (int r = 0; r < kRows; ++r) {
        for (int64_t j = 0; j < cols; ++j) {
          c[r * c_stride + p * kPanelCols + j] = edge[r * kPanelCols + j];
        }
      }
    }
  }
}

template <int kRows, class Panel>
void GemvRows(const float* a, int64_t a_stride, const typename Panel::T* b, int64_t panel_stride,
              int num_panels, float* c, int64_t c_stride, int64_t n, int64_t k) {
  constexpr int kPanels = kRows <= 2 ? Simd::kGemvPanels : Simd::kGemvPanels / 2;
  int p = 0;
  for (; p + kPanels <= num_panels; p += kPanels) {
    GemvTile<kRows, kPanels, Panel>(a, a_stride, b + p * panel_stride, panel_stride,
                                    c + p * kPanelCols, c_stride, n - p * kPanelCols, k);
  }
  for (; p < num_panels; ++p) {
    GemvTile<kRows, 1, Panel>(a, a_stride, b + p * panel_stride, panel_stride, c + p * kPanelCols,
                              c_stride, n - p * kPanelCols, k);
  }
}

template <class Panel>
void Gemv(const float* a, int64_t a_stride, int rows, const typename Panel::T* b,
          int64_t panel_stride, int num_panels, float* c, int64_t c_stride, int64_t n, int64_t k) {
  switch (rows) {
    case 1: return GemvRows<1, Panel>(a, a_stride, b, panel_stride, num_panels, c, c_stride, n, k);
    case 2: return GemvRows<2, Panel>(a, a_stride, b, panel_stride, num_panels, c, c_stride, n, k);
    case 3: return GemvRows<3, Panel>(a, a_stride, b, panel_stride, num_panels, c, c_stride, n, k);
    default: return GemvRows<4, Panel>(a, a_stride, b, panel_stride, num_panels, c, c_stride, n, k);
  }
}

// B operands of the attention products: kSteps steps of the chain at a time.
struct F32Keys {
  using T = float;
  static constexpr int kSteps = 1;
  static void Load(const T* p, F (&b)[1][2]) { F32Panel::Load(p, b[0][0], b[0][1]); }
};

struct Bf16KeyPairs {
  using T = uint32_t;
  static constexpr int kSteps = 2;
  static void Load(const T* p, F (&b)[2][2]) {
    Simd::LoadBf16Pair(reinterpret_cast<const uint16_t*>(p), b[0][0], b[1][0]);
    Simd::LoadBf16Pair(reinterpret_cast<const uint16_t*>(p + Simd::kWidth), b[0][1], b[1][1]);
  }
};

// Columns of a panel of values come apart into even and odd ones (see weigh_bf16).
struct Bf16Values {
  using T = uint16_t;
  static constexpr int kSteps = 1;
  static void Load(const T* p, F (&b)[1][2]) { Simd::LoadBf16Pair(p, b[0][0], b[0][1]); }
};

// A as it lies in memory. Three rows share a pointer, so that twelve rows need few registers.
template <int kRows, class Operand>
void RowsTile(const float* a, int64_t a_stride, const typename Operand::T* b, int64_t b_stride,
              float* c, int64_t c_stride, int64_t k, bool accumulate, const char* prefetch,
              int64_t prefetch_step) {
  constexpr int kPointers = (kRows + 2) / 3;
  const float* row[kPointers];
  HYSERVE_UNROLL
  for (int p = 0; p < kPointers; ++p) row[p] = a + 3 * p * a_stride;
  F acc[kRows][2];
  LoadTile<kRows>(acc, c, c_stride, accumulate);
  for (int64_t i = 0; i < k; i += Operand::kSteps) {
    Simd::PrefetchL2(prefetch);
    Simd::PrefetchL2(prefetch + 64);
    prefetch += prefetch_step;
    F values[Operand::kSteps][2];
    Operand::Load(b, values);
    HYSERVE_UNROLL
    for (int step = 0; step < Operand::kSteps; ++step) {
      HYSERVE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const F x = Simd::Set(row[r / 3][(r % 3) * a_stride + step]);
        acc[r][0] = Simd::Fma(x, values[step][0], acc[r][0]);
        acc[r][1] = Simd::Fma(x, values[step][1], acc[r][1]);
      }
    }
    HYSERVE_UNROLL
    for (int p = 0; p < kPointers; ++p) row[p] += Operand::kSteps;
    b += b_stride;
  }
  StoreTile<kRows>(acc, c, c_stride);
}

template <int kRows, class Operand>
void RowsTileOfRows(const float* a, int64_t a_stride, const typename Operand::T* b,
                    int64_t b_stride, float* c, int64_t c_stride, int64_t k, int rows,
                    bool accumulate, const char* prefetch, int64_t prefetch_step) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      RowsTileOfRows<kRows - 1, Operand>(a, a_stride, b, b_stride, c, c_stride, k, rows,
                                         accumulate, prefetch, prefetch_step);
      return;
    }
  }
  RowsTile<kRows, Operand>(a, a_stride, b, b_stride, c, c_stride, k, accumulate, prefetch,
                           prefetch_step);
}

template <class Operand>
void GemmRows(const float* a, int64_t a_stride, const typename Operand::T* b, int64_t b_stride,
              float* c, int64_t c_stride, int64_t k, int rows, bool accumulate,
              const char* prefetch, int64_t prefetch_step) {
  for (int r = 0; r < rows; r += Simd::kTileRows) {
    const int left = rows - r;
    RowsTileOfRows<Simd::kTileRows, Operand>(
        a + r * a_stride, a_stride, b, b_stride, c + r * c_stride, c_stride, k,
        left < Simd::kTileRows ? left : Simd::kTileRows, accumulate, prefetch, prefetch_step);
    // The first tile of rows has asked for everything.
    prefetch = reinterpret_cast<const char*>(b);
    prefetch_step = 0;
  }
}

void LogitsF32(const float* q, int64_t q_stride, const float* keys, float* c, int64_t c_stride,
               int dim, int rows, const char* prefetch, int64_t prefetch_step) {
  GemmRows<F32Keys>(q, q_stride, keys, kPanelCols, c, c_stride, dim, rows, false, prefetch,
                    prefetch_step);
}

void LogitsBf16(const float* q, int64_t q_stride, const uint32_t* keys, float* c, int64_t c_stride,
                int dim, int rows, const char* prefetch, int64_t prefetch_step) {
  GemmRows<Bf16KeyPairs>(q, q_stride, keys, kPanelCols, c, c_stride, dim, rows, false, prefetch,
                         prefetch_step);
}

void WeighF32(const float* p, const float* v, int64_t v_stride, float* c, int64_t c_stride,
              int num_keys, int rows, const char* prefetch, int64_t prefetch_step) {
  GemmRows<F32Keys>(p, kBlockTokens, v, v_stride, c, c_stride, num_keys, rows, true, prefetch,
                    prefetch_step);
}

void WeighBf16(const float* p, const uint16_t* v, int64_t v_stride, float* c, int64_t c_stride,
               int num_keys, int rows, const char* prefetch, int64_t prefetch_step) {
  GemmRows<Bf16Values>(p, kBlockTokens, v, v_stride, c, c_stride, num_keys, rows, true, prefetch,
                       prefetch_step);
}

}  // namespace
}  // namespace hyserve::kernels::cpu
