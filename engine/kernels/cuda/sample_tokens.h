// Launcher of SampleTokens (ops.h). Pointers are device pointers; one kernel for all rows; what a
// row wants is read on the device, so a recorded launch serves any rows of the same shape.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_TOKENS_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_TOKENS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/kernels/sample_tokens.h"

namespace hyserve::kernels::cuda {

struct SampleTokensLaunch {
  float* logits = nullptr;  // edits are written to it
  int64_t row_stride = 0;   // in elements
  int64_t num_rows = 0;
  int64_t num_cols = 0;  // in [1, kMostSampledCols]
  const SampleRow* rows = nullptr;
  const LogitEdit* edits = nullptr;
  SampledRow* out = nullptr;
};

// Sums of weights stay within 64 bits, and each weight within 2^-40 of the best.
inline constexpr int64_t kMostSampledCols = int64_t{1} << 20;

cudaError_t LaunchSampleTokens(const SampleTokensLaunch& launch, cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_TOKENS_H_
