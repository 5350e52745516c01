// The inner loop that streams weights for few rows: 16-byte loads from global memory straight into
// the fragments of mma.sync, several chunks ahead, with the weights as the 16-row operand and the
// rows of x as its 8-wide columns.
//
// Both operands of m16n8k16 are loaded with the same permutation of k inside 32 columns (lane t of
// a quad holds columns 8 t .. 8 t + 7), which leaves the sum as it is and makes every load 16
// bytes. The terms of an output are added in the same order whatever the number of rows, so that a
// row's result depends on nothing but K and the split of K.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SKINNY_TILE_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_SKINNY_TILE_CUH_

#include <cuda_bf16.h>

#include <cstdint>

#include "engine/kernels/cuda/overlap.cuh"

namespace hyserve::kernels::cuda {

constexpr int kSkinnyWarps = 8;
constexpr int kSkinnyThreads = 32 * kSkinnyWarps;
constexpr int kSkinnyChunk = 64;  // columns of k that a warp takes at once

// Weights are read once: they need no place in L1.
__device__ __forceinline__ uint4 LoadStreamed(const __nv_bfloat16* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

__device__ __forceinline__ void MmaBf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                        uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// acc[i][j] += 16 outputs x 8 rows over the chunks first, first + step, ... of k_size columns (a
// multiple of 8). Per lane: w[2 i] and w[2 i + 1] point to rows lane / 4 and lane / 4 + 8 of output
// tile i; x[j] to row lane / 4 of row tile j, null if there is none. `ready` runs between the first
// loads of weights and the first load of x.
template <int kOutTiles, int kRowTiles, int kDepth, typename Ready>
__device__ __forceinline__ void StreamTile(const __nv_bfloat16* const (&w)[2 * kOutTiles],
                                           const __nv_bfloat16* const (&x)[kRowTiles], int k_size,
                                           int first, int step,
                                           float (&acc)[kOutTiles][kRowTiles][4], Ready&& ready) {
  const int lane_k = (threadIdx.x & 3) * 8;
  uint4 ring[kDepth][kOutTiles][2][2];
  const auto load = [&](int slot, int chunk) {
#pragma unroll
    for (int sub = 0; sub < 2; ++sub) {
      const int k = chunk * kSkinnyChunk + sub * 32 + lane_k;
#pragma unroll
      for (int i = 0; i < kOutTiles; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          ring[slot][i][half][sub] =
              k < k_size ? LoadStreamed(w[2 * i + half] + k) : make_uint4(0, 0, 0, 0);
        }
      }
    }
  };
#pragma unroll
  for (int d = 0; d < kDepth; ++d) load(d, first + d * step);
  ready();
  for (int base = first; base * kSkinnyChunk < k_size; base += kDepth * step) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int chunk = base + d * step;
#pragma unroll
      for (int sub = 0; sub < 2; ++sub) {
        const int k = chunk * kSkinnyChunk + sub * 32 + lane_k;
#pragma unroll
        for (int j = 0; j < kRowTiles; ++j) {
          uint4 b = make_uint4(0, 0, 0, 0);
          if (x[j] != nullptr && k < k_size) b = *reinterpret_cast<const uint4*>(x[j] + k);
#pragma unroll
          for (int i = 0; i < kOutTiles; ++i) {
            const uint4 low = ring[d][i][0][sub];
            const uint4 high = ring[d][i][1][sub];
            MmaBf16(acc[i][j], low.x, high.x, low.y, high.y, b.x, b.y);
            MmaBf16(acc[i][j], low.z, high.z, low.w, high.w, b.z, b.w);
          }
        }
      }
      load(d, chunk + kDepth * step);
    }
  }
}

// Leaves a warp's accumulators in shared memory as [row][output].
template <int kOutTiles, int kRowTiles, int kStride>
__device__ __forceinline__ void StorePartial(const float (&acc)[kOutTiles][kRowTiles][4],
                                             float (*partial)[kStride]) {
  const int lane = threadIdx.x & 31;
  const int out = lane >> 2;
  const int row = (lane & 3) * 2;
#pragma unroll
  for (int i = 0; i < kOutTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kRowTiles; ++j) {
      partial[8 * j + row][16 * i + out] = acc[i][j][0];
      partial[8 * j + row + 1][16 * i + out] = acc[i][j][1];
      partial[8 * j + row][16 * i + out + 8] = acc[i][j][2];
      partial[8 * j + row + 1][16 * i + out + 8] = acc[i][j][3];
    }
  }
}

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SKINNY_TILE_CUH_
