// The inner loops that depend on the instruction set, as a table of functions over plain pointers.
//
// One table per instruction set, each compiled in its own file with its own flags from the same
// sources (*_kernels-inl.h). Those files use nothing of the standard library, so that no inline
// function compiled for a newer machine can end up in code that an older one runs.
//
// Row invariance rests on these functions: every element of a result is computed by the same chain
// of operations whatever the number of rows, and wherever a row stands among them.
#ifndef HYSERVE_ENGINE_KERNELS_CPU_SIMD_KERNELS_H_
#define HYSERVE_ENGINE_KERNELS_CPU_SIMD_KERNELS_H_

#include <cstdint>

#include "engine/kernels/blocks.h"  // kBlockTokens: the key tile of every attention

namespace hyserve::kernels::cpu {

struct SimdKernels {
  int vector_width = 0;  // f32 lanes
  int panel_cols = 0;    // columns of a packed panel: two vectors
  int tile_rows = 0;     // rows of a GEMM register tile

  // ---- GEMM ----
  // B is a panel [k][panel_cols]: f32 in order, or bf16 with columns i and panel_cols / 2 + i
  // stored side by side. Every element of C is one chain of fused multiply-adds over ascending k,
  // started from 0 or, with accumulate, from C.

  // C[rows, cols] (+)= A B. A is packed [k][tile_rows]; rows <= tile_rows, cols <= panel_cols.
  void (*gemm_packed_f32)(const float* a, const float* b, float* c, int64_t c_stride, int64_t k,
                          int rows, int cols, bool accumulate) = nullptr;
  void (*gemm_packed_bf16)(const float* a, const uint16_t* b, float* c, int64_t c_stride,
                           int64_t k, int rows, int cols, bool accumulate) = nullptr;
  // C[rows, n] = A B over num_panels neighbouring panels; A[rows][k] as it lies in memory,
  // rows <= 4; columns from n on are not written.
  void (*gemv_f32)(const float* a, int64_t a_stride, int rows, const float* b, int64_t panel_stride,
                   int num_panels, float* c, int64_t c_stride, int64_t n, int64_t k) = nullptr;
  void (*gemv_bf16)(const float* a, int64_t a_stride, int rows, const uint16_t* b,
                    int64_t panel_stride, int num_panels, float* c, int64_t c_stride, int64_t n,
                    int64_t k) = nullptr;
  // The same products with instructions that multiply pairs of bf16; null where there are none. B
  // is a panel [ceil(k / 2)][panel_cols][2], and A holds pairs of bf16 (low half first),
  // zero-padded: packed [ceil(k / 2)][tile_rows], or [rows][ceil(k / 2)] for gemv. Chains run over
  // pairs.
  void (*gemm_packed_pairs)(const uint32_t* a, const uint32_t* b, float* c, int64_t c_stride,
                            int64_t pairs, int rows, int cols, bool accumulate) = nullptr;
  void (*gemv_pairs)(const uint32_t* a, int64_t a_stride, int rows, const uint32_t* b,
                     int64_t panel_stride, int num_panels, float* c, int64_t c_stride, int64_t n,
                     int64_t pairs) = nullptr;

  // ---- Attention tiles ----
  // keys[j]: key j of a block, dim values, or null for zeros. out: panels over keys
  // [kBlockTokens / panel_cols][dim][panel_cols] of f32, or [...][ceil(dim / 2)][panel_cols] of
  // pairs of bf16 (low half: even dim), zero-padded.
  void (*pack_keys_f32)(const void* const* keys, int dim, float* out) = nullptr;
  void (*pack_keys_bf16)(const void* const* keys, int dim, uint32_t* out) = nullptr;
  // C[rows, panel_cols] = Q K for one panel of packed keys; one chain over dim, ascending.
  // Q[rows][q_stride], dim values rounded up to even, zero-padded. Every step of the chain
  // prefetches two cache lines from `prefetch` on and moves it by prefetch_step bytes.
  void (*logits_f32)(const float* q, int64_t q_stride, const float* keys, float* c,
                     int64_t c_stride, int dim, int rows, const char* prefetch,
                     int64_t prefetch_step) = nullptr;
  void (*logits_bf16)(const float* q, int64_t q_stride, const uint32_t* keys, float* c,
                      int64_t c_stride, int dim, int rows, const char* prefetch,
                      int64_t prefetch_step) = nullptr;
  // C[rows, panel_cols] += P V over num_keys rows of V, panel_cols columns each; one chain over the
  // keys, ascending. P[rows][kBlockTokens]. With bf16 the columns of C are in the order even
  // columns of V, then odd ones, which saves moving them apart at every step; join_columns
  // restores it.
  void (*weigh_f32)(const float* p, const float* v, int64_t v_stride, float* c, int64_t c_stride,
                    int num_keys, int rows, const char* prefetch, int64_t prefetch_step) = nullptr;
  void (*weigh_bf16)(const float* p, const uint16_t* v, int64_t v_stride, float* c,
                     int64_t c_stride, int num_keys, int rows, const char* prefetch,
                     int64_t prefetch_step) = nullptr;
  // out[2 i] = x[i], out[2 i + 1] = x[panel_cols / 2 + i] in each of num_panels panels.
  void (*join_columns)(const float* x, float* out, int num_panels) = nullptr;
  // One step of the online softmax for every row: s[row][kBlockTokens] holds the logits, of which
  // [lo, hi) are visible (not none); they become exp(s - m'), the others 0, with
  // m' = max(m, block maximum); l and o[row][0, o_cols) are rescaled to m', l gains the row's sum.
  // block_max[row * block_max_stride] = block maximum, if not null. o_cols is a multiple of
  // panel_cols.
  void (*softmax_step)(float* s, int rows, int lo, int hi, float* m, float* l, float* o,
                       int64_t o_stride, int o_cols, float* block_max,
                       int64_t block_max_stride) = nullptr;
  // out[i] = max over heads h of block_max[h * stride + i] - lse[h].
  void (*block_scores)(const float* block_max, int64_t stride, const float* lse, int heads,
                       int64_t n, float* out) = nullptr;

  // ---- Rows ----
  void (*bf16_to_f32)(const uint16_t* x, float* out, int64_t n) = nullptr;
  void (*f32_to_bf16)(const float* x, uint16_t* out, int64_t n) = nullptr;  // nearest even
  void (*scale)(const float* x, float factor, float* out, int64_t n) = nullptr;  // out may be x
  // out = a * out + b * x.
  void (*blend)(float a, float* out, float b, const float* x, int64_t n) = nullptr;
  // out = factor * x, times sigmoid(gate[i]) if gate is given, plus out if accumulate.
  void (*gated)(const float* x, float factor, const float* gate, bool accumulate, float* out,
                int64_t n) = nullptr;
  void (*swiglu)(const float* gate, const float* up, float* out, int64_t n) = nullptr;
  // hidden += delta if given; out = hidden / sqrt(mean(hidden^2) + epsilon) * weight unless null.
  void (*add_rms_norm)(float* hidden, const float* delta, const float* weight, float epsilon,
                       float* out, int64_t n) = nullptr;
  // cos and sin of position * inv_freq[i], absolute error below 1e-7 (the rounding to f32) for
  // |position| * max(inv_freq) up to 2^20 and little more beyond.
  void (*angles)(double position, const double* inv_freq, float* cos, float* sin,
                 int64_t n) = nullptr;
  // x1' = x1 cos - x2 sin, x2' = x2 cos + x1 sin, in place.
  void (*rotate)(float* x1, float* x2, const float* cos, const float* sin, int64_t n) = nullptr;
};

const SimdKernels& PortableKernels();
const SimdKernels& Avx2Kernels();
const SimdKernels& Avx512Kernels();
const SimdKernels& Avx512Bf16Kernels();  // AVX-512 with products of bf16 pairs

}  // namespace hyserve::kernels::cpu

#endif  // HYSERVE_ENGINE_KERNELS_CPU_SIMD_KERNELS_H_
