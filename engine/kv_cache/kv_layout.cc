#include "engine/kv_cache/kv_layout.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hyserve::kv_cache {

std::string KvLayout::Fingerprint() const {
  const auto append_ring = [](std::string* out, const RingLayout& ring) {
    absl::StrAppend(out, ring.layer_index, ":", ring.num_kv_heads, "x", ring.head_dim, "/",
                    ring.v_head_dim, "@", ring.k_offset_bytes, "+", ring.v_offset_bytes);
  };
  return absl::StrCat("kv1 ", std::string(tensor::Name(dtype)), " block=", kTokensPerBlock,
                      " full=", absl::StrJoin(full_layers, ","), " heads=", num_kv_heads, "x",
                      head_dim, "/", v_head_dim, " window=", window,
                      " rings=", absl::StrJoin(rings, ",", append_ring), " slab=", slab_bytes,
                      " oracles=", absl::StrJoin(oracle_slots, ","), " selected=", selected_blocks,
                      " layers=", num_layers, " model=", model_digest);
}

}  // namespace hyserve::kv_cache
