// The workspaces of the largest step (Model::ReserveWorkspaces).
#ifndef HYSERVE_ENGINE_MODEL_RESERVE_H_
#define HYSERVE_ENGINE_MODEL_RESERVE_H_

#include "absl/status/status.h"
#include "engine/kv_cache/kv_layout.h"
#include "engine/model/config.h"
#include "engine/model/model.h"
#include "engine/model/weights.h"
#include "engine/model/workspace.h"
#include "engine/tensor/device.h"

namespace hyserve::model {

// Grows every slot of `workspace` that the layers use, and what ops keep on the device themselves.
// Those of the results are StepResults' own.
absl::Status ReserveStep(tensor::Device& device, const ModelConfig& config,
                         const kv_cache::KvLayout& layout, const ModelWeights& weights,
                         const StepLimits& limits, Workspace* workspace);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_RESERVE_H_
