// The prefill side of hand-offs: offers cached state as it becomes final, sends it to whoever pulls
// it with the right transfer id, and says when the source's memory may be reused.
//
//   Offer -> LayerReady* (any layer, any time) -> SlabReady -> ... -> OnReleased, exactly once
//
// Pulls may arrive before the offer (held for a bounded time) or at any time after it. Data is sent
// as soon as it is both final and pulled. From SlabReady on a lease runs; every message of the
// receiver renews it. After OnReleased no transfer touches the source's memory: the callback waits
// until every send has completed or its endpoint was closed by force.
//
// Thread-safe; no function blocks. Callbacks come on the transport's progress thread: they must not
// block and must not wait for it (calling Exporter functions is fine).
#ifndef HYSERVE_KV_TRANSFER_EXPORTER_H_
#define HYSERVE_KV_TRANSFER_EXPORTER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kv_transfer/fences.h"
#include "kv_transfer/stats.h"
#include "kv_transfer/ticket.h"
#include "kv_transfer/transport.h"

namespace hyserve::kv_transfer {

struct ExporterOptions {
  absl::Duration lease = absl::Seconds(10);  // silence of the receiver, from SlabReady on
  absl::Duration peer_loss_grace =
      absl::Seconds(2);  // for another pull after the receiver was lost
  absl::Duration quiesce_wait = absl::Seconds(2);       // then endpoints are closed by force
  absl::Duration pending_pull_hold =
      absl::Seconds(10);  // pull without offer; renewed by the receiver
  int32_t max_offers = 4096;
  int32_t max_pending_pulls = 4096;
  size_t max_message_bytes = 0;      // payload of one data message; 0: the transport's preference
  int32_t max_messages_in_flight = 4;  // data messages per transfer
  // CRC32C of every data message, computed where the memory is (by a kernel on a device). Must be
  // the same on both sides. False is a weaker promise: see DESIGN.md.
  bool checksum = true;
  Fences fences;  // for tests only
};

struct OfferSpec {
  TransferId id;
  uint32_t epoch = 0;           // the router's attempt number
  int64_t num_tokens = 0;       // prompt length
  std::vector<int32_t> blocks;  // physical, logical order; KvLayout::NumBlocks(num_tokens) of them
  int32_t slab = -1;            // -1 exactly when the layout has no slab
  absl::Time deadline = absl::InfiniteFuture();  // of the request: then kAborted
};

using ReleasedCallback = std::function<void(const TransferId& id, ReleaseReason reason)>;

class Exporter {
 public:
  // Registers the regions with the transport, which must outlive the exporter. INVALID_ARGUMENT for
  // options or regions; errors of Transport::RegisterMemory.
  static absl::StatusOr<std::unique_ptr<Exporter>> Create(Transport* transport,
                                                          const MemoryRegions& regions,
                                                          const ExporterOptions& options,
                                                          ReleasedCallback on_released);
  // Ends every offer (kAborted), closes endpoints with sends in flight, waits for both. Not to be
  // called on the progress thread.
  virtual ~Exporter() = default;

  // INVALID_ARGUMENT (counts, indices out of range), ALREADY_EXISTS (id in use or used before),
  // RESOURCE_EXHAUSTED (max_offers). After an error nothing is held and OnReleased does not come.
  virtual absl::Status Offer(OfferSpec spec) = 0;
  // Tokens [0, num_tokens) of this layer are final. Whole blocks are announced; the last, partly
  // filled one only when num_tokens is the prompt's length. May not go back; unknown ids are
  // ignored.
  virtual void LayerReady(const TransferId& id, int layer_slot, int64_t num_tokens) = 0;
  // The slab is final. `selection` is KvLayout::selection_bytes() / 4 indices; `trailer` (up to 64
  // KiB, the glue's own: token 1, sampler state) arrives unread at the receiver. Implies that every
  // layer is final. A selection of another size or a longer trailer aborts the offer.
  virtual void SlabReady(const TransferId& id, std::vector<int32_t> selection,
                         std::string trailer) = 0;
  // Gives the offer up: the receiver is told, OnReleased(kAborted) follows. No effect on unknown
  // ids.
  virtual void Abort(const TransferId& id) = 0;

  // Offers not yet released. 0 when idle.
  virtual int64_t open_offers() const = 0;
  virtual const TransferStats& stats() const = 0;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_EXPORTER_H_
