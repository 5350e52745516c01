// The prefill kernel as a template: two producer warps and two consumer warpgroups of 64 rows each.
// Blocks are persistent and take tiles (128 rows of one head) from a counter. Included by
// full_attention_prefill_kernel.cu and by its benchmark only.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_TILE_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_TILE_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/kernels/cuda/full_attention_prefill_consumer.h"
#include "engine/kernels/cuda/full_attention_prefill_device.h"
#include "engine/kernels/cuda/full_attention_prefill_producer.h"

namespace hyserve::kernels::cuda::prefill {

inline constexpr int kBlockThreads = 384;

template <typename T, bool kWriteScores>
__global__ void __launch_bounds__(kBlockThreads, 1)
    FullAttentionPrefillKernel(const __grid_constant__ PrefillLaunch launch) {
  extern __shared__ uint8_t raw_shared[];
  const Buffers<T> buffers(raw_shared);
  if (threadIdx.x == 0) {
    Shared<T::kStages>& shared = *buffers.shared;
    hopper::BarrierInit(&shared.q_full, 1);
    hopper::BarrierInit(&shared.q_empty, kConsumerWarps);
    for (int i = 0; i < T::kStages; ++i) {
      hopper::BarrierInit(&shared.k_full[i], 1);
      hopper::BarrierInit(&shared.v_full[i], 1);
      hopper::BarrierInit(&shared.k_empty[i], kConsumerWarps);
      hopper::BarrierInit(&shared.v_empty[i], kConsumerWarps);
    }
    hopper::BarrierInit(&shared.tile_full, 1);
    hopper::BarrierInit(&shared.tile_empty, 1);
    hopper::FenceBarrierInit();
    hopper::PrefetchTensorMap(&launch.q);
    hopper::PrefetchTensorMap(&launch.k);
    hopper::PrefetchTensorMap(&launch.v);
  }
  __syncthreads();
  // Through a shuffle, so that the compiler knows it to be the same in the whole warp.
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / hopper::kWarpgroupThreads, 0);
  if (warpgroup == 0) {
    hopper::ReduceRegisters<40>();
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    if (warp == 0) Producer<T, false>(launch, buffers).Run();
    if (warp == 1) Producer<T, true>(launch, buffers).Run();
  } else {
    hopper::IncreaseRegisters<232>();
    Consumer<T, kWriteScores>(launch, buffers, warpgroup - 1).Run();
  }
}

template <typename T, bool kWriteScores>
cudaError_t LaunchTraits(const PrefillLaunch& launch, int num_sms, cudaStream_t stream) {
  auto* kernel = &FullAttentionPrefillKernel<T, kWriteScores>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           T::kSharedBytes);
  if (error != cudaSuccess) return error;
  error = cudaMemsetAsync(launch.tile_counter, 0, sizeof(int), stream);
  if (error != cudaSuccess) return error;
  const int blocks = launch.num_tiles < num_sms ? launch.num_tiles : num_sms;
  kernel<<<blocks, kBlockThreads, T::kSharedBytes, stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace hyserve::kernels::cuda::prefill

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_TILE_H_
