#include "engine/kernels/cuda/argmax.h"

#include <cstdint>

#include "engine/kernels/cuda/overlap.cuh"

namespace hyserve::kernels::cuda {
namespace {

constexpr int kThreads = 1024;

// Value and index in one number that orders like (value, lower index first): the value's bits made
// monotone, then the complement of the index. NaN and minus infinity give 0, the smallest.
__device__ uint64_t Key(float value, uint32_t index) {
  if (!(value > -INFINITY)) return 0;
  const uint32_t bits = __float_as_uint(value);
  const uint32_t ordered = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return (static_cast<uint64_t>(ordered) << 32) | ~index;
}

__device__ uint64_t Larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

__global__ void __launch_bounds__(kThreads)
    ArgmaxKernel(const float* x, int64_t row_stride, int64_t num_cols, int32_t* token_ids) {
  LetNextKernelStart();
  WaitForPriorKernels();
  const float* row = x + blockIdx.x * row_stride;
  uint64_t best = 0;
  int64_t done = 0;
  if (reinterpret_cast<uintptr_t>(row) % sizeof(float4) == 0) {
    const int64_t num_vectors = num_cols / 4;
    for (int64_t v = threadIdx.x; v < num_vectors; v += kThreads) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(row) + v);
      const uint32_t index = static_cast<uint32_t>(4 * v);
      best = Larger(best, Larger(Larger(Key(four.x, index), Key(four.y, index + 1)),
                                 Larger(Key(four.z, index + 2), Key(four.w, index + 3))));
    }
    done = 4 * num_vectors;
  }
  for (int64_t i = done + threadIdx.x; i < num_cols; i += kThreads) {
    best = Larger(best, Key(row[i], static_cast<uint32_t>(i)));
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    best = Larger(best, __shfl_xor_sync(0xffffffffu, best, lanes));
  }
  __shared__ uint64_t of_warp[kThreads / 32];
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  best = of_warp[threadIdx.x];
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    best = Larger(best, __shfl_xor_sync(0xffffffffu, best, lanes));
  }
  if (threadIdx.x == 0) {
    token_ids[blockIdx.x] = best == 0 ? -1 : static_cast<int32_t>(~static_cast<uint32_t>(best));
  }
}

}  // namespace

cudaError_t LaunchArgmax(const float* x, int64_t row_stride, int64_t num_rows, int64_t num_cols,
                         int32_t* token_ids, cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  return LaunchOverlapped(ArgmaxKernel, dim3(static_cast<unsigned>(num_rows)), kThreads, 0, stream,
                          x, row_stride, num_cols, token_ids);
}

}  // namespace hyserve::kernels::cuda
