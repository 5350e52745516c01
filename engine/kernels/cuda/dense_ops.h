// Launchers of the row kernels. Matrices are row-major with a stride in elements; pointers are
// device pointers; at least one row and column. Each enqueues one kernel on the stream and returns
// the launch's error. Formulas: ops.h.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_DENSE_OPS_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_DENSE_OPS_H_

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace hyserve::kernels::cuda {

struct Bf16Matrix {
  __nv_bfloat16* data = nullptr;
  int64_t row_stride = 0;
};

struct AddRmsNormLaunch {
  Bf16Matrix hidden;
  Bf16Matrix delta;               // data null: nothing is added
  Bf16Matrix out;                 // data null: only the addition
  const float* weight = nullptr;  // [cols]; needed with out
  float epsilon = 0;
  int64_t num_rows = 0;
  int64_t num_cols = 0;
};
// The sum is rounded to bf16 first; what is normalised is the hidden state as it is stored.
cudaError_t LaunchAddRmsNorm(const AddRmsNormLaunch& launch, cudaStream_t stream);

// gate and up are columns of one matrix: the same stride.
cudaError_t LaunchSwiGlu(const __nv_bfloat16* gate, const __nv_bfloat16* up, int64_t gate_up_stride,
                         Bf16Matrix out, int64_t num_rows, int64_t num_cols, cudaStream_t stream);

// out[i] = source[rows[i]], rows of row_bytes bytes (a multiple of 2), strides in bytes.
struct GatherLaunch {
  const void* source = nullptr;
  int64_t source_stride_bytes = 0;
  const int32_t* rows = nullptr;
  void* out = nullptr;
  int64_t out_stride_bytes = 0;
  int64_t num_rows = 0;
  int64_t row_bytes = 0;
};
cudaError_t LaunchGather(const GatherLaunch& launch, cudaStream_t stream);

// out[i] = bf16(table[rows[i]]).
cudaError_t LaunchGatherF32(const float* table, int64_t table_stride, const int32_t* rows,
                            Bf16Matrix out, int64_t num_rows, int64_t num_cols,
                            cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_DENSE_OPS_H_
