// The copy engine of Hopper: one thread starts the copy of a box of a tensor (described by a tensor
// map, see tensor_map.h) into shared memory; the bytes count on a barrier.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_HOPPER_TMA_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_HOPPER_TMA_H_

#include <cuda.h>

#include <cstdint>

#include "engine/kernels/cuda/hopper/mbarrier.h"

namespace hyserve::kernels::cuda::hopper {

// L2 cache policies of a copy.
inline constexpr uint64_t kEvictFirst = 0x12F0000000000000;
inline constexpr uint64_t kEvictNormal = 0x1000000000000000;

// The map must be a __grid_constant__ kernel parameter or lie in global memory.
__device__ __forceinline__ void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// shared: destination, 1,024-byte aligned for 128-byte swizzle. Coordinates are in elements,
// fastest dimension first; elements outside the tensor arrive as zeros and count as bytes.
__device__ __forceinline__ void LoadTile2d(const CUtensorMap* map, void* shared, uint64_t* barrier,
                                           int x, int y, uint64_t policy = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(x), "r"(y), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void LoadTile3d(const CUtensorMap* map, void* shared, uint64_t* barrier,
                                           int x, int y, int z, uint64_t policy = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(x), "r"(y), "r"(z), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void LoadTile4d(const CUtensorMap* map, void* shared, uint64_t* barrier,
                                           int x, int y, int z, int w,
                                           uint64_t policy = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(x), "r"(y), "r"(z), "r"(w), "l"(policy)
      : "memory");
}
// The same into the same place of every block of the cluster whose bit is set in blocks; each
// block's own barrier counts the bytes that arrive in it.
__device__ __forceinline__ void LoadTile4dMulticast(const CUtensorMap* map, void* shared,
                                                    uint64_t* barrier, int x, int y, int z, int w,
                                                    uint16_t blocks,
                                                    uint64_t policy = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7, %8;" ::"r"(
          SharedAddress(shared)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(x), "r"(y), "r"(z), "r"(w), "h"(blocks),
      "l"(policy)
      : "memory");
}

// Makes this thread's ordinary stores to shared memory visible to the copy engine and to wgmma;
// then a barrier with the thread that issues them.
__device__ __forceinline__ void FenceSharedForAsync() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace hyserve::kernels::cuda::hopper

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_HOPPER_TMA_H_
