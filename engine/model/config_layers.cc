#include "engine/model/config_layers.h"

#include <algorithm>
#include <optional>
#include <string>

#include "base/strings.h"
#include "engine/model/json_reader.h"

namespace hyserve::model {
namespace {

constexpr LayerKind kKinds[] = {LayerKind::kFull, LayerKind::kSliding, LayerKind::kSparse};

std::optional<std::vector<LayerKind>> KindsOfNames(ConfigReader& reader) {
  const auto names = reader.StringList("layer_types");
  if (!names.has_value()) return std::nullopt;
  std::vector<LayerKind> kinds;
  for (const std::string& name : *names) {
    const auto* found = std::find_if(std::begin(kKinds), std::end(kKinds),
                                     [&](LayerKind kind) { return Name(kind) == name; });
    if (found == std::end(kKinds)) {
      reader.Violation("layer_types", StrCat("layer ", kinds.size(), ": unknown type \"",
                                             Printable(name), "\""));
      return std::nullopt;
    }
    kinds.push_back(*found);
  }
  return kinds;
}

// 0 full, 1 sliding, 2 sparse.
std::optional<std::vector<LayerKind>> KindsOfPattern(ConfigReader& reader) {
  const auto codes = reader.IntList("hybrid_layer_pattern");
  if (!codes.has_value()) return std::nullopt;
  std::vector<LayerKind> kinds;
  for (const int code : *codes) {
    if (code < 0 || code > 2) {
      reader.Violation("hybrid_layer_pattern", StrCat("layer ", kinds.size(),
                                                      ": must be 0, 1 or 2; got ", code));
      return std::nullopt;
    }
    kinds.push_back(kKinds[code]);
  }
  return kinds;
}

bool CheckLength(ConfigReader& reader, std::string_view key, size_t length, int num_layers) {
  if (length == static_cast<size_t>(num_layers)) return true;
  reader.Violation(key, StrCat("must have one entry per layer (", num_layers, "); has ",
                               length));
  return false;
}

}  // namespace

std::string_view Name(LayerKind kind) {
  switch (kind) {
    case LayerKind::kFull: return "full_attention";
    case LayerKind::kSliding: return "sliding_attention";
    case LayerKind::kSparse: return "sparse_attention";
  }
  return "unknown";
}

bool HasKind(const ModelConfig& config, LayerKind kind) {
  return std::any_of(config.layers.begin(), config.layers.end(),
                     [&](const LayerSpec& layer) { return layer.kind == kind; });
}

void ResolveSources(std::vector<LayerSpec>* layers) {
  int nearest_full = -1;
  for (size_t i = 0; i < layers->size(); ++i) {
    LayerSpec& layer = (*layers)[i];
    if (layer.kind == LayerKind::kFull) nearest_full = static_cast<int>(i);
    if (layer.kind != LayerKind::kSparse) continue;
    if (layer.kv_source_layer == -1) layer.kv_source_layer = nearest_full;
    const int source = layer.kv_source_layer;
    if (source >= 0 && source < static_cast<int>(i)) {
      LayerSpec& oracle = (*layers)[source];
      if (oracle.kind == LayerKind::kFull) oracle.is_oracle = true;
    }
  }
}

std::vector<LayerSpec> ReadLayers(ConfigReader& reader) {
  const int num_layers = reader.RequiredInt("num_hidden_layers");
  const auto named = KindsOfNames(reader);
  const auto coded = KindsOfPattern(reader);
  if (!reader.Has("layer_types") && !reader.Has("hybrid_layer_pattern")) {
    reader.Violation("layer_types", "missing");
  }
  bool right_length = true;
  if (named) right_length &= CheckLength(reader, "layer_types", named->size(), num_layers);
  if (coded) right_length &= CheckLength(reader, "hybrid_layer_pattern", coded->size(), num_layers);
  if (named && coded && right_length && *named != *coded) {
    const auto differs = std::mismatch(named->begin(), named->end(), coded->begin()).first;
    reader.Violation("hybrid_layer_pattern",
                     StrCat("differs from layer_types at layer ", differs - named->begin()));
  }
  if ((!named && !coded) || !right_length) return {};

  std::vector<LayerSpec> layers;
  for (const LayerKind kind : named ? *named : *coded) layers.push_back({.kind = kind});
  if (const auto sources = reader.IntList("kv_source_layer");
      sources && CheckLength(reader, "kv_source_layer", sources->size(), num_layers)) {
    for (int i = 0; i < num_layers; ++i) {
      layers[i].kv_source_layer = (*sources)[i];
      if (layers[i].kind == LayerKind::kSparse && (*sources)[i] == -1) {
        reader.Violation("kv_source_layer",
                         StrCat("sparse layer ", i, " must name the full layer it reads"));
      }
    }
  }
  if (const auto moe = reader.IntList("moe_layer_freq");
      moe && CheckLength(reader, "moe_layer_freq", moe->size(), num_layers)) {
    for (int i = 0; i < num_layers; ++i) {
      if ((*moe)[i] != 0 && (*moe)[i] != 1) {
        reader.Violation("moe_layer_freq",
                         StrCat("layer ", i, ": must be 0 or 1; got ", (*moe)[i]));
      }
      layers[i].is_moe = (*moe)[i] == 1;
    }
  }
  ResolveSources(&layers);
  return layers;
}

void CheckRotaryLayers(ConfigReader& reader, const ModelConfig& config) {
  const auto names = reader.StringList("rope_layer_types");
  if (!names.has_value()) return;
  for (const LayerKind kind : kKinds) {
    if (HasKind(config, kind) &&
        std::find(names->begin(), names->end(), Name(kind)) == names->end()) {
      reader.Violation("rope_layer_types",
                       StrCat("must name ", Name(kind),
                              ": layers without rotary positions are not implemented"));
    }
  }
}

}  // namespace hyserve::model
