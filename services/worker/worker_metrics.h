// The metrics of a worker: what is observed as it happens, and what is read from the engine and the
// transfer when somebody scrapes.
#ifndef HYSERVE_SERVICES_WORKER_WORKER_METRICS_H_
#define HYSERVE_SERVICES_WORKER_WORKER_METRICS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/kv_cache/kv_layout.h"
#include "engine/runtime/engine.h"
#include "kv_transfer/importer.h"
#include "kv_transfer/stats.h"
#include "services/common/metrics.h"

namespace hyserve::worker {

// How one request ended at this worker. Times are meaningful where the flag beside them says so.
struct RequestOutcome {
  absl::Status status;
  std::string_view finished_reason;  // "stop", "length"; "" unless it ended well
  int32_t prompt_tokens = 0;
  int32_t generated_tokens = 0;
  bool started = false;  // memory was there, computing could begin
  absl::Duration queue;
  bool has_first_token = false;      // computed here
  absl::Duration first_token;        // from arrival
  absl::Duration prefill;            // start to first token
  absl::Duration decode;             // first to last token of this worker
  absl::Duration inference;          // start to last token
  absl::Duration total;
};

class WorkerMetrics {
 public:
  // `role`: prefill, decode or monolithic.
  WorkerMetrics(const std::string& model_name, const std::string& role);

  common::Metrics* registry() { return &metrics_; }
  // Once the engine is there; before anything below.
  void SetEngine(const runtime::Engine& engine);

  // ---- as it happens
  void OnStep(const runtime::StepStats& step);  // engine thread, once per step
  void OnRequestEnded(const RequestOutcome& outcome);
  void OnRejected(std::string_view reason);
  void OnSlowConsumer();
  void OnStaleAttempt();
  // Decode: a hand-off has arrived.
  void OnPulled(int32_t prompt_tokens, std::string_view transport,
                const kv_transfer::PullResult& result, int32_t recomputed_tokens);
  // Prefill: a hand-off was committed `push` after the prompt was computed.
  void OnPushed(int32_t prompt_tokens, absl::Duration push);
  void OnHandoffPhase(std::string_view phase, absl::Duration time);
  void OnLinkMeasured(std::string_view pair, double bytes_per_second);
  // For one stream; its Flush() gives the observations here. Roles that generate only.
  std::unique_ptr<common::LocalHistogram> NewInterTokenHistogram();

  // ---- when somebody scrapes
  // `stats` of the exporter or importer, null for a worker without transfers; `transport` as
  // Transport::name().
  void Refresh(const runtime::EngineLoad& load, const kv_transfer::TransferStats* stats,
               std::string_view transport);

 private:
  using Labels = common::MetricLabels;
  bool Has(uint8_t roles) const { return (role_bit_ & roles) != 0; }
  void Set(const common::MetricSpec& spec, double value, const Labels& labels = {});
  void Add(const common::MetricSpec& spec, double value, const Labels& labels = {});
  void Observe(const common::MetricSpec& spec, double value, const Labels& labels = {});
  void Observe(const common::MetricSpec& spec, absl::Duration time) {
    Observe(spec, absl::ToDoubleSeconds(time));
  }
  // Raises a counter to a total that is kept elsewhere.
  void RaiseTo(const common::MetricSpec& spec, int64_t total, const Labels& labels = {})
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RefreshTransfer(const kv_transfer::TransferStats& stats, std::string_view transport)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const uint8_t role_bit_;
  common::Metrics metrics_;
  kv_cache::KvLayout layout_;

  absl::Mutex mutex_;
  std::map<std::pair<std::string_view, Labels>, int64_t> totals_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hyserve::worker

#endif  // HYSERVE_SERVICES_WORKER_WORKER_METRICS_H_
