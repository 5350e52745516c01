#include "engine/model/layout.h"

#include <utility>

namespace hyserve::model {

kv_cache::KvLayout MakeKvLayout(const ModelConfig& config, tensor::DType kv_dtype,
                                std::string digest) {
  kv_cache::KvLayout layout;
  layout.dtype = kv_dtype;
  layout.num_kv_heads = config.full.num_kv_heads;
  layout.head_dim = config.full.head_dim;
  layout.v_head_dim = config.full.v_head_dim;
  layout.window = config.sliding_window;
  layout.num_layers = config.num_layers();
  layout.model_digest = std::move(digest);
  for (int i = 0; i < config.num_layers(); ++i) {
    const LayerSpec& layer = config.layers[i];
    if (layer.kind == LayerKind::kFull) {
      if (layer.is_oracle) {
        layout.oracle_slots.push_back(static_cast<int>(layout.full_layers.size()));
      }
      layout.full_layers.push_back(i);
      continue;
    }
    const AttentionShape& shape = config.shape(layer.kind);
    const size_t ring_row_bytes = tensor::SizeOf(kv_dtype) * layout.window * shape.num_kv_heads;
    const size_t k_offset = layout.slab_bytes;
    const size_t v_offset = k_offset + ring_row_bytes * shape.head_dim;
    layout.rings.push_back({.layer_index = i,
                            .num_kv_heads = shape.num_kv_heads,
                            .head_dim = shape.head_dim,
                            .v_head_dim = shape.v_head_dim,
                            .k_offset_bytes = k_offset,
                            .v_offset_bytes = v_offset});
    layout.slab_bytes = v_offset + ring_row_bytes * shape.v_head_dim;
  }
  if (!layout.oracle_slots.empty()) layout.selected_blocks = config.selected_blocks();
  return layout;
}

}  // namespace hyserve::model
