// Checksums of what an exporter of device memory will send, computed as it becomes final: beside
// the prefill, not between a pull and its data. One per block and layer, from which those of
// messages are put together, however they are cut; and one per part of the slab. Progress thread
// only.
#ifndef HYSERVE_KV_TRANSFER_OFFER_CHECKSUMS_H_
#define HYSERVE_KV_TRANSFER_OFFER_CHECKSUMS_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kv_transfer/copy_plan.h"
#include "kv_transfer/crc32c.h"
#include "kv_transfer/device_jobs.h"
#include "kv_transfer/exporter.h"

namespace hyserve::kv_transfer {

class OfferChecksums {
 public:
  using Done = std::function<void(const absl::Status&)>;

  // `max_message_bytes`: as the copy plan cuts the slab.
  OfferChecksums(const MemoryRegions& regions, size_t max_message_bytes, DeviceMemory* device,
                 DeviceJobs* jobs);

  void Offer(const OfferSpec& spec);
  // Tokens [0, num_tokens) of the layer are final. `done` comes when the checksums of all that was
  // final by now are known, in the order of calls, never inside this call; not at all when nothing
  // new is final or the offer is unknown. It may come after Forget().
  void LayerReady(const TransferId& id, int layer_slot, int64_t num_tokens, Done done);
  // Everything is final.
  void SlabReady(const TransferId& id, Done done);
  void Forget(const TransferId& id) { offers_.erase(id); }

  // REQUIRES: the offer is known and `done` came for what the message holds.
  uint32_t Of(const TransferId& id, const CopyMessage& message) const;

 private:
  struct Group {
    int running = 0;
    absl::Status status;
    Done done;
  };
  struct OfferState {
    std::vector<int32_t> blocks;
    int32_t slab = -1;
    int64_t num_tokens = 0;
    std::vector<int64_t> started;    // blocks per layer slot
    std::vector<uint32_t> block_crcs;  // [layer slot][block]
    std::vector<uint32_t> slab_crcs;
    bool slab_started = false;
    std::deque<std::shared_ptr<Group>> groups;
  };
  using StatePtr = std::shared_ptr<OfferState>;

  void StartLayer(const StatePtr& state, int layer_slot, int64_t ready,
                  const std::shared_ptr<Group>& group);
  void Start(const StatePtr& state, const std::vector<MemoryPart>& parts, uint32_t* crcs,
             const std::shared_ptr<Group>& group);
  StatePtr Find(const TransferId& id) const;

  const MemoryRegions& regions_;
  const size_t max_message_bytes_;
  DeviceMemory* const device_;
  DeviceJobs* const jobs_;
  const Crc32cAppend append_block_;
  absl::flat_hash_map<TransferId, StatePtr> offers_;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_OFFER_CHECKSUMS_H_
