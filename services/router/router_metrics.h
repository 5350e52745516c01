// The router's metrics, by event. Thread-safe; nothing here is called per token.
#ifndef HYSERVE_SERVICES_ROUTER_ROUTER_METRICS_H_
#define HYSERVE_SERVICES_ROUTER_ROUTER_METRICS_H_

#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/common/metrics.h"
#include "services/router/worker_registry.h"

namespace hyserve::router {

// How a request ended.
struct RequestOutcome {
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string_view reason = "";         // label value, one of a fixed set
  std::string_view finish_reason = "";  // "stop" or "length" when code is OK
  int32_t prompt_tokens = 0;
  int32_t generated_tokens = 0;
  bool dispatched = false;
  bool has_first_token = false;
  absl::Duration queue, first_token, prefill, decode, total;
};

class RouterMetrics {
 public:
  // `metrics` (of role "router") must outlive this.
  explicit RouterMetrics(common::Metrics* metrics);

  void OnArrived() { arrived_->Increment(); }
  // Refused before any work: `reason` is one of invalid, overload, no_capacity, duplicate,
  // draining.
  void OnRejected(std::string_view reason);
  void OnDecision(absl::Duration time, int32_t cached_tokens);
  // `phase` of the attempt that failed: prefill, handoff, decode.
  void OnRetry(std::string_view phase);
  void OnStaleEvent() { stale_->Increment(); }
  void OnWorkerCrash() { worker_crashes_->Increment(); }
  void OnSlowConsumer() { slow_consumers_->Increment(); }
  void OnEnded(const RequestOutcome& outcome);
  common::LocalHistogram NewInterTokenHistogram() const;

  // Brings gauges up to date; before a scrape.
  void Update(const WorkerRegistry::Stats& stats, int32_t live_requests, int32_t queued_requests,
              int64_t queued_tokens);

 private:
  common::Metrics* const metrics_;
  prometheus::Counter *arrived_, *retries_, *stale_, *worker_crashes_, *slow_consumers_,
      *prefix_hit_tokens_, *prompt_tokens_, *generated_tokens_;
  prometheus::Histogram *first_token_, *inter_token_, *per_token_, *total_, *queue_, *prefill_,
      *decode_, *inference_, *prompt_length_, *generated_length_, *router_queue_, *decision_;
  absl::Mutex mutex_;
  std::set<std::string> worker_series_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> pair_series_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_ROUTER_METRICS_H_
