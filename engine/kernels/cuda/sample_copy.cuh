// Copies from device memory to shared memory that the thread does not wait for.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_COPY_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_COPY_CUH_

#include <cuda_runtime.h>

#include <cstdint>

namespace hyserve::kernels::cuda {

// 16 bytes, both addresses aligned; through L2 only.
__device__ __forceinline__ void CopyVectorAsync(float4* to, const float* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
// For this thread's copies.
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_COPY_CUH_
