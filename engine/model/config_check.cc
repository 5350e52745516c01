#include "engine/model/config_check.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>

#include "absl/strings/str_join.h"
#include "base/strings.h"

namespace hyserve::model {
namespace {

// Upper bounds. Far above any net that this engine could run, and low enough that no product of a
// few of them leaves int64.
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxVocab = 1 << 24;
constexpr int64_t kMaxHidden = 1 << 17;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxHeadsTimesDim = 1 << 20;
constexpr int64_t kMaxIntermediate = 1 << 20;
constexpr int64_t kMaxExperts = 4096;  // of a layer
constexpr int64_t kMaxExpertsOfNet = 1 << 18;
constexpr int64_t kMaxWindow = 1 << 16;
constexpr int64_t kMaxPositions = 1 << 27;
constexpr int64_t kMaxSelectedBlocks = 64;
constexpr int64_t kMaxParameters = int64_t{1} << 46;

class Finder {
 public:
  explicit Finder(const ModelConfig& config) : config_(config) {}

  std::vector<ConfigViolation> Run() {
    CheckGlobals();
    CheckLayers();
    CheckShape("", config_.full);
    if (Has(LayerKind::kSliding)) CheckShape("swa_", config_.sliding);
    CheckWindowAndSelection();
    CheckFeedForward();
    CheckTokens();
    if (violations_.empty()) CheckParameters();
    return std::move(violations_);
  }

 private:
  bool Has(LayerKind kind) const {
    return std::any_of(config_.layers.begin(), config_.layers.end(),
                       [&](const LayerSpec& layer) { return layer.kind == kind; });
  }
  template <typename... Parts>
  void Add(std::string key, const Parts&... parts) {
    violations_.push_back({std::move(key), StrCat(parts...)});
  }
  void Range(std::string key, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) {
      Add(std::move(key), "must be between ", low, " and ", high, "; got ", value);
    }
  }
  void PositiveNumber(std::string key, double value) {
    if (!std::isfinite(value) || value <= 0) {
      Add(std::move(key), "must be a positive number; got ", value);
    }
  }

  void CheckGlobals() {
    if (config_.model_type != "hysparse") {
      Add("model_type", "must be \"hysparse\"");
    }
    Range("vocab_size", config_.vocab_size, 1, kMaxVocab);
    Range("hidden_size", config_.hidden_size, 1, kMaxHidden);
    Range("max_position_embeddings", config_.max_position_embeddings, 1, kMaxPositions);
    if (!(config_.rms_norm_epsilon >= 1e-12 && config_.rms_norm_epsilon <= 0.1)) {
      Add("layernorm_epsilon", "must be between 1e-12 and 0.1; got ", config_.rms_norm_epsilon);
    }
    PositiveNumber("attention_value_scale", config_.attention_value_scale);
    // A net of sliding layers alone has no pages to hand over.
    if (!config_.layers.empty() && !Has(LayerKind::kFull)) {
      Add("layer_types", "must have at least one full_attention layer");
    }
  }

  void CheckLayers() {
    Range("num_hidden_layers", config_.num_layers(), 1, kMaxLayers);
    for (int i = 0; i < config_.num_layers(); ++i) {
      const LayerSpec& layer = config_.layers[i];
      const int source = layer.kv_source_layer;
      if (layer.kind != LayerKind::kSparse) {
        if (source != -1) {
          Add("kv_source_layer", "layer ", i, " is not sparse and must have -1; got ", source);
        }
      } else if (source < 0 || source >= i || config_.layers[source].kind != LayerKind::kFull) {
        Add("kv_source_layer", "sparse layer ", i, " must read a full layer before it; got ",
            source);
      } else if (!config_.layers[source].is_oracle) {
        Add("kv_source_layer", "layer ", source, " is read by layer ", i,
            " but not marked as an oracle");
      }
      if (layer.is_oracle && !IsRead(i)) {
        Add("kv_source_layer", "layer ", i, " is marked as an oracle but no layer reads it");
      }
    }
  }
  bool IsRead(int layer) const {
    return std::any_of(config_.layers.begin(), config_.layers.end(), [&](const LayerSpec& other) {
      return other.kind == LayerKind::kSparse && other.kv_source_layer == layer;
    });
  }

  void CheckShape(const std::string& prefix, const AttentionShape& shape) {
    Range(prefix + "num_attention_heads", shape.num_heads, 1, kMaxHeads);
    Range(prefix + "num_key_value_heads", shape.num_kv_heads, 1, kMaxHeads);
    Range(prefix + "head_dim", shape.head_dim, 1, kMaxHeadDim);
    Range(prefix + "v_head_dim", shape.v_head_dim, 1, kMaxHeadDim);
    if (shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads != 0) {
      Add(prefix + "num_attention_heads", "must be a multiple of ", prefix,
          "num_key_value_heads (", shape.num_kv_heads, "); got ", shape.num_heads);
    }
    const int64_t widest =
        int64_t{shape.num_heads} * std::max(shape.head_dim, shape.v_head_dim);
    if (widest > kMaxHeadsTimesDim) {
      Add(prefix + "head_dim", "heads x head_dim must be at most ", kMaxHeadsTimesDim, "; got ",
          widest);
    }
    if (shape.rotary_dim < 0 || shape.rotary_dim > shape.head_dim || shape.rotary_dim % 2 != 0) {
      Add("partial_rotary_factor", "gives ", shape.rotary_dim, " rotary dims of ", prefix,
          "head_dim ", shape.head_dim, "; must be even and at most head_dim");
    }
    PositiveNumber(prefix + "rope_theta", shape.rope_theta);
  }

  void CheckWindowAndSelection() {
    if (config_.sparse_block_size != 64) {
      Add("sparse_block_size", "must be 64; got ", config_.sparse_block_size);
    }
    const bool sparse = Has(LayerKind::kSparse);
    if (sparse || Has(LayerKind::kSliding)) {
      Range("sliding_window", config_.sliding_window, 1, kMaxWindow);
    } else {
      Range("sliding_window", config_.sliding_window, 0, 0);
    }
    if (!sparse) return;
    if (config_.sparse_topk_tokens < 1 || config_.sparse_topk_tokens % 64 != 0 ||
        config_.sparse_topk_tokens > 64 * kMaxSelectedBlocks) {
      Add("sparse_topk_tokens", "must be a multiple of 64 between 64 and ",
          64 * kMaxSelectedBlocks, "; got ", config_.sparse_topk_tokens);
    }
  }

  void CheckFeedForward() {
    bool dense = false;
    int64_t moe = 0;
    for (const LayerSpec& layer : config_.layers) {
      dense |= !layer.is_moe;
      moe += layer.is_moe ? 1 : 0;
    }
    if (dense) Range("intermediate_size", config_.intermediate_size, 1, kMaxIntermediate);
    if (moe == 0) return;
    Range("n_routed_experts", config_.num_experts, 1,
          std::min(kMaxExperts, kMaxExpertsOfNet / moe));
    Range("num_experts_per_tok", config_.experts_per_token, 1,
          std::clamp<int64_t>(config_.num_experts, 1, kMaxExperts));
    Range("moe_intermediate_size", config_.moe_intermediate_size, 1, kMaxIntermediate);
    PositiveNumber("routed_scaling_factor", config_.routed_scaling_factor);
  }

  void CheckTokens() {
    for (const int32_t id : config_.eos_token_ids) {
      if (id < 0 || id >= config_.vocab_size) {
        Add("eos_token_id", "must be below vocab_size (", config_.vocab_size, "); got ", id);
      }
    }
    if (config_.bos_token_id < -1 || config_.bos_token_id >= config_.vocab_size) {
      Add("bos_token_id", "must be below vocab_size (", config_.vocab_size, "); got ",
          config_.bos_token_id);
    }
  }

  // In double: exact far beyond the bound, and free of overflow.
  void CheckParameters() {
    const double d = config_.hidden_size;
    double total = 2.0 * config_.vocab_size * d;
    for (const LayerSpec& layer : config_.layers) {
      const AttentionShape& shape = config_.shape(layer.kind);
      total += d * (double{1} * shape.num_heads + shape.num_kv_heads) *
               (shape.head_dim + shape.v_head_dim);
      total += 3.0 * d * (layer.is_moe ? double{1} * config_.num_experts *
                                             config_.moe_intermediate_size
                                       : config_.intermediate_size);
    }
    if (total > static_cast<double>(kMaxParameters)) {
      Add("hidden_size", "the net would have about ", total, " parameters");
    }
  }

  const ModelConfig& config_;
  std::vector<ConfigViolation> violations_;
};

}  // namespace

std::vector<ConfigViolation> FindConfigViolations(const ModelConfig& config) {
  return Finder(config).Run();
}

absl::Status ConfigStatus(const std::vector<ConfigViolation>& violations, std::string_view name) {
  if (violations.empty()) return absl::OkStatus();
  std::set<std::string> named;
  std::vector<std::string> lines;
  for (const ConfigViolation& violation : violations) {
    if (!named.insert(violation.key).second) continue;
    lines.push_back(StrCat(name, ": ", violation.key, ": ", violation.reason));
  }
  return absl::InvalidArgumentError(absl::StrJoin(lines, "\n"));
}

absl::Status CheckModelConfig(const ModelConfig& config, std::string_view name) {
  return ConfigStatus(FindConfigViolations(config), name);
}

}  // namespace hyserve::model
