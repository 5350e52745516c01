#include "engine/model/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "base/strings.h"
#include "engine/model/config_check.h"
#include "engine/model/config_keys.h"
#include "engine/model/config_layers.h"
#include "engine/model/config_reader.h"
#include "engine/model/json_reader.h"

namespace hyserve::model {
namespace {

constexpr double kDefaultRopeTheta = 640000.0;
constexpr int kDefaultWindow = 128;
constexpr int kDefaultTopkTokens = 1024;

// Rotary dims of a head: int(head_dim * factor), as the factor is defined.
int RotaryDim(int head_dim, double factor) {
  const double dims = head_dim * factor;
  return std::isfinite(dims) && std::abs(dims) < 1e6 ? static_cast<int>(dims) : -1;
}

void ReadShapes(ConfigReader& reader, ModelConfig* config) {
  const double factor = reader.Number("partial_rotary_factor", 1.0);
  AttentionShape& full = config->full;
  full.num_heads = reader.RequiredInt("num_attention_heads");
  full.num_kv_heads = reader.Int("num_key_value_heads", full.num_heads);
  const int even_split = full.num_heads > 0 && config->hidden_size % full.num_heads == 0
                             ? config->hidden_size / full.num_heads
                             : 0;
  full.head_dim = reader.Int("head_dim", even_split);
  full.v_head_dim = reader.Int("v_head_dim", full.head_dim);
  full.rotary_dim = RotaryDim(full.head_dim, factor);
  full.rope_theta = reader.Number("rope_theta", kDefaultRopeTheta);

  AttentionShape& sliding = config->sliding;
  sliding.num_heads = reader.Int("swa_num_attention_heads", full.num_heads);
  sliding.num_kv_heads = reader.Int("swa_num_key_value_heads", full.num_kv_heads);
  sliding.head_dim = reader.Int("swa_head_dim", full.head_dim);
  sliding.v_head_dim = reader.Int("swa_v_head_dim", full.v_head_dim);
  sliding.rotary_dim = RotaryDim(sliding.head_dim, factor);
  sliding.rope_theta = reader.Number("swa_rope_theta", full.rope_theta);

  if (HasKind(*config, LayerKind::kSliding) || config->layers.empty()) return;
  // Without sliding layers the swa_* keys speak of the window branch of the sparse layers, which
  // shares its query with the sparse branch.
  const auto must_equal = [&](std::string_view key, int value, int wanted) {
    if (value != wanted) {
      reader.Violation(key, StrCat("must be ", wanted,
                                   ", as in the full layers, when there are no sliding "
                                   "layers; got ",
                                   value));
    }
  };
  must_equal("swa_num_attention_heads", sliding.num_heads, full.num_heads);
  must_equal("swa_num_key_value_heads", sliding.num_kv_heads, full.num_kv_heads);
  must_equal("swa_head_dim", sliding.head_dim, full.head_dim);
  must_equal("swa_v_head_dim", sliding.v_head_dim, full.v_head_dim);
  sliding = full;
}

void ReadGatesAndSinks(ConfigReader& reader, ModelConfig* config) {
  const bool sparse = HasKind(*config, LayerKind::kSparse);
  const bool sliding = HasKind(*config, LayerKind::kSliding);
  const ConfigReader::Gates gates = reader.OutputGates("attn_output_gate");
  config->gate_sparse = sparse && gates.sparse;
  config->gate_sliding = sliding && gates.sliding;
  const std::string granularity = reader.String("attn_gate_granularity", "head");
  if (granularity == "element") {
    config->gate_granularity = GateGranularity::kElement;
  } else if (granularity != "head") {
    reader.Violation("attn_gate_granularity", "must be \"head\" or \"element\"");
  }
  config->window_sink =
      reader.Bool("add_swa_attention_sink_bias", false) && (sparse || sliding);
  config->sparse_sink = reader.Bool("add_sparse_attention_sink_bias", false) && sparse;
}

void ReadWindowAndSelection(ConfigReader& reader, ModelConfig* config) {
  const bool sparse = HasKind(*config, LayerKind::kSparse);
  config->sparse_block_size = reader.Int("sparse_block_size", 64);
  const int window = reader.Int("sliding_window", kDefaultWindow);
  if (sparse || HasKind(*config, LayerKind::kSliding)) config->sliding_window = window;
  const int topk_tokens = reader.Int("sparse_topk_tokens", kDefaultTopkTokens);
  if (sparse) config->sparse_topk_tokens = topk_tokens;
}

void ReadExperts(ConfigReader& reader, ModelConfig* config) {
  const bool moe = std::any_of(config->layers.begin(), config->layers.end(),
                               [](const LayerSpec& layer) { return layer.is_moe; });
  const int num_experts = reader.Int("n_routed_experts", 0);
  const int experts_per_token = reader.Int("num_experts_per_tok", 0);
  const int intermediate_size = reader.Int("moe_intermediate_size", 0);
  const bool normalize = reader.Bool("norm_topk_prob", true);
  const double scaling = reader.Number("routed_scaling_factor", 1.0);
  const std::string method = reader.String("topk_method", "noaux_tc");
  if (method != "noaux_tc" && method != "greedy") {
    reader.Violation("topk_method", "must be \"noaux_tc\" or \"greedy\"");
  }
  if (!moe) return;
  config->num_experts = num_experts;
  config->experts_per_token = experts_per_token;
  config->moe_intermediate_size = intermediate_size;
  config->normalize_topk = normalize;
  config->routed_scaling_factor = scaling;
  config->router_correction_bias = method == "noaux_tc";
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json, std::string_view name) {
  const absl::StatusOr<nlohmann::json> root = ParseJsonObject(json, name, JsonLimits());
  if (!root.ok()) return root.status();

  ConfigReader reader(*root);
  ModelConfig config;
  config.model_type = reader.String("model_type", "");
  if (config.model_type == "hysparse2") {
    reader.Violation("model_type", "hysparse2 is not implemented");
  }
  config.vocab_size = reader.RequiredInt("vocab_size");
  config.hidden_size = reader.RequiredInt("hidden_size");
  config.max_position_embeddings = reader.RequiredInt("max_position_embeddings");
  config.rms_norm_epsilon = reader.Number("layernorm_epsilon", 1e-5);
  config.tie_word_embeddings = reader.Bool("tie_word_embeddings", false);
  config.attention_value_scale = reader.Number("attention_value_scale", 1.0);
  config.intermediate_size = reader.Int("intermediate_size", 0);
  config.layers = ReadLayers(reader);
  ReadShapes(reader, &config);
  ReadWindowAndSelection(reader, &config);
  ReadGatesAndSinks(reader, &config);
  CheckRotaryLayers(reader, config);
  ReadExperts(reader, &config);
  config.eos_token_ids = reader.IntOrList("eos_token_id");
  config.bos_token_id = reader.Int("bos_token_id", -1);

  std::vector<ConfigViolation> violations = FindKeyViolations(*root);
  for (ConfigViolation& violation : reader.TakeViolations()) {
    violations.push_back(std::move(violation));
  }
  // A key whose value was refused above is not named a second time for what follows from it, and
  // a plan that could not be read has no length to complain of.
  const bool no_plan = config.layers.empty() && !violations.empty();
  for (ConfigViolation& violation : FindConfigViolations(config)) {
    if (no_plan && violation.key == "num_hidden_layers") continue;
    violations.push_back(std::move(violation));
  }
  if (absl::Status status = ConfigStatus(violations, name); !status.ok()) return status;
  return config;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& directory) {
  const absl::StatusOr<std::string> text =
      ReadSmallFile(StrCat(directory, "/config.json"), "config.json", JsonLimits().max_bytes);
  if (!text.ok()) return text.status();
  return ParseModelConfig(*text, "config.json");
}

}  // namespace hyserve::model
