// The step driver: embedding, layers, final norm, logits.
#ifndef HYSERVE_ENGINE_MODEL_FORWARD_H_
#define HYSERVE_ENGINE_MODEL_FORWARD_H_

#include <memory>
#include <string>

#include "engine/model/model.h"
#include "engine/model/weights.h"

namespace hyserve::model {

// `device` must outlive the model. Workspaces are allocated as steps need them, or reserved.
std::unique_ptr<Model> MakeModel(tensor::Device& device, const ModelConfig& config,
                                 ModelWeights weights, const ModelOptions& options);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_FORWARD_H_
