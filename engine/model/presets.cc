#include "engine/model/presets.h"

#include <string>
#include <utility>

#include "absl/strings/str_join.h"
#include "base/strings.h"
#include "engine/model/config_layers.h"

namespace hyserve::model {
namespace {

constexpr double kFullRopeTheta = 640000.0;
constexpr double kSlidingRopeTheta = 10000.0;

// "FSSF": F full, S sparse.
std::vector<LayerSpec> Plan(std::string_view letters) {
  std::vector<LayerSpec> layers;
  for (const char letter : letters) {
    layers.push_back({.kind = letter == 'F' ? LayerKind::kFull : LayerKind::kSparse});
  }
  ResolveSources(&layers);
  return layers;
}

// `blocks` times one full layer and `followers` sparse ones.
std::string Blocks(int blocks, int followers) {
  std::string letters;
  for (int i = 0; i < blocks; ++i) letters += "F" + std::string(followers, 'S');
  return letters;
}

// What all presets share: gates per head and sinks on both branches, window 128, 1,024 tokens
// selected.
ModelConfig Base(std::string_view letters, const AttentionShape& shape) {
  ModelConfig config;
  config.model_type = "hysparse";
  config.layers = Plan(letters);
  config.full = shape;
  config.full.rope_theta = kFullRopeTheta;
  config.sliding = config.full;
  config.sliding_window = 128;
  config.sparse_topk_tokens = 1024;
  config.gate_sparse = true;
  config.window_sink = true;
  config.sparse_sink = true;
  return config;
}

ModelConfig Tiny() {
  ModelConfig config = Base("FSSF", {.num_heads = 4,
                                     .num_kv_heads = 2,
                                     .head_dim = 16,
                                     .v_head_dim = 16,
                                     .rotary_dim = 16});
  config.vocab_size = 256;
  config.hidden_size = 64;
  config.intermediate_size = 128;
  config.max_position_embeddings = 32768;
  config.sliding_window = 64;
  config.sparse_topk_tokens = 128;
  config.eos_token_ids = {0};
  return config;
}

ModelConfig Demo() {
  ModelConfig config = Base("FSSSFSSSF", {.num_heads = 8,
                                          .num_kv_heads = 2,
                                          .head_dim = 64,
                                          .v_head_dim = 64,
                                          .rotary_dim = 32});
  config.vocab_size = 2944;
  config.hidden_size = 256;
  config.intermediate_size = 512;
  config.max_position_embeddings = 32768;
  config.sparse_topk_tokens = 512;
  config.eos_token_ids = {0, 2};
  return config;
}

ModelConfig ThreeHundredMillion() {
  ModelConfig config = Base("FSSSSF", {.num_heads = 16,
                                       .num_kv_heads = 4,
                                       .head_dim = 128,
                                       .v_head_dim = 128,
                                       .rotary_dim = 128});
  config.vocab_size = 4096;
  config.hidden_size = 2048;
  config.intermediate_size = 5632;
  config.max_position_embeddings = 131072;
  return config;
}

ModelConfig SevenBillion() {
  ModelConfig config = Base(Blocks(8, 3) + Blocks(1, 2) + "F", {.num_heads = 32,
                                                                .num_kv_heads = 8,
                                                                .head_dim = 128,
                                                                .v_head_dim = 128,
                                                                .rotary_dim = 128});
  config.vocab_size = 151680;
  config.hidden_size = 4096;
  config.intermediate_size = 11008;
  config.max_position_embeddings = 1048576;  // for load tests: no weights were trained that far
  return config;
}

ModelConfig EightyBillion() {
  ModelConfig config = Base(Blocks(4, 11) + "F", {.num_heads = 64,
                                                  .num_kv_heads = 4,
                                                  .head_dim = 192,
                                                  .v_head_dim = 128,
                                                  .rotary_dim = 64});
  config.vocab_size = 152576;
  config.hidden_size = 2048;
  config.intermediate_size = 8192;  // of the first layer, which is dense
  config.max_position_embeddings = 262144;
  for (int i = 1; i < config.num_layers(); ++i) config.layers[i].is_moe = true;
  config.num_experts = 512;
  config.experts_per_token = 8;
  config.moe_intermediate_size = 512;
  config.router_correction_bias = true;
  return config;
}

struct NamedPreset {
  std::string_view name;
  ModelConfig (*build)();
};
constexpr NamedPreset kPresets[] = {{"tiny", Tiny},
                                    {"demo", Demo},
                                    {"0.3b", ThreeHundredMillion},
                                    {"7b", SevenBillion},
                                    {"80b-a3b", EightyBillion}};

ModelConfig AllFull(ModelConfig config) {
  for (LayerSpec& layer : config.layers) {
    layer.kind = LayerKind::kFull;
    layer.kv_source_layer = -1;
    layer.is_oracle = false;
  }
  config.sliding_window = 0;
  config.sparse_topk_tokens = 0;
  config.gate_sparse = config.window_sink = config.sparse_sink = false;
  return config;
}

ModelConfig SlidingInPlaceOfSparse(ModelConfig config) {
  for (LayerSpec& layer : config.layers) {
    if (layer.kind == LayerKind::kSparse) layer.kind = LayerKind::kSliding;
    layer.kv_source_layer = -1;
    layer.is_oracle = false;
  }
  config.sliding.rope_theta = kSlidingRopeTheta;
  config.sparse_topk_tokens = 0;
  config.gate_sliding = config.gate_sparse;
  config.gate_sparse = config.sparse_sink = false;
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> Preset(std::string_view name) {
  for (const NamedPreset& preset : kPresets) {
    if (!name.starts_with(preset.name)) continue;
    const std::string_view suffix = name.substr(preset.name.size());
    if (suffix.empty()) return preset.build();
    if (suffix == "-full") return AllFull(preset.build());
    if (suffix == "-swa") return SlidingInPlaceOfSparse(preset.build());
  }
  return absl::NotFoundError(
      StrCat("no preset of that name; there are ", absl::StrJoin(PresetNames(), ", ")));
}

std::vector<std::string> PresetNames() {
  std::vector<std::string> names;
  for (const NamedPreset& preset : kPresets) {
    for (const std::string_view suffix : {"", "-full", "-swa"}) {
      names.push_back(StrCat(preset.name, suffix));
    }
  }
  return names;
}

}  // namespace hyserve::model
