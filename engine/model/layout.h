// The layout of cached state that follows from a checkpoint's layer plan.
#ifndef HYSERVE_ENGINE_MODEL_LAYOUT_H_
#define HYSERVE_ENGINE_MODEL_LAYOUT_H_

#include <string>

#include "engine/kv_cache/kv_layout.h"
#include "engine/model/config.h"
#include "engine/tensor/tensor.h"

namespace hyserve::model {

// REQUIRES: CheckModelConfig passes. `digest` is the model digest that the two workers of a
// hand-off compare (digest.h).
kv_cache::KvLayout MakeKvLayout(const ModelConfig& config, tensor::DType kv_dtype,
                                std::string digest);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_LAYOUT_H_
