#include "engine/kernels/cuda/sample_tokens.h"

#include "absl/strings/str_cat.h"
#include "engine/kernels/cuda/cuda_ops.h"

namespace hyserve::kernels::cuda {

absl::Status SampleTokens(CudaDevice& device, const SampleTokensParams& params) {
  if (params.logits.rows == 0) return absl::OkStatus();
  if (params.logits.cols > kMostSampledCols) {
    return absl::InvalidArgumentError(absl::StrCat("SampleTokens: ", params.logits.cols,
                                                   " columns; at most ", kMostSampledCols,
                                                   " on CUDA"));
  }
  return tensor::CudaStatus(
      LaunchSampleTokens({.logits = static_cast<float*>(params.logits.data),
                          .row_stride = params.logits.row_stride,
                          .num_rows = params.logits.rows,
                          .num_cols = params.logits.cols,
                          .rows = params.rows,
                          .edits = params.edits,
                          .out = params.out},
                         device.stream()),
      "SampleTokens");
}

}  // namespace hyserve::kernels::cuda
