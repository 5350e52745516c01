// y = x W^T for few rows, limited by the bandwidth of the weights. No host synchronisation.
//
// The result of a row is bitwise the same for every number of rows up to kSkinnyMaxRows.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SKINNY_GEMM_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_SKINNY_GEMM_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace hyserve::kernels::cuda {

constexpr int kSkinnyMaxRows = 16;

struct SkinnyGemmArgs {
  // bf16 [out_features, in_features], rows 16-byte aligned, zero up to the next multiple of 8
  // columns.
  const void* weight = nullptr;
  int64_t weight_stride = 0;  // elements, a multiple of 8
  // bf16 [rows, in_features], rows 16-byte aligned; columns up to the next multiple of 8 are read
  // and must be finite.
  const void* x = nullptr;
  int64_t x_stride = 0;       // elements, a multiple of 8
  void* y = nullptr;          // [rows, out_features] bf16 or f32, any stride
  int64_t y_stride = 0;
  bool y_is_f32 = false;
  // The weight has 2 * out_features rows, gates then ups, and y becomes silu(gate) * up in bf16,
  // with both rounded to bf16 first: the bits of the product followed by SwiGlu.
  bool swiglu = false;
  int rows = 0;  // 1 .. kSkinnyMaxRows
  int64_t out_features = 0;
  int in_features = 0;
};

cudaError_t LaunchSkinnyGemm(const SkinnyGemmArgs& args, cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SKINNY_GEMM_H_
