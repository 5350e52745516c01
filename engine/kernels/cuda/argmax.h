// Launcher of ArgmaxRows (ops.h).
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_ARGMAX_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_ARGMAX_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace hyserve::kernels::cuda {

// x [num_rows, num_cols] with row_stride floats from row to row; one index per row.
struct ArgmaxLaunch {
  const float* x = nullptr;
  int64_t row_stride = 0;
  int64_t num_rows = 0;
  int64_t num_cols = 0;
  int32_t* token_ids = nullptr;
  uint64_t* partial = nullptr;  // [num_rows, ArgmaxParts]
  int32_t* tickets = nullptr;   // [num_rows], zero before and after
};
// Blocks that share a row.
int ArgmaxParts(int64_t num_rows, int64_t num_cols);
cudaError_t LaunchArgmax(const ArgmaxLaunch& launch, cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_ARGMAX_H_
