#include "services/decode_worker/link_guard.h"

#include "base/strings.h"
#include "services/common/logging.h"
#include "services/common/worker_errors.h"

namespace hyserve::decode_worker {
namespace {

// Peers that were restarted stay known until there are this many.
constexpr size_t kMaxLinks = 1024;

int64_t MegabytesPerSecond(double bytes_per_second) {
  return static_cast<int64_t>(bytes_per_second / 1e6);
}

}  // namespace

absl::Status LinkGuard::Check(const kv_transfer::PeerAddress& peer,
                              kv_transfer::LinkProbe* probe) {
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    if (links_.size() >= kMaxLinks && !links_.contains(peer.incarnation)) links_.clear();
    Link& link = links_[peer.incarnation];
    const bool too_slow =
        link.bytes_per_second > 0 && link.bytes_per_second < options_.floor_bytes_per_second;
    if (too_slow) {
      status = common::HandoffFailedError(
          StrCat("the link to ", peer.transport_address, " carries ",
                 MegabytesPerSecond(link.bytes_per_second), " MB/s, the floor is ",
                 MegabytesPerSecond(options_.floor_bytes_per_second)));
    }
    const bool is_due = link.bytes_per_second == 0 ||
                        (too_slow && options_.clock() >= link.measured + kRemeasureAfter);
    if (link.measuring || !is_due) return status;
    link.measuring = true;
  }
  probe->Measure(peer, options_.probe,
                 [this, peer](const absl::StatusOr<kv_transfer::LinkReport>& report) {
                   OnMeasured(peer, report);
                 });
  return status;
}

void LinkGuard::OnMeasured(const kv_transfer::PeerAddress& peer,
                           const absl::StatusOr<kv_transfer::LinkReport>& report) {
  {
    absl::MutexLock lock(&mutex_);
    Link& link = links_[peer.incarnation];
    link.measuring = false;
    if (report.ok()) {
      link.bytes_per_second = report->bytes_per_second;
      link.measured = options_.clock();
    }
  }
  if (!report.ok()) {  // the next ticket tries again
    common::LogDebug("link not measured", {{"peer", peer.transport_address},
                                           {"reason", std::string(report.status().message())}});
    return;
  }
  if (options_.metrics != nullptr) {
    options_.metrics->OnLinkMeasured(StrCat("probe->", options_.worker), report->bytes_per_second);
  }
  const common::LogFields fields = {
      {"peer", peer.transport_address},
      {"megabytes_per_second", MegabytesPerSecond(report->bytes_per_second)},
      {"floor", MegabytesPerSecond(options_.floor_bytes_per_second)},
      {"transports", report->connection}};
  if (report->bytes_per_second < options_.floor_bytes_per_second) {
    common::LogError("link below its floor: no hand-offs over it", fields);
  } else {
    common::LogInfo("link measured", fields);
  }
}

}  // namespace hyserve::decode_worker
