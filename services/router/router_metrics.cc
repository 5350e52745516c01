#include "services/router/router_metrics.h"

#include <algorithm>

#include "services/common/status_mapping.h"

namespace hyserve::router {
namespace metric = common::metric;

RouterMetrics::RouterMetrics(common::Metrics* metrics)
    : metrics_(metrics),
      arrived_(&metrics->Counter(metric::kRouterRequests)),
      retries_(&metrics->Counter(metric::kRouterRetries)),
      stale_(&metrics->Counter(metric::kStaleEpoch)),
      worker_crashes_(&metrics->Counter(metric::kWorkerLost)),
      slow_consumers_(&metrics->Counter(metric::kSlowConsumers)),
      prefix_hit_tokens_(&metrics->Counter(metric::kRouterPrefixHitTokens)),
      prompt_tokens_(&metrics->Counter(metric::kPromptTokens)),
      generated_tokens_(&metrics->Counter(metric::kGenerationTokens)),
      first_token_(&metrics->Histogram(metric::kTimeToFirstToken)),
      inter_token_(&metrics->Histogram(metric::kInterTokenLatency)),
      per_token_(&metrics->Histogram(metric::kTimePerOutputToken)),
      total_(&metrics->Histogram(metric::kE2eLatency)),
      queue_(&metrics->Histogram(metric::kRequestQueueTime)),
      prefill_(&metrics->Histogram(metric::kRequestPrefillTime)),
      decode_(&metrics->Histogram(metric::kRequestDecodeTime)),
      inference_(&metrics->Histogram(metric::kRequestInferenceTime)),
      prompt_length_(&metrics->Histogram(metric::kRequestPromptTokens)),
      generated_length_(&metrics->Histogram(metric::kRequestGenerationTokens)),
      router_queue_(&metrics->Histogram(metric::kRouterQueueTime)),
      decision_(&metrics->Histogram(metric::kRouterDecisionTime)) {}

void RouterMetrics::OnRejected(std::string_view reason) {
  const common::MetricLabels labels = {{"reason", std::string(reason)}};
  metrics_->Counter(metric::kRejected, labels).Increment();
  if (reason == "overload" || reason == "no_capacity") {
    metrics_->Counter(metric::kRouterShed, labels).Increment();
  }
}

void RouterMetrics::OnDecision(absl::Duration time, int32_t cached_tokens) {
  decision_->Observe(absl::ToDoubleSeconds(time));
  prefix_hit_tokens_->Increment(cached_tokens);
}

void RouterMetrics::OnRetry(std::string_view phase) {
  retries_->Increment();
  metrics_->Counter(metric::kRetryAttempts, {{"phase", std::string(phase)}}).Increment();
}

void RouterMetrics::OnEnded(const RequestOutcome& outcome) {
  metrics_
      ->Counter(metric::kRequests, {{"code", std::string(common::StatusCodeName(outcome.code))},
                                    {"reason", std::string(outcome.reason)}})
      .Increment();
  total_->Observe(absl::ToDoubleSeconds(outcome.total));
  if (outcome.dispatched) {
    prompt_tokens_->Increment(outcome.prompt_tokens);
    prompt_length_->Observe(outcome.prompt_tokens);
    queue_->Observe(absl::ToDoubleSeconds(outcome.queue));
    router_queue_->Observe(absl::ToDoubleSeconds(outcome.queue));
  }
  if (outcome.has_first_token) {
    generated_tokens_->Increment(outcome.generated_tokens);
    generated_length_->Observe(outcome.generated_tokens);
    first_token_->Observe(absl::ToDoubleSeconds(outcome.first_token));
    prefill_->Observe(absl::ToDoubleSeconds(outcome.prefill));
    decode_->Observe(absl::ToDoubleSeconds(outcome.decode));
    inference_->Observe(absl::ToDoubleSeconds(outcome.prefill + outcome.decode));
    if (outcome.generated_tokens > 1) {
      per_token_->Observe(absl::ToDoubleSeconds(outcome.decode) / (outcome.generated_tokens - 1));
    }
  }
  if (outcome.code == absl::StatusCode::kOk) {
    metrics_
        ->Counter(metric::kRequestSuccess,
                  {{"finished_reason", std::string(outcome.finish_reason)}})
        .Increment();
  }
}

common::LocalHistogram RouterMetrics::NewInterTokenHistogram() const {
  return common::LocalHistogram(inter_token_, metric::kInterTokenLatency);
}

void RouterMetrics::Update(const WorkerRegistry::Stats& stats, int32_t live_requests,
                           int32_t queued_requests, int64_t queued_tokens) {
  absl::MutexLock lock(&mutex_);
  metrics_->Gauge(metric::kNumRequestsWaiting).Set(queued_requests);
  metrics_->Gauge(metric::kNumRequestsRunning).Set(std::max(live_requests - queued_requests, 0));
  metrics_->Gauge(metric::kQueueRequests).Set(queued_requests);
  metrics_->Gauge(metric::kQueueTokens).Set(static_cast<double>(queued_tokens));
  std::set<std::string> workers, pairs;
  int roles[3] = {0, 0, 0};
  for (const WorkerRegistry::WorkerStats& worker : stats.workers) {
    workers.insert(worker.name);
    metrics_->Gauge(metric::kRouterWorkerInflight, {{"worker", worker.name}}).Set(worker.inflight);
    ++roles[std::clamp(static_cast<int>(worker.role) - 1, 0, 2)];
  }
  static constexpr const char* kRoles[] = {"prefill", "decode", "monolithic"};
  for (int i = 0; i < 3; ++i) {
    metrics_->Gauge(metric::kRouterWorkers, {{"worker_role", kRoles[i]}}).Set(roles[i]);
  }
  for (const auto& [name, healthy] : stats.pairs) {
    pairs.insert(name);
    metrics_->Gauge(metric::kPairHealth, {{"pair", name}}).Set(healthy ? 1 : 0);
  }
  for (const std::string& name : worker_series_) {
    if (workers.count(name) == 0)
      metrics_->RemoveGauge(metric::kRouterWorkerInflight, {{"worker", name}});
  }
  for (const std::string& name : pair_series_) {
    if (pairs.count(name) == 0) metrics_->RemoveGauge(metric::kPairHealth, {{"pair", name}});
  }
  worker_series_ = std::move(workers);
  pair_series_ = std::move(pairs);
}

}  // namespace hyserve::router
