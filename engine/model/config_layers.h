// The layer plan: which layer is of which kind, and which full layer a sparse layer reads.
#ifndef HYSERVE_ENGINE_MODEL_CONFIG_LAYERS_H_
#define HYSERVE_ENGINE_MODEL_CONFIG_LAYERS_H_

#include <string_view>
#include <vector>

#include "engine/model/config.h"
#include "engine/model/config_reader.h"

namespace hyserve::model {

// "full_attention", "sliding_attention", "sparse_attention".
std::string_view Name(LayerKind kind);

bool HasKind(const ModelConfig& config, LayerKind kind);

// Sets the source of every sparse layer that has none (the nearest full layer before it, or -1 when
// there is none) and marks the full layers that are read.
void ResolveSources(std::vector<LayerSpec>* layers);

// From num_hidden_layers, layer_types or hybrid_layer_pattern, kv_source_layer, moe_layer_freq.
// Empty when the plan cannot be told; every fault is noted in `reader`.
std::vector<LayerSpec> ReadLayers(ConfigReader& reader);

// rope_layer_types, when given, must name every kind of layer that the net has.
void CheckRotaryLayers(ConfigReader& reader, const ModelConfig& config);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_CONFIG_LAYERS_H_
