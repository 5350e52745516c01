// Logits of 64 rows against the 64 keys of a block, as wgmma leaves them: a thread has 32, of the
// two rows lane / 4 and lane / 4 + 8 of its warp's 16 (half 0 and 1), element i of half i / 2 % 2.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_SCORES_INL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_SCORES_INL_H_

#include "engine/kernels/cuda/hopper/wgmma.h"

namespace hyserve::kernels::cuda::window_sparse {

// The largest of a row, in the four threads that share it.
__device__ __forceinline__ float RowMax(const float (&s)[32], int half) {
  float max = fmaxf(s[2 * half], s[2 * half + 1]);
#pragma unroll
  for (int i = 1; i < 8; ++i) {
    max = fmaxf(max, fmaxf(s[4 * i + 2 * half], s[4 * i + 2 * half + 1]));
  }
  max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
  return fmaxf(max, __shfl_xor_sync(~0u, max, 2));
}

// The A fragments, of 16 keys each, of the product with the values.
__device__ __forceinline__ void PackProbabilities(const float (&s)[32], uint32_t (&p)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      p[i][j] = hopper::PackBf16(s[8 * i + 2 * j], s[8 * i + 2 * j + 1]);
    }
  }
}

}  // namespace hyserve::kernels::cuda::window_sparse

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_SCORES_INL_H_
