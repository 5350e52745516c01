// Writes a ModelConfig as the config.json that it would be read from.
#ifndef HYSERVE_ENGINE_MODEL_CONFIG_JSON_H_
#define HYSERVE_ENGINE_MODEL_CONFIG_JSON_H_

#include <string>
#include <string_view>

#include "engine/model/config.h"

namespace hyserve::model {

// Keys in alphabetical order, two spaces of indent, a newline at the end. ParseModelConfig of the
// result equals `config`. `torch_dtype` ("bfloat16", "float32") is left out when empty.
// REQUIRES: CheckModelConfig passes.
std::string ConfigToJson(const ModelConfig& config, std::string_view torch_dtype);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_CONFIG_JSON_H_
