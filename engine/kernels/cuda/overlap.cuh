// Kernels that may start before the kernel in front has ended (programmatic dependent launch): what
// does not depend on it, above all loads of weights, overlaps its end.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_OVERLAP_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_OVERLAP_CUH_

#include <cuda_runtime.h>

namespace hyserve::kernels::cuda {

// Nothing that the kernels in front write may be read, and nothing written, before this: what lies
// there may still be in use. Weights may be read, the arrays of an AttentionBatch and token ids:
// no kernel writes them. Every thread of a kernel launched by LaunchOverlapped must call it, also
// where it has nothing to do, or the kernel behind could overtake the one in front.
__device__ __forceinline__ void WaitForPriorKernels() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
// From when all CTAs have called this (or ended) the next kernel's may take free places. Attention
// ends first where a product is next, which measured faster (DECISIONS.md, "No product starts
// beside attention").
__device__ __forceinline__ void LetNextKernelStart() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// In front of a kernel that is not launched so, as of a copy, everything ends first.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchOverlapped(void (*kernel)(Parameters...), dim3 grid, int threads,
                             size_t shared_bytes, cudaStream_t stream,
                             const Arguments&... arguments) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_OVERLAP_CUH_
