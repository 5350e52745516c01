// The decode side of hand-offs: pulls offered state into blocks and a slab of this process,
// verifies it, commits.
//
// A pull ends exactly once, with its callback, and only when nothing can be written into its blocks
// any more: every posted receive has completed, or its endpoint was closed by force and the close
// has completed. Never by a timeout alone: until then the memory is quarantined (counted in the
// stats). Status OK means that every block and the slab arrived exactly once with the expected
// length and checksum, under this transfer's id, epoch, incarnations and layout.
//
// Thread-safe; no function blocks. Callbacks come on the transport's progress thread: they must not
// block and must not wait for it (calling Importer functions is fine).
#ifndef HYSERVE_KV_TRANSFER_IMPORTER_H_
#define HYSERVE_KV_TRANSFER_IMPORTER_H_

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

struct ImporterOptions {
  absl::Duration renew_interval = absl::Seconds(2);
  // No byte for so long although something was announced as final: the link is stuck. Waiting for a
  // prefill that still computes is not counted as long as the exporter answers renewals.
  absl::Duration progress_timeout = absl::Seconds(2);
  // The exporter answers no renewal for so long: it hangs.
  absl::Duration silence_timeout = absl::Seconds(6);
  // After everything was announced: fixed part plus bytes at this rate.
  absl::Duration transfer_deadline = absl::Seconds(2);
  double min_bytes_per_second = 100e6;
  absl::Duration quiesce_wait =
      absl::Seconds(2);  // after an abort; then the endpoint is closed by force
  absl::Duration commit_retry = absl::Milliseconds(500);
  absl::Duration commit_give_up = absl::Seconds(10);  // the exporter's lease
  int32_t max_pulls = 4096;
  int32_t lanes_per_peer =
      2;  // connections to one exporter; closing one by force spares the others
  bool checksum = true;        // as the exporter's
  Fences fences;               // for tests only
};

struct PullSpec {
  TransferId id;
  uint32_t epoch = 0;
  PeerAddress source;
  int64_t num_tokens = 0;       // prompt length
  std::vector<int32_t> blocks;  // physical, logical order; KvLayout::NumBlocks(num_tokens) of them
  int32_t slab = -1;            // -1 exactly when the layout has no slab
  absl::Time deadline = absl::InfiniteFuture();  // of the request
};

struct PullResult {
  // OK; UNAVAILABLE (peer lost, unreachable, or does not know the transfer: try another worker),
  // ABORTED (the exporter gave it up), DEADLINE_EXCEEDED (deadline, stuck or silent link),
  // DATA_LOSS (checksum or length), FAILED_PRECONDITION (layout, epoch or incarnation), CANCELLED
  // (Abort()).
  absl::Status status;
  std::vector<int32_t> selection;  // as given to Exporter::SlabReady
  std::string trailer;
  PayloadBytes payload;            // received and verified
  double seconds = 0;              // from Pull()
  double transfer_seconds = 0;     // from the first announced byte to the last
  double exposed_seconds = 0;      // from the exporter's last word (all is final) to the end
};
using PullCallback = std::function<void(const TransferId& id, PullResult result)>;

class Importer {
 public:
  // Registers the regions with the transport, which must outlive the importer. INVALID_ARGUMENT for
  // options or regions; errors of Transport::RegisterMemory.
  static absl::StatusOr<std::unique_ptr<Importer>> Create(Transport* transport,
                                                          const MemoryRegions& regions,
                                                          const ImporterOptions& options);
  // Ends every pull (CANCELLED), closes its endpoints, waits for both. Not to be called on the
  // progress thread.
  virtual ~Importer() = default;

  // INVALID_ARGUMENT (counts, indices out of range, address), ALREADY_EXISTS (id being pulled),
  // RESOURCE_EXHAUSTED (max_pulls). After an error the callback does not come.
  virtual absl::Status Pull(PullSpec spec, PullCallback callback) = 0;
  // The callback comes with CANCELLED once quiesced, unless the pull ends by itself first. No
  // effect on unknown ids.
  virtual void Abort(const TransferId& id) = 0;
  // Connects to a peer ahead of the first pull; failures are only counted.
  virtual void WarmUp(const PeerAddress& peer) = 0;

  // Pulls whose callback has not been called. 0 when idle.
  virtual int64_t open_pulls() const = 0;
  virtual const TransferStats& stats() const = 0;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_IMPORTER_H_
