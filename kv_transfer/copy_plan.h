// Cuts a transfer into messages: each one contiguous in the memory of both sides, neighbours
// merged, none larger than a limit. Pure; no addresses, no clock.
#ifndef HYSERVE_KV_TRANSFER_COPY_PLAN_H_
#define HYSERVE_KV_TRANSFER_COPY_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "kv_transfer/handoff_message.h"

namespace hyserve::kv_transfer {

// One data message. layer_slot < 0: bytes [offset, offset + length) of the slab; else blocks
// [first_block, first_block + num_blocks), logical, of one layer slot.
struct CopyMessage {
  int32_t layer_slot = -1;
  int64_t first_block = 0;
  int64_t num_blocks = 0;
  size_t offset = 0;
  size_t length = 0;
  bool operator==(const CopyMessage&) const = default;
};

// Hands out the messages of one transfer to one receiver in the order in which they become ready:
// lowest layer first, then the slab.
class CopyPlan {
 public:
  // Sizes in bytes. A single block larger than max_message_bytes travels as one message all the
  // same.
  struct Geometry {
    int32_t num_layers = 0;
    size_t slice_bytes = 0;
    size_t slab_bytes = 0;
    size_t max_message_bytes = 0;
    int64_t max_message_blocks = kMaxBlocksPerTransfer;
  };
  // `source_breaks`, `target_breaks`: where each side's memory is not contiguous; equally long.
  CopyPlan(const Geometry& geometry, BreakMap source_breaks, BreakMap target_breaks);

  // Blocks [0, num_blocks) of the layer may be sent; values below an earlier one change nothing.
  void LayerReady(int32_t layer_slot, int64_t num_blocks);
  void SlabReady() { slab_ready_ = true; }

  // The next message that is ready and not yet handed out.
  std::optional<CopyMessage> Next();
  // Every message has been handed out.
  bool Done() const;

 private:
  struct Layer {
    int64_t ready = 0;
    int64_t sent = 0;
  };

  Geometry geometry_;
  BreakMap source_breaks_;
  BreakMap target_breaks_;
  std::vector<Layer> layers_;
  size_t first_open_layer_ = 0;  // all layers before it are sent whole
  bool slab_ready_ = false;
  size_t slab_sent_ = 0;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_COPY_PLAN_H_
