// Q of a work item of the decode kernel, in registers or in shared memory.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_DECODE_QUERY_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_DECODE_QUERY_CUH_

#include <cuda_bf16.h>

#include "engine/kernels/cuda/full_attention_decode.h"
#include "engine/kernels/cuda/hopper/mbarrier.h"
#include "engine/kernels/cuda/hopper/tma.h"
#include "engine/kernels/cuda/hopper/warpgroup.h"

namespace hyserve::kernels::cuda {

inline constexpr int kSlabBytes = kPageTokens * 128;  // 64 rows of 64 bf16

// The tile of query rows of one work item.
struct QueryTile {
  const __nv_bfloat16* q;  // head 0 of the group, first token
  int64_t stride;
  int group_heads;
  int rows;   // of the sequence: tokens * heads
  int begin;  // first of the tile

  __device__ const __nv_bfloat16* Row(int row, int dim) const {
    return q + row / group_heads * stride + row % group_heads * dim;
  }
};

// A fragments of Q for this thread: rows and dims as wgmma.h lays out A.
template <int kDim>
__device__ void LoadQueryRegisters(const QueryTile& tile, uint32_t (&q)[kDim / 16][4]) {
  const int lane = threadIdx.x % 32;
  const int row = tile.begin + threadIdx.x / 32 * 16 + lane / 4;
  // Pairs are 4-byte aligned in all rows or may be in none.
  const bool aligned = (reinterpret_cast<uintptr_t>(tile.q) % 4) == 0 && tile.stride % 2 == 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool valid = row + 8 * half < tile.rows;
    const __nv_bfloat16* from =
        tile.Row(valid ? row + 8 * half : tile.begin, kDim) + lane % 4 * 2;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const __nv_bfloat16* pair = from + step * 16 + part * 8;
        uint32_t bits = 0;
        if (valid && aligned) {
          bits = *reinterpret_cast<const uint32_t*>(pair);
        } else if (valid) {
          bits = __bfloat16_as_ushort(pair[0]) |
                 static_cast<uint32_t>(__bfloat16_as_ushort(pair[1])) << 16;
        }
        q[step][half + 2 * part] = bits;
      }
    }
  }
}

// Starts copying the tile to shared memory, as K-major slabs with 128-byte swizzle.
template <int kDim>
__device__ void StartQueryCopy(const QueryTile& tile, char* shared) {
  const bool aligned = (reinterpret_cast<uintptr_t>(tile.q) % 16) == 0 && tile.stride % 8 == 0;
#pragma unroll 4
  for (int i = threadIdx.x; i < kDecodeTileRows * kDim / 8; i += hopper::kWarpgroupThreads) {
    const int row = i / (kDim / 8);
    const int chunk = i % (kDim / 8);
    const bool valid = tile.begin + row < tile.rows;
    const __nv_bfloat16* from = tile.Row(valid ? tile.begin + row : tile.begin, kDim) + chunk * 8;
    char* to = shared + chunk / 8 * kSlabBytes + row * 128 + ((chunk ^ row) % 8) * 16;
    if (aligned) {
      const int bytes = valid ? 16 : 0;  // the rest of 16 becomes zero
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                       hopper::SharedAddress(to)),
                   "l"(from), "r"(bytes)
                   : "memory");
    } else {
      uint32_t words[4] = {0, 0, 0, 0};
      for (int w = 0; valid && w < 4; ++w) {
        words[w] = __bfloat16_as_ushort(from[2 * w]) |
                   static_cast<uint32_t>(__bfloat16_as_ushort(from[2 * w + 1])) << 16;
      }
      *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
    }
  }
}

// Until the tile that the whole warpgroup started to copy can be multiplied.
__device__ inline void FinishQueryCopy() {
  asm volatile("cp.async.wait_all;" ::: "memory");
  hopper::FenceSharedForAsync();
  hopper::NamedBarrierSync(1, hopper::kWarpgroupThreads);
}

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_DECODE_QUERY_CUH_
