#include "engine/model/feed_forward.h"

#include "engine/kernels/ops.h"

namespace hyserve::model {
namespace {

using tensor::TensorView;

absl::Status RunDense(StepContext& step, const LayerWeights& weights, const TensorView& normed,
                      const TensorView& delta) {
  const tensor::DType dtype = step.device.activation_dtype();
  const kernels::PackedMatrix& gate_up = *weights.gate_up[0];
  const absl::StatusOr<TensorView> projected =
      step.workspace.Get(Workspace::kGateUp, dtype, normed.rows, gate_up.out_features());
  if (!projected.ok()) return projected.status();
  const absl::StatusOr<TensorView> activated =
      step.workspace.Get(Workspace::kActivated, dtype, normed.rows, gate_up.out_features() / 2);
  if (!activated.ok()) return activated.status();
  if (absl::Status status = kernels::LinearSwiGlu(
          step.device,
          {.x = normed, .weight = &gate_up, .gate_up = *projected, .out = *activated});
      !status.ok()) {
    return status;
  }
  return kernels::Linear(step.device,
                         {.x = *activated, .weight = weights.down[0].get(), .y = delta});
}

absl::Status RunExperts(StepContext& step, const LayerWeights& weights, const TensorView& normed,
                        const TensorView& delta) {
  const absl::StatusOr<TensorView> logits = step.workspace.Get(
      Workspace::kRouter, tensor::DType::kF32, normed.rows, weights.router->out_features());
  if (!logits.ok()) return logits.status();
  if (absl::Status status = kernels::Linear(
          step.device, {.x = normed, .weight = weights.router.get(), .y = *logits});
      !status.ok()) {
    return status;
  }
  return kernels::MixtureOfExperts(
      step.device,
      {.x = normed,
       .router_logits = *logits,
       .correction_bias = static_cast<const float*>(weights.router_bias.data()),
       .gate_up = weights.gate_up,
       .down = weights.down,
       .experts_per_token = step.config.experts_per_token,
       .normalize = step.config.normalize_topk,
       .scaling_factor = static_cast<float>(step.config.routed_scaling_factor),
       .out = delta});
}

}  // namespace

absl::StatusOr<TensorView> RunFeedForward(StepContext& step, int layer, const TensorView& normed) {
  const absl::StatusOr<TensorView> delta =
      step.workspace.Get(Workspace::kDelta, step.device.activation_dtype(), normed.rows,
                         step.config.hidden_size);
  if (!delta.ok()) return delta.status();
  const LayerWeights& weights = step.weights.layers[layer];
  const absl::Status status = step.config.layers[layer].is_moe
                                  ? RunExperts(step, weights, normed, *delta)
                                  : RunDense(step, weights, normed, *delta);
  if (!status.ok()) return status;
  return *delta;
}

}  // namespace hyserve::model
