#include "kv_transfer/copy_plan.h"

#include <algorithm>
#include <utility>

namespace hyserve::kv_transfer {

CopyPlan::CopyPlan(const Geometry& geometry, BreakMap source_breaks, BreakMap target_breaks)
    : geometry_(geometry),
      source_breaks_(std::move(source_breaks)),
      target_breaks_(std::move(target_breaks)),
      layers_(static_cast<size_t>(geometry.num_layers)) {}

void CopyPlan::LayerReady(int32_t layer_slot, int64_t num_blocks) {
  Layer& layer = layers_[static_cast<size_t>(layer_slot)];
  layer.ready = std::max(layer.ready, std::min(num_blocks, source_breaks_.num_blocks()));
}

std::optional<CopyMessage> CopyPlan::Next() {
  const int64_t total = source_breaks_.num_blocks();
  while (first_open_layer_ < layers_.size() && layers_[first_open_layer_].sent == total) {
    ++first_open_layer_;
  }
  const int64_t most_blocks = std::clamp<int64_t>(
      static_cast<int64_t>(geometry_.max_message_bytes /
                           std::max<size_t>(1, geometry_.slice_bytes)),
      1, geometry_.max_message_blocks);
  for (size_t slot = first_open_layer_; slot < layers_.size(); ++slot) {
    Layer& layer = layers_[slot];
    if (layer.sent == layer.ready) continue;
    const int64_t first = layer.sent;
    const int64_t limit = std::min(layer.ready, first + most_blocks);
    int64_t end = first + 1;
    while (end < limit && !source_breaks_.BreakBefore(end) && !target_breaks_.BreakBefore(end))
      ++end;
    layer.sent = end;
    return CopyMessage{.layer_slot = static_cast<int32_t>(slot),
                       .first_block = first,
                       .num_blocks = end - first,
                       .offset = 0,
                       .length = static_cast<size_t>(end - first) * geometry_.slice_bytes};
  }
  if (slab_ready_ && slab_sent_ < geometry_.slab_bytes) {
    const size_t offset = slab_sent_;
    const size_t length = std::min(geometry_.slab_bytes - offset,
                                   std::max<size_t>(1, geometry_.max_message_bytes));
    slab_sent_ += length;
    return CopyMessage{.layer_slot = -1, .offset = offset, .length = length};
  }
  return std::nullopt;
}

bool CopyPlan::Done() const {
  return slab_ready_ && slab_sent_ == geometry_.slab_bytes &&
         std::all_of(layers_.begin(), layers_.end(), [this](const Layer& layer) {
           return layer.sent == source_breaks_.num_blocks();
         });
}

}  // namespace hyserve::kv_transfer
