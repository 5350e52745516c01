// The floor of the link's bandwidth (transfer.min_link_bytes_per_second): the link to a prefill
// worker is measured when the first ticket names it; hand-offs over a slower link are refused.
#ifndef HYSERVE_SERVICES_DECODE_WORKER_LINK_GUARD_H_
#define HYSERVE_SERVICES_DECODE_WORKER_LINK_GUARD_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kv_transfer/link_probe.h"
#include "kv_transfer/ticket.h"
#include "services/worker/worker_metrics.h"

namespace hyserve::decode_worker {

// A link that was too slow is measured again when a ticket comes after this time.
inline constexpr absl::Duration kRemeasureAfter = absl::Seconds(30);

struct LinkGuardOptions {
  double floor_bytes_per_second = 0;
  std::string worker = "";                   // this worker's name, for the metric
  worker::WorkerMetrics* metrics = nullptr;  // may be null
  kv_transfer::LinkProbeOptions probe = {};
  std::function<absl::Time()> clock = absl::Now;
};

// Thread-safe. Must outlive the probe, and be used only as long as that lives.
class LinkGuard {
 public:
  explicit LinkGuard(LinkGuardOptions options) : options_(std::move(options)) {}

  // OK while the link is unknown (a measurement then begins, no ticket waits for it) or fast
  // enough; UNAVAILABLE "handoff_failed: ..." when it was last measured below the floor.
  absl::Status Check(const kv_transfer::PeerAddress& peer, kv_transfer::LinkProbe* probe);

 private:
  struct Link {
    bool measuring = false;
    double bytes_per_second = 0;  // 0: not known
    absl::Time measured = absl::InfinitePast();
  };

  void OnMeasured(const kv_transfer::PeerAddress& peer,
                  const absl::StatusOr<kv_transfer::LinkReport>& report);

  const LinkGuardOptions options_;
  absl::Mutex mutex_;
  absl::flat_hash_map<uint64_t, Link> links_ ABSL_GUARDED_BY(mutex_);  // by incarnation
};

}  // namespace hyserve::decode_worker

#endif  // HYSERVE_SERVICES_DECODE_WORKER_LINK_GUARD_H_
