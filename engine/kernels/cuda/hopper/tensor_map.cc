#include "engine/kernels/cuda/hopper/tensor_map.h"

#include <cudaTypedefs.h>

namespace hyserve::kernels::cuda::hopper {

namespace {

using EncodeFunction = PFN_cuTensorMapEncodeTiled_v12000;

// Through the runtime, so that nothing links against the driver's library.
EncodeFunction FindEncodeFunction() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion(
      "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<EncodeFunction>(function);
}

}  // namespace

cudaError_t EncodeTensorMap(const TensorMapShape& shape, CUtensorMap* map) {
  static const EncodeFunction encode = FindEncodeFunction();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint32_t element_strides[5] = {1, 1, 1, 1, 1};
  const CUresult result = encode(
      map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<cuuint32_t>(shape.rank),
      const_cast<void*>(shape.data), shape.extents, shape.strides_bytes, shape.box,
      element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      shape.promote_256_bytes ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B
                              : CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace hyserve::kernels::cuda::hopper
