// The attention sub-layer of each kind, from the normalised input to what is added to the residual
// stream.
#ifndef HYSERVE_ENGINE_MODEL_ATTENTION_LAYERS_H_
#define HYSERVE_ENGINE_MODEL_ATTENTION_LAYERS_H_

#include "absl/status/statusor.h"
#include "engine/model/step.h"
#include "engine/tensor/tensor.h"

namespace hyserve::model {

// All of these take `normed` [rows, hidden] and return [rows, hidden] in the workspace's kDelta.

// q, k, v = W x; k, v to the pages; causal attention; when later layers read this one, the
// selection of every row into step.selections.
absl::StatusOr<tensor::TensorView> RunFullLayer(StepContext& step, int layer,
                                                const tensor::TensorView& normed);

// Sliding and sparse layers: window branch over the ring and this step's rows, sparse branch over
// the selected blocks of the source's pages, gates and sinks. When no row's output is wanted, only
// the ring is written and the result is empty.
absl::StatusOr<tensor::TensorView> RunWindowLayer(StepContext& step, int layer,
                                                  const tensor::TensorView& normed,
                                                  bool output_wanted);

// A last full layer, in two parts, because only the rows whose logits are wanted need more than
// their keys and values. First for all rows, then for the chosen ones.
absl::Status AppendKvOfPrunedLayer(StepContext& step, int layer, const tensor::TensorView& normed);
absl::StatusOr<tensor::TensorView> RunPrunedLayer(StepContext& step, int layer,
                                                  const tensor::TensorView& chosen_normed);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_ATTENTION_LAYERS_H_
