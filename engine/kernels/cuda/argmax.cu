#include "engine/kernels/cuda/argmax.h"

#include <algorithm>
#include <cstdint>

#include "engine/kernels/cuda/overlap.cuh"

namespace hyserve::kernels::cuda {
namespace {

constexpr int kThreads = 512;

// Value and index in one number that orders like (value, lower index first): the value's bits made
// monotone, then the complement of the index. NaN and minus infinity give 0, the smallest.
__device__ uint64_t Key(float value, uint32_t index) {
  if (!(value > -INFINITY)) return 0;
  const uint32_t bits = __float_as_uint(value);
  const uint32_t ordered = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return (static_cast<uint64_t>(ordered) << 32) | ~index;
}

__device__ uint64_t Larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

// Of the block, in thread 0.
__device__ uint64_t BlockLargest(uint64_t best) {
  __shared__ uint64_t of_warp[kThreads / 32];
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    best = Larger(best, __shfl_xor_sync(0xffffffffu, best, lanes));
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x >= 32) return 0;
  best = threadIdx.x < kThreads / 32 ? of_warp[threadIdx.x] : 0;
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    best = Larger(best, __shfl_xor_sync(0xffffffffu, best, lanes));
  }
  return best;
}

// Block (part, row). The block of a row that is done last compares the parts.
__global__ void __launch_bounds__(kThreads) ArgmaxKernel(const ArgmaxLaunch p) {
  LetNextKernelStart();
  WaitForPriorKernels();
  const int64_t row = blockIdx.y;
  const int parts = static_cast<int>(gridDim.x);
  const float* x = p.x + row * p.row_stride;
  const int64_t step = int64_t{parts} * kThreads;
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  uint64_t best = 0;
  int64_t done = 0;
  if (reinterpret_cast<uintptr_t>(x) % sizeof(float4) == 0) {
    const int64_t num_vectors = p.num_cols / 4;
#pragma unroll 4
    for (int64_t v = first; v < num_vectors; v += step) {
      const float4 four = *(reinterpret_cast<const float4*>(x) + v);
      const uint32_t index = static_cast<uint32_t>(4 * v);
      best = Larger(best, Larger(Larger(Key(four.x, index), Key(four.y, index + 1)),
                                 Larger(Key(four.z, index + 2), Key(four.w, index + 3))));
    }
    done = 4 * num_vectors;
  }
  for (int64_t i = done + first; i < p.num_cols; i += step) {
    best = Larger(best, Key(x[i], static_cast<uint32_t>(i)));
  }
  best = BlockLargest(best);
  if (threadIdx.x != 0) return;
  if (parts > 1) {
    uint64_t* partial = p.partial + row * parts;
    partial[blockIdx.x] = best;
    __threadfence();
    if (atomicAdd(&p.tickets[row], 1) != parts - 1) return;
    p.tickets[row] = 0;
    __threadfence();
    for (int i = 0; i < parts; ++i) best = Larger(best, __ldcg(&partial[i]));
  }
  p.token_ids[row] = best == 0 ? -1 : static_cast<int32_t>(~static_cast<uint32_t>(best));
}

}  // namespace

int ArgmaxParts(int64_t num_rows, int64_t num_cols) {
  constexpr int64_t kBlocks = 132;  // that fill a GPU
  constexpr int64_t kBlockCols = 16 * kThreads;
  return static_cast<int>(
      std::clamp<int64_t>((num_cols + kBlockCols - 1) / kBlockCols, 1,
                          std::max<int64_t>(1, kBlocks / std::max<int64_t>(1, num_rows))));
}

cudaError_t LaunchArgmax(const ArgmaxLaunch& launch, cudaStream_t stream) {
  if (launch.num_rows == 0) return cudaSuccess;
  constexpr int64_t kMostRows = 65535;  // of a grid
  const int parts = ArgmaxParts(launch.num_rows, launch.num_cols);
  for (int64_t begin = 0; begin < launch.num_rows; begin += kMostRows) {
    ArgmaxLaunch some = launch;
    some.x += begin * launch.row_stride;
    some.token_ids += begin;
    some.partial += begin * parts;
    some.tickets += begin;
    some.num_rows = std::min(kMostRows, launch.num_rows - begin);
    const cudaError_t error = LaunchOverlapped(
        ArgmaxKernel, dim3(static_cast<unsigned>(parts), static_cast<unsigned>(some.num_rows)),
        kThreads, 0, stream, some);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace hyserve::kernels::cuda
