#include "engine/model/config_json.h"

#include <algorithm>

#include "engine/model/config_layers.h"
#include "nlohmann/json.hpp"

namespace hyserve::model {
namespace {

using nlohmann::json;

// One factor serves both shapes, so it must give back the rotary width of each when it is
// multiplied by head_dim and cut to an integer.
double RotaryFactor(const ModelConfig& config) {
  const AttentionShape& full = config.full;
  const AttentionShape& sliding = config.sliding;
  const double exact = static_cast<double>(full.rotary_dim) / full.head_dim;
  if (static_cast<int>(full.head_dim * exact) == full.rotary_dim &&
      static_cast<int>(sliding.head_dim * exact) == sliding.rotary_dim) {
    return exact;
  }
  // The middle of the range that suits both.
  const double low = std::max(exact, static_cast<double>(sliding.rotary_dim) / sliding.head_dim);
  const double high = std::min((full.rotary_dim + 1.0) / full.head_dim,
                               (sliding.rotary_dim + 1.0) / sliding.head_dim);
  return (low + high) / 2;
}

void WriteLayers(const ModelConfig& config, json* out) {
  json types = json::array(), sources = json::array(), moe = json::array();
  bool any_sparse = false, any_moe = false;
  for (const LayerSpec& layer : config.layers) {
    types.push_back(std::string(Name(layer.kind)));
    sources.push_back(layer.kv_source_layer);
    moe.push_back(layer.is_moe ? 1 : 0);
    any_sparse |= layer.kind == LayerKind::kSparse;
    any_moe |= layer.is_moe;
  }
  (*out)["num_hidden_layers"] = config.num_layers();
  (*out)["layer_types"] = std::move(types);
  if (any_sparse) (*out)["kv_source_layer"] = std::move(sources);
  if (!any_moe) return;
  (*out)["moe_layer_freq"] = std::move(moe);
  (*out)["n_routed_experts"] = config.num_experts;
  (*out)["num_experts_per_tok"] = config.experts_per_token;
  (*out)["moe_intermediate_size"] = config.moe_intermediate_size;
  (*out)["norm_topk_prob"] = config.normalize_topk;
  (*out)["routed_scaling_factor"] = config.routed_scaling_factor;
  (*out)["scoring_func"] = "sigmoid";
  (*out)["topk_method"] = config.router_correction_bias ? "noaux_tc" : "greedy";
}

void WriteShapes(const ModelConfig& config, json* out) {
  const AttentionShape& full = config.full;
  (*out)["num_attention_heads"] = full.num_heads;
  (*out)["num_key_value_heads"] = full.num_kv_heads;
  (*out)["head_dim"] = full.head_dim;
  (*out)["v_head_dim"] = full.v_head_dim;
  (*out)["rope_theta"] = full.rope_theta;
  (*out)["partial_rotary_factor"] = RotaryFactor(config);
  if (!HasKind(config, LayerKind::kSliding)) return;
  const AttentionShape& sliding = config.sliding;
  (*out)["swa_num_attention_heads"] = sliding.num_heads;
  (*out)["swa_num_key_value_heads"] = sliding.num_kv_heads;
  (*out)["swa_head_dim"] = sliding.head_dim;
  (*out)["swa_v_head_dim"] = sliding.v_head_dim;
  (*out)["swa_rope_theta"] = sliding.rope_theta;
}

}  // namespace

std::string ConfigToJson(const ModelConfig& config, std::string_view torch_dtype) {
  json out;
  out["architectures"] = {"HysparseForCausalLM"};
  out["model_type"] = config.model_type;
  if (!torch_dtype.empty()) out["torch_dtype"] = std::string(torch_dtype);
  out["vocab_size"] = config.vocab_size;
  out["hidden_size"] = config.hidden_size;
  out["hidden_act"] = "silu";
  if (config.intermediate_size > 0) out["intermediate_size"] = config.intermediate_size;
  out["max_position_embeddings"] = config.max_position_embeddings;
  out["layernorm_epsilon"] = config.rms_norm_epsilon;
  out["tie_word_embeddings"] = config.tie_word_embeddings;
  out["attention_value_scale"] = config.attention_value_scale;
  WriteLayers(config, &out);
  WriteShapes(config, &out);

  if (config.sliding_window > 0) out["sliding_window"] = config.sliding_window;
  out["sparse_granularity"] = "block";
  out["sparse_block_size"] = config.sparse_block_size;
  if (config.sparse_topk_tokens > 0) out["sparse_topk_tokens"] = config.sparse_topk_tokens;
  out["attn_output_gate"] = {
      {"full", false}, {"sliding", config.gate_sliding}, {"sparse", config.gate_sparse}};
  out["attn_gate_granularity"] =
      config.gate_granularity == GateGranularity::kHead ? "head" : "element";
  out["add_swa_attention_sink_bias"] = config.window_sink;
  out["add_full_attention_sink_bias"] = false;
  out["add_sparse_attention_sink_bias"] = config.sparse_sink;
  out["attention_bias"] = false;
  if (!config.eos_token_ids.empty()) out["eos_token_id"] = config.eos_token_ids;
  if (config.bos_token_id >= 0) out["bos_token_id"] = config.bos_token_id;
  return out.dump(2) + "\n";
}

}  // namespace hyserve::model
