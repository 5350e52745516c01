#include "engine/kernels/cuda/dense_ops.h"

#include "engine/kernels/cuda/cuda_ops.h"

namespace hyserve::kernels::cuda {
namespace {

using tensor::CudaStatus;
using tensor::DType;

Bf16Matrix AsBf16(const TensorView& view) {
  return {static_cast<__nv_bfloat16*>(view.data), view.row_stride};
}

absl::Status Gather(CudaDevice& device, const TensorView& source, const int32_t* rows,
                    const TensorView& out, std::string_view op) {
  const auto size = static_cast<int64_t>(tensor::SizeOf(source.dtype));
  return CudaStatus(LaunchGather({.source = source.data,
                                  .source_stride_bytes = source.row_stride * size,
                                  .rows = rows,
                                  .out = out.data,
                                  .out_stride_bytes = out.row_stride * size,
                                  .num_rows = out.rows,
                                  .row_bytes = out.cols * size},
                                 device.stream()),
                    op);
}

bool Empty(const TensorView& view) { return view.rows == 0 || view.cols == 0; }

}  // namespace

absl::Status EmbedTokens(CudaDevice& device, const EmbedTokensParams& params) {
  if (Empty(params.out)) return absl::OkStatus();
  if (params.table.dtype == DType::kBF16) {
    return Gather(device, params.table, params.token_ids, params.out, "EmbedTokens");
  }
  return CudaStatus(
      LaunchGatherF32(static_cast<const float*>(params.table.data), params.table.row_stride,
                      params.token_ids, AsBf16(params.out), params.out.rows, params.out.cols,
                      device.stream()),
      "EmbedTokens");
}

absl::Status AddRmsNorm(CudaDevice& device, const AddRmsNormParams& params) {
  if (Empty(params.hidden) || (params.delta.empty() && params.out.empty())) {
    return absl::OkStatus();
  }
  return CudaStatus(LaunchAddRmsNorm({.hidden = AsBf16(params.hidden),
                                      .delta = AsBf16(params.delta),
                                      .out = AsBf16(params.out),
                                      .weight = params.weight,
                                      .epsilon = params.epsilon,
                                      .num_rows = params.hidden.rows,
                                      .num_cols = params.hidden.cols},
                                     device.stream()),
                    "AddRmsNorm");
}

absl::Status SwiGlu(CudaDevice& device, const SwiGluParams& params) {
  if (Empty(params.out)) return absl::OkStatus();
  const auto* gate = static_cast<const __nv_bfloat16*>(params.gate_up.data);
  return CudaStatus(
      LaunchSwiGlu(gate, gate + params.out.cols, params.gate_up.row_stride, AsBf16(params.out),
                   params.out.rows, params.out.cols, device.stream()),
      "SwiGlu");
}

absl::Status GatherRows(CudaDevice& device, const GatherRowsParams& params) {
  if (Empty(params.out)) return absl::OkStatus();
  return Gather(device, params.x, params.rows, params.out, "GatherRows");
}

}  // namespace hyserve::kernels::cuda
