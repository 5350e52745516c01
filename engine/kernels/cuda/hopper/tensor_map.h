// Descriptions of tensors in device memory for the copy engine. Plain host code.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_HOPPER_TENSOR_MAP_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_HOPPER_TENSOR_MAP_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace hyserve::kernels::cuda::hopper {

// A bf16 tensor of up to 5 dimensions, fastest first, read in boxes whose first extent is 64
// elements (128-byte swizzle).
struct TensorMapShape {
  const void* data = nullptr;  // device, 16-byte aligned
  int rank = 0;
  uint64_t extents[5] = {};
  uint64_t strides_bytes[4] = {};  // of dimensions 1 .. rank - 1; multiples of 16
  uint32_t box[5] = {};            // box[0] is 64; each at most 256
  // Read ahead into L2 beyond a box's 128-byte rows: pays where the next box takes the neighbours
  // soon, costs bandwidth where rows are longer than 128 bytes and memory is the limit.
  bool promote_256_bytes = true;
};

// cudaErrorInvalidValue when the shape cannot be described, cudaErrorNotSupported when the driver
// lacks the call. Costs about a microsecond and touches no device state. Thread-safe.
cudaError_t EncodeTensorMap(const TensorMapShape& shape, CUtensorMap* map);

}  // namespace hyserve::kernels::cuda::hopper

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_HOPPER_TENSOR_MAP_H_
