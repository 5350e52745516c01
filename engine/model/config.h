// What config.json says of a HySparse v1 checkpoint, checked, with every default filled in.
//
// Keys and defaults: the HySparse checkpoint conventions (models/README.md). Reading is strict: a
// key that changes the arithmetic and is not implemented is refused by name. Plain data, immutable
// once read.
#ifndef HYSERVE_ENGINE_MODEL_CONFIG_H_
#define HYSERVE_ENGINE_MODEL_CONFIG_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hyserve::model {

enum class LayerKind : uint8_t { kFull, kSliding, kSparse };
enum class GateGranularity : uint8_t { kHead, kElement };

struct LayerSpec {
  LayerKind kind = LayerKind::kFull;
  int kv_source_layer = -1;  // sparse: the full layer whose pages and selection it reads
  bool is_oracle = false;    // full: some later layer reads its selection
  bool is_moe = false;
  bool operator==(const LayerSpec&) const = default;
};

// Shape of one kind of attention.
struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;    // of q and k
  int v_head_dim = 0;  // of v
  int rotary_dim = 0;
  double rope_theta = 0;
  bool operator==(const AttentionShape&) const = default;
};

struct ModelConfig {
  std::string model_type;  // "hysparse"
  int vocab_size = 0;
  int hidden_size = 0;
  int max_position_embeddings = 0;
  double rms_norm_epsilon = 1e-5;
  bool tie_word_embeddings = false;
  std::vector<LayerSpec> layers;

  AttentionShape full;     // full and sparse layers
  AttentionShape sliding;  // sliding layers
  int sliding_window = 0;  // keys in the window, the query included; 0: no window layers
  int sparse_block_size = 64;
  int sparse_topk_tokens = 0;
  double attention_value_scale = 1.0;

  bool gate_sparse = false;   // both gates of sparse layers
  bool gate_sliding = false;
  GateGranularity gate_granularity = GateGranularity::kHead;
  bool window_sink = false;  // window branch of sparse layers, and sliding layers
  bool sparse_sink = false;  // sparse branch

  int intermediate_size = 0;  // dense FFN
  int num_experts = 0;        // 0: no MoE layers
  int experts_per_token = 0;
  int moe_intermediate_size = 0;
  bool normalize_topk = true;
  double routed_scaling_factor = 1.0;
  bool router_correction_bias = false;

  std::vector<int32_t> eos_token_ids;
  int32_t bos_token_id = -1;

  bool operator==(const ModelConfig&) const = default;

  int num_layers() const { return static_cast<int>(layers.size()); }
  int selected_blocks() const { return sparse_topk_tokens / sparse_block_size; }
  // The last layer of the net is full: only the rows whose logits are asked for need it.
  bool last_layer_prunable() const {
    return !layers.empty() && layers.back().kind == LayerKind::kFull;
  }
  // Shape used by a layer of this kind.
  const AttentionShape& shape(LayerKind kind) const {
    return kind == LayerKind::kSliding ? sliding : full;
  }
};

// `name` is the file for messages: "config.json: sparse_block_size: must be 64; got 32".
// INVALID_ARGUMENT lists every violation, one a line.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json, std::string_view name);

// Reads <directory>/config.json. NOT_FOUND, INVALID_ARGUMENT or the I/O error.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& directory);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_CONFIG_H_
