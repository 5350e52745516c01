// Barriers in shared memory that count arrivals of threads and bytes of asynchronous copies.
//
// A barrier runs through phases; Wait(phase parity) returns once the phase of that parity has
// completed. A fresh barrier is in phase 0: waiting for parity 1 returns at once.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_HOPPER_MBARRIER_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_HOPPER_MBARRIER_H_

#include <cstdint>

namespace hyserve::kernels::cuda::hopper {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// One thread initialises; then FenceBarrierInit and a block-wide barrier before the first use.
__device__ __forceinline__ void BarrierInit(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Barriers are named by their pointer or by its shared-memory address.
__device__ __forceinline__ void BarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void BarrierArrive(uint64_t* barrier) {
  BarrierArrive(SharedAddress(barrier));
}
// Arrives at the barrier of the same name in block cta_rank of this cluster.
__device__ __forceinline__ void BarrierArriveCluster(uint64_t* barrier, uint32_t cta_rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}\n" ::"r"(
          SharedAddress(barrier)),
      "r"(cta_rank)
      : "memory");
}
// Arrives and announces bytes of copies that will complete on this barrier.
__device__ __forceinline__ void BarrierArriveExpect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   SharedAddress(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ bool BarrierTryWait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}
__device__ __forceinline__ bool BarrierTryWait(uint64_t* barrier, uint32_t parity) {
  return BarrierTryWait(SharedAddress(barrier), parity);
}
__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  while (!BarrierTryWait(barrier, parity)) {
  }
}
__device__ __forceinline__ void BarrierWait(uint64_t* barrier, uint32_t parity) {
  BarrierWait(SharedAddress(barrier), parity);
}
// For a warp that has nothing else to do: looks seldom, so that it does not take issue slots from
// the warps that compute.
__device__ __forceinline__ void BarrierWaitIdle(uint64_t* barrier, uint32_t parity) {
  while (!BarrierTryWait(barrier, parity)) __nanosleep(32);
}
// Position in a ring of kStages buffers: buffer index and the parity of its barriers. A consumer
// starts at {}, and waits for the full barrier's `parity`; a producer waits for the empty barrier's
// `parity ^ 1`.
template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace hyserve::kernels::cuda::hopper

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_HOPPER_MBARRIER_H_
