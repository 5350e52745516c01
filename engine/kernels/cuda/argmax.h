// Launcher of ArgmaxRows (ops.h).
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_ARGMAX_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_ARGMAX_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace hyserve::kernels::cuda {

// x [num_rows, num_cols] with row_stride floats from row to row; one index per row.
cudaError_t LaunchArgmax(const float* x, int64_t row_stride, int64_t num_rows, int64_t num_cols,
                         int32_t* token_ids, cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_ARGMAX_H_
