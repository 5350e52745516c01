#include "engine/model/config_keys.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <string_view>

#include "base/strings.h"
#include "engine/model/json_reader.h"

namespace hyserve::model {
namespace {

using nlohmann::json;

// Read by config_reader.cc.
constexpr std::string_view kReadKeys[] = {
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim",
    "swa_num_attention_heads", "swa_num_key_value_heads", "swa_head_dim", "swa_v_head_dim",
    "rope_theta", "swa_rope_theta", "partial_rotary_factor", "sliding_window", "layer_types",
    "hybrid_layer_pattern", "kv_source_layer", "sparse_block_size", "sparse_topk_tokens",
    "attn_output_gate", "attn_gate_granularity", "add_swa_attention_sink_bias",
    "add_sparse_attention_sink_bias", "attention_value_scale", "layernorm_epsilon",
    "tie_word_embeddings", "max_position_embeddings", "rope_layer_types", "moe_layer_freq",
    "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "topk_method",
    "norm_topk_prob", "routed_scaling_factor", "eos_token_id", "bos_token_id"};

// Ordinary metadata: says nothing about the arithmetic of inference.
constexpr std::string_view kIgnoredKeys[] = {
    "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "auto_map",
    "use_cache", "initializer_range", "pad_token_id", "unk_token_id", "tokenizer_class",
    "attention_dropout", "hidden_dropout", "id2label", "label2id", "return_dict",
    "output_attentions", "output_hidden_states", "torchscript", "is_encoder_decoder",
    "problem_type", "attn_implementation", "_attn_implementation", "license", "name"};

// Keys with one implemented value. Any other value changes the arithmetic.
struct FixedKey {
  std::string_view key;
  std::string_view allowed;  // as JSON
};
constexpr FixedKey kFixedKeys[] = {{"hidden_act", "\"silu\""},
                                   {"sparse_granularity", "\"block\""},
                                   {"index_head_reduce", "\"max\""},
                                   {"index_score", "\"prob\""},
                                   {"scoring_func", "\"sigmoid\""},
                                   {"sparse_swa_branch", "true"},
                                   {"add_full_attention_sink_bias", "false"},
                                   {"attention_bias", "false"},
                                   {"use_qk_norm", "false"},
                                   {"force_first_blocks", "0"},
                                   {"force_local_blocks", "0"},
                                   {"sparse_forced_local", "0"},
                                   {"n_group", "1"},
                                   {"topk_group", "1"},
                                   {"n_shared_experts", "0"},
                                   {"num_nextn_predict_layers", "0"},
                                   {"hc_streams", "1"}};

// Keys that are refused whatever they say, with the reason.
struct RefusedKey {
  std::string_view key;
  std::string_view reason;
};
constexpr RefusedKey kRefusedKeys[] = {
    {"sliding_window_size", "ambiguous (with or without the query); use sliding_window"},
    {"rms_norm_eps", "use layernorm_epsilon"},
    {"rope_parameters", "use rope_theta, swa_rope_theta and partial_rotary_factor"},
    {"mlp_layer_types", "use moe_layer_freq"},
    {"rope_scaling", "not implemented"},
    {"quantization_config", "quantised weights are not implemented"},
    {"attention_projection_layout", "fused projections are not implemented"},
    {"num_self_decoder_layers", "HySparse2 is not implemented"},
    {"bridge_norm", "HySparse2 is not implemented"}};

int EditDistance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row.back();
}

std::string UnknownKey(std::string_view key) {
  std::string_view nearest;
  int best = 4;  // further away is another word
  const auto consider = [&](std::string_view known) {
    const int distance = EditDistance(key, known);
    if (distance < best && distance * 2 < static_cast<int>(known.size())) {
      best = distance;
      nearest = known;
    }
  };
  if (key.size() <= 64) {
    for (const std::string_view known : kReadKeys) consider(known);
    for (const FixedKey& fixed : kFixedKeys) consider(fixed.key);
  }
  if (nearest.empty()) return "unknown key";
  return StrCat("unknown key; did you mean ", nearest, "?");
}

bool Contains(const auto& list, std::string_view key) {
  return std::find(std::begin(list), std::end(list), key) != std::end(list);
}

// Empty when the key is fine.
std::string Reason(std::string_view key, const json& value) {
  for (const RefusedKey& refused : kRefusedKeys) {
    if (refused.key == key) return StrCat("refused: ", refused.reason);
  }
  for (const FixedKey& fixed : kFixedKeys) {
    if (fixed.key != key) continue;
    const json allowed = json::parse(fixed.allowed);
    // 1 == 1.0 is wanted here; 0 == false is not what nlohmann does.
    if (value == allowed) return "";
    return StrCat("must be ", fixed.allowed, ", nothing else is implemented; got ",
                  Printable(value.dump(-1, ' ', true, json::error_handler_t::replace)));
  }
  if (key == "bridge_source_layer") {
    const bool none = value.is_array() && std::all_of(value.begin(), value.end(),
                                                      [](const json& v) { return v == -1; });
    return none ? "" : "refused: HySparse2 is not implemented";
  }
  if (Contains(kReadKeys, key) || Contains(kIgnoredKeys, key)) return "";
  return UnknownKey(key);
}

}  // namespace

std::vector<ConfigViolation> FindKeyViolations(const json& root) {
  std::vector<ConfigViolation> violations;
  for (const auto& [key, value] : root.items()) {
    if (value.is_null() && key != "sliding_window_size") {
      // Absent, but a misspelt name is still worth a word.
      if (std::string reason = Reason(key, value); reason.starts_with("unknown")) {
        violations.push_back({Printable(key), std::move(reason)});
      }
      continue;
    }
    if (std::string reason = Reason(key, value); !reason.empty()) {
      violations.push_back({Printable(key), std::move(reason)});
    }
  }
  return violations;
}

}  // namespace hyserve::model
