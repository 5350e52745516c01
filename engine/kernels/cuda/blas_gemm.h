// y = x W^T through cuBLASLt, for many rows: bf16 operands, f32 accumulation.
//
// Equal calls give equal bits: only algorithms without a split of K are chosen. The algorithm is
// chosen for the number of rows rounded up to a power of two and kept for the life of the process
// (a value without resources); choosing takes some 0.1 ms of the host and never waits for the GPU.
// Thread-safe.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_BLAS_GEMM_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_BLAS_GEMM_H_

#include <cublasLt.h>

#include <cstddef>
#include <cstdint>

namespace hyserve::kernels::cuda {

constexpr size_t kBlasWorkspaceBytes = size_t{32} << 20;

struct BlasGemmArgs {
  const void* weight = nullptr;  // bf16 [out_features, in_features]
  int64_t weight_stride = 0;
  const void* x = nullptr;  // bf16 [rows, in_features]
  int64_t x_stride = 0;
  void* y = nullptr;  // [rows, out_features], bf16 or f32
  int64_t y_stride = 0;
  bool y_is_f32 = false;
  int64_t rows = 0;
  int64_t out_features = 0;
  int64_t in_features = 0;
  // REQUIRES: addresses and row strides in bytes are multiples of 16.
};

// workspace: kBlasWorkspaceBytes of device memory.
cublasStatus_t RunBlasGemm(cublasLtHandle_t handle, const BlasGemmArgs& args, void* workspace,
                           cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_BLAS_GEMM_H_
