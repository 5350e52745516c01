// The one description of cached state that the engine and kv_transfer share.
//
// A sequence has two KV objects:
//   blocks  tokens_per_block (64) tokens of the full layers' K and V. Memory is layer-major: every
//           full layer has one region of num_blocks slices; slice b of a layer is
//           [K: kv_heads x 64 x head_dim][V: kv_heads x 64 x v_head_dim], kv-head-major. So
//           neighbouring blocks of one layer are contiguous and travel as one message, and a
//           tensor-parallel rank's heads are one range per slice and tensor.
//   slab    the rings of every window layer (sparse and sliding), one contiguous region per
//           sequence: for each window layer in layer order
//           [K: ring_kv_heads x window x ring_head_dim][V: ring_kv_heads x window x ring_v_dim];
//           ring slot of position p is p mod window.
// Plain data: copy freely.
#ifndef HYSERVE_ENGINE_KV_CACHE_KV_LAYOUT_H_
#define HYSERVE_ENGINE_KV_CACHE_KV_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/tensor/tensor.h"

namespace hyserve::kv_cache {

inline constexpr int kTokensPerBlock = 64;

// Window ring of one layer. Offsets and sizes in bytes within a slab.
struct RingLayout {
  int layer_index = 0;  // index in the net
  int num_kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
  size_t k_offset_bytes = 0;
  size_t v_offset_bytes = 0;
  bool operator==(const RingLayout&) const = default;
};

struct KvLayout {
  tensor::DType dtype = tensor::DType::kBF16;
  std::vector<int> full_layers;  // indices in the net, ascending; position in here = layer slot
  int num_kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
  int window = 0;                 // tokens per ring, 0 when there are no window layers
  std::vector<RingLayout> rings;  // window layers, ascending
  size_t slab_bytes = 0;          // 0 when there are no window layers
  std::vector<int> oracle_slots;  // layer slots whose selection travels with the hand-off
  int selected_blocks = 0;        // per row and KV head
  int num_layers = 0;             // of the whole net, for "what full attention would ship"
  std::string model_digest;       // of the checkpoint's config and weights

  bool operator==(const KvLayout&) const = default;

  size_t k_slice_bytes() const {
    return tensor::SizeOf(dtype) * num_kv_heads * kTokensPerBlock * head_dim;
  }
  size_t v_slice_bytes() const {
    return tensor::SizeOf(dtype) * num_kv_heads * kTokensPerBlock * v_head_dim;
  }
  size_t slice_bytes() const { return k_slice_bytes() + v_slice_bytes(); }
  size_t block_bytes() const { return slice_bytes() * full_layers.size(); }
  // Selection indices of the last prompt row, int32.
  size_t selection_bytes() const {
    return oracle_slots.size() * num_kv_heads * selected_blocks * sizeof(int32_t);
  }
  static constexpr int64_t NumBlocks(int64_t num_tokens) {
    return (num_tokens + kTokensPerBlock - 1) / kTokensPerBlock;
  }
  // What a hand-off of num_tokens puts on the wire: whole blocks, slab, indices.
  size_t HandoffBytes(int64_t num_tokens) const {
    return NumBlocks(num_tokens) * block_bytes() + slab_bytes + selection_bytes();
  }
  // The same net with every layer full: the pages of num_layers layers, no slab, no indices.
  size_t FullAttentionBytes(int64_t num_tokens) const {
    return NumBlocks(num_tokens) * slice_bytes() * num_layers;
  }
  // Stable text that two workers compare at registration; equal iff hand-offs between them are
  // possible. Implemented in kv_layout.cc.
  std::string Fingerprint() const;
};

}  // namespace hyserve::kv_cache

#endif  // HYSERVE_ENGINE_KV_CACHE_KV_LAYOUT_H_
