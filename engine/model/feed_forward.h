// The feed-forward sub-layer: down(silu(gate x) * up x), or a mixture of such experts.
#ifndef HYSERVE_ENGINE_MODEL_FEED_FORWARD_H_
#define HYSERVE_ENGINE_MODEL_FEED_FORWARD_H_

#include "absl/status/statusor.h"
#include "engine/model/step.h"
#include "engine/tensor/tensor.h"

namespace hyserve::model {

// [rows, hidden] -> [rows, hidden] in the workspace's kDelta.
absl::StatusOr<tensor::TensorView> RunFeedForward(StepContext& step, int layer,
                                                  const tensor::TensorView& normed);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_FEED_FORWARD_H_
