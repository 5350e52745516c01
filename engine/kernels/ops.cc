// Checks and dispatch of the dense ops; attention_ops.cc has those that know the cache.
#include "engine/kernels/ops.h"

#include "engine/kernels/cpu/cpu_ops.h"
#include "engine/kernels/cpu/packed_matrix.h"
#include "engine/kernels/dispatch.h"
#include "engine/kernels/shape_checks.h"

namespace hyserve::kernels {

using tensor::DType;

absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(Device& device,
                                                         std::span<const TensorView> host_parts) {
  ShapeCheck check("PackMatrix");
  check.Require(!host_parts.empty(), "no parts");
  for (const TensorView& part : host_parts) {
    check.Require(part.dtype != DType::kI32, "parts must be f32, bf16 or f16")
        .Require(part.rows > 0 && part.cols > 0, "a part is empty")
        .Matrix("every part", part, part.rows, host_parts[0].cols, host_parts[0].dtype);
  }
  if (!check.ok()) return check.status();
  return Dispatch(device, "PackMatrix", cpu::PackMatrix, cuda::PackMatrix, host_parts);
}

absl::StatusOr<size_t> PackedMatrixBytes(Device& device, const PackedMatrixShape& shape) {
  return Dispatch(device, "PackedMatrixBytes", cpu::PackedMatrixBytes, cuda::PackedMatrixBytes,
                  shape);
}

absl::Status EmbedTokens(Device& device, const EmbedTokensParams& params) {
  ShapeCheck check("EmbedTokens");
  check.Cached("table", params.table.dtype)
      .Matrix("table", params.table, params.table.rows, params.table.cols, params.table.dtype)
      .Matrix("out", params.out, params.out.rows, params.table.cols, device.activation_dtype())
      .Require(params.token_ids != nullptr || params.out.rows == 0, "no token ids");
  if (!check.ok()) return check.status();
  return Dispatch(device, "EmbedTokens", cpu::EmbedTokens, cuda::EmbedTokens, params);
}

absl::Status AddRmsNorm(Device& device, const AddRmsNormParams& params) {
  const DType dtype = device.activation_dtype();
  const int64_t rows = params.hidden.rows;
  const int64_t cols = params.hidden.cols;
  ShapeCheck check("AddRmsNorm");
  check.Matrix("hidden", params.hidden, rows, cols, dtype);
  if (!params.delta.empty()) check.Matrix("delta", params.delta, rows, cols, dtype);
  if (!params.out.empty()) {
    check.Matrix("out", params.out, rows, cols, dtype)
        .Require(params.weight != nullptr, "no weight");
  }
  if (!check.ok()) return check.status();
  return Dispatch(device, "AddRmsNorm", cpu::AddRmsNorm, cuda::AddRmsNorm, params);
}

absl::Status Linear(Device& device, const LinearParams& params) {
  ShapeCheck check("Linear");
  check.Require(params.weight != nullptr, "no weight");
  if (!check.ok()) return check.status();
  const DType y_dtype =
      params.y.dtype == DType::kF32 ? DType::kF32 : device.activation_dtype();
  check.Matrix("x", params.x, params.x.rows, params.weight->in_features(),
               device.activation_dtype())
      .Matrix("y", params.y, params.x.rows, params.weight->out_features(), y_dtype);
  if (!check.ok()) return check.status();
  return Dispatch(device, "Linear", cpu::Linear, cuda::Linear, params);
}

absl::Status SwiGlu(Device& device, const SwiGluParams& params) {
  const DType dtype = device.activation_dtype();
  ShapeCheck check("SwiGlu");
  check.Matrix("out", params.out, params.gate_up.rows, params.out.cols, dtype)
      .Matrix("gate_up", params.gate_up, params.gate_up.rows, 2 * params.out.cols, dtype);
  if (!check.ok()) return check.status();
  return Dispatch(device, "SwiGlu", cpu::SwiGlu, cuda::SwiGlu, params);
}

absl::Status LinearSwiGlu(Device& device, const LinearSwiGluParams& params) {
  const DType dtype = device.activation_dtype();
  const int64_t rows = params.x.rows;
  const int64_t intermediate = params.out.cols;
  ShapeCheck check("LinearSwiGlu");
  check.Require(params.weight != nullptr, "no weight");
  if (!check.ok()) return check.status();
  check.Require(params.weight->out_features() == 2 * intermediate,
                "weight must be [2 * intermediate, in_features]")
      .Matrix("x", params.x, rows, params.weight->in_features(), dtype)
      .Matrix("gate_up", params.gate_up, rows, 2 * intermediate, dtype)
      .Matrix("out", params.out, rows, intermediate, dtype);
  if (!check.ok()) return check.status();
  return Dispatch(device, "LinearSwiGlu", cpu::LinearSwiGlu, cuda::LinearSwiGlu, params);
}

absl::Status GatherRows(Device& device, const GatherRowsParams& params) {
  ShapeCheck check("GatherRows");
  check.Matrix("x", params.x, params.x.rows, params.x.cols, params.x.dtype)
      .Matrix("out", params.out, params.out.rows, params.x.cols, params.x.dtype)
      .Require(params.rows != nullptr || params.out.rows == 0, "no row indices");
  if (!check.ok()) return check.status();
  return Dispatch(device, "GatherRows", cpu::GatherRows, cuda::GatherRows, params);
}

absl::Status SampleTokens(Device& device, const SampleTokensParams& params) {
  const int64_t rows = params.logits.rows;
  ShapeCheck check("SampleTokens");
  check.Matrix("logits", params.logits, rows, params.logits.cols, DType::kF32)
      .Require(params.logits.cols > 0 || rows == 0, "no columns")
      .Require(params.rows != nullptr || rows == 0, "no rows to sample")
      .Require(params.out != nullptr || rows == 0, "no place for the tokens");
  if (!check.ok()) return check.status();
  return Dispatch(device, "SampleTokens", cpu::SampleTokens, cuda::SampleTokens, params);
}

absl::Status MixtureOfExperts(Device& device, const MoeParams& params) {
  const DType dtype = device.activation_dtype();
  const int64_t rows = params.x.rows;
  const int64_t hidden = params.x.cols;
  const int64_t num_experts = params.router_logits.cols;
  ShapeCheck check("MixtureOfExperts");
  check.Matrix("x", params.x, rows, hidden, dtype)
      .Matrix("out", params.out, rows, hidden, dtype)
      .Matrix("router_logits", params.router_logits, rows, num_experts, DType::kF32)
      .Require(num_experts > 0 && static_cast<int64_t>(params.gate_up.size()) == num_experts &&
                   static_cast<int64_t>(params.down.size()) == num_experts,
               "one gate_up and one down matrix per column of router_logits")
      .Require(params.experts_per_token > 0 && params.experts_per_token <= num_experts,
               "experts_per_token must be in [1, number of experts]");
  for (int64_t expert = 0; check.ok() && expert < num_experts; ++expert) {
    const PackedMatrix* gate_up = params.gate_up[expert].get();
    const PackedMatrix* down = params.down[expert].get();
    check.Require(gate_up != nullptr && down != nullptr, "an expert has no matrix");
    if (!check.ok()) break;
    check.Require(down->in_features() == params.down[0]->in_features() &&
                      down->out_features() == hidden && gate_up->in_features() == hidden &&
                      gate_up->out_features() == 2 * down->in_features(),
                  "gate_up must be [2 * intermediate, hidden], down [hidden, intermediate]");
  }
  if (!check.ok()) return check.status();
  return Dispatch(device, "MixtureOfExperts", cpu::MixtureOfExperts, cuda::MixtureOfExperts,
                  params);
}

}  // namespace hyserve::kernels
