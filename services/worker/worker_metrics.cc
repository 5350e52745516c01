#include "services/worker/worker_metrics.h"

#include <algorithm>
#include <cctype>
#include <utility>

#include "base/strings.h"
#include "kv_transfer/data_path.h"
#include "services/common/metric_table.h"
#include "services/common/status_mapping.h"

namespace hyserve::worker {
namespace {

namespace metric = common::metric;

uint8_t RoleBit(std::string_view role) {
  if (role == "prefill") return common::kPrefillRole;
  if (role == "decode") return common::kDecodeRole;
  return common::kMonolithicRole;
}

// The label `reason` of a request's end: the cause that starts the message ("stale_attempt: ..."),
// else the code in words. Bounded: only causes that this process makes.
std::string ReasonOf(const absl::Status& status) {
  if (status.ok()) return "end";
  static constexpr std::string_view kCauses[] = {
      "stale_attempt", "stale_incarnation", "handoff_failed", "layout_mismatch",
      "transport_mismatch", "slow_consumer", "draining", "device_failed"};
  const std::string_view message = ToStd(status.message());
  for (const std::string_view cause : kCauses) {
    if (message.substr(0, cause.size()) == cause) return std::string(cause);
  }
  std::string name(common::StatusCodeName(status.code()));
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return name;
}

}  // namespace

WorkerMetrics::WorkerMetrics(const std::string& model_name, const std::string& role)
    : role_bit_(RoleBit(role)), metrics_(model_name, role) {
  Set(metric::kBuildInfo, 1, {{"version", std::string(common::kHyServeVersion)}});
}

void WorkerMetrics::Set(const common::MetricSpec& spec, double value, const Labels& labels) {
  if (Has(spec.roles)) metrics_.Gauge(spec, labels).Set(value);
}

void WorkerMetrics::Add(const common::MetricSpec& spec, double value, const Labels& labels) {
  if (Has(spec.roles)) metrics_.Counter(spec, labels).Increment(value);
}

void WorkerMetrics::Observe(const common::MetricSpec& spec, double value, const Labels& labels) {
  if (Has(spec.roles)) metrics_.Histogram(spec, labels).Observe(value);
}

void WorkerMetrics::RaiseTo(const common::MetricSpec& spec, int64_t total, const Labels& labels) {
  int64_t& known = totals_[{spec.name, labels}];
  if (total > known) Add(spec, static_cast<double>(total - known), labels);
  known = std::max(known, total);
}

void WorkerMetrics::SetEngine(const runtime::Engine& engine) {
  layout_ = engine.layout();
  Set(metric::kCacheConfigInfo, 1,
      {{"block_size", StrCat(kv_cache::kTokensPerBlock)},
       {"num_gpu_blocks", StrCat(engine.kv_pool().num_blocks())}});
  Set(metric::kModelInfo, 1, {{"digest", layout_.model_digest}, {"layout", layout_.Fingerprint()}});
  Set(metric::kKvBlocksCapacity, static_cast<double>(engine.kv_pool().num_blocks()));
}

void WorkerMetrics::OnStep(const runtime::StepStats& step) {
  Observe(metric::kEngineStepTime, step.seconds);
  Observe(metric::kIterationTokens, step.prefill_tokens + step.decode_tokens);
  Add(metric::kPrefixCacheQueries, static_cast<double>(step.prefix_query_tokens));
  Add(metric::kPrefixCacheHits, static_cast<double>(step.prefix_hit_tokens));
  Add(metric::kNumPreemptions, step.preemptions);
}

void WorkerMetrics::OnRequestEnded(const RequestOutcome& outcome) {
  const std::string reason =
      outcome.status.ok() ? std::string(outcome.finished_reason.empty() ? "handed_over"
                                                                        : outcome.finished_reason)
                          : ReasonOf(outcome.status);
  Add(metric::kRequests, 1,
      {{"code", std::string(common::StatusCodeName(outcome.status.code()))}, {"reason", reason}});
  Observe(metric::kE2eLatency, outcome.total);
  if (outcome.status.ok()) Add(metric::kRequestSuccess, 1, {{"finished_reason", reason}});
  if (!outcome.started) return;
  Add(metric::kPromptTokens, outcome.prompt_tokens);
  Add(metric::kGenerationTokens, outcome.generated_tokens);
  Observe(metric::kRequestQueueTime, outcome.queue);
  Observe(metric::kRequestPromptTokens, outcome.prompt_tokens);
  Observe(metric::kRequestGenerationTokens, outcome.generated_tokens);
  if (outcome.generated_tokens > 0) Observe(metric::kRequestInferenceTime, outcome.inference);
  if (outcome.has_first_token) {
    Observe(metric::kTimeToFirstToken, outcome.first_token);
    Observe(metric::kRequestPrefillTime, outcome.prefill);
  }
  if (outcome.generated_tokens > 1) {
    Observe(metric::kRequestDecodeTime, outcome.decode);
    Observe(metric::kTimePerOutputToken,
            absl::ToDoubleSeconds(outcome.decode) / (outcome.generated_tokens - 1));
  }
}

void WorkerMetrics::OnRejected(std::string_view reason) {
  Add(metric::kRejected, 1, {{"reason", std::string(reason)}});
}

void WorkerMetrics::OnSlowConsumer() { Add(metric::kSlowConsumers, 1); }
void WorkerMetrics::OnStaleAttempt() { Add(metric::kStaleEpoch, 1); }

void WorkerMetrics::OnPulled(int32_t prompt_tokens, std::string_view transport,
                             const kv_transfer::PullResult& result, int32_t recomputed_tokens) {
  Observe(metric::kKvTransferTime, result.transfer_seconds,
          {{"direction", "receive"}, {"transport", std::string(transport)}, {"kind", "bulk"}});
  Observe(metric::kKvTransferExposed, result.exposed_seconds);
  Observe(metric::kHandoffPhase, result.seconds, {{"phase", "pull"}});
  Add(metric::kKvFullAttentionBytes,
      static_cast<double>(layout_.FullAttentionBytes(prompt_tokens)));
  Add(metric::kRecomputedTokens, recomputed_tokens, {{"reason", "handoff"}});
}

void WorkerMetrics::OnPushed(int32_t prompt_tokens, absl::Duration push) {
  OnHandoffPhase("push", push);
  Add(metric::kKvFullAttentionBytes,
      static_cast<double>(layout_.FullAttentionBytes(prompt_tokens)));
}

void WorkerMetrics::OnHandoffPhase(std::string_view phase, absl::Duration time) {
  Observe(metric::kHandoffPhase, absl::ToDoubleSeconds(time), {{"phase", std::string(phase)}});
}

void WorkerMetrics::OnLinkMeasured(std::string_view pair, double bytes_per_second) {
  Set(metric::kKvLinkBytesPerSecond, bytes_per_second, {{"pair", std::string(pair)}});
}

std::unique_ptr<common::LocalHistogram> WorkerMetrics::NewInterTokenHistogram() {
  return std::make_unique<common::LocalHistogram>(&metrics_.Histogram(metric::kInterTokenLatency),
                                                  metric::kInterTokenLatency);
}

void WorkerMetrics::Refresh(const runtime::EngineLoad& load,
                            const kv_transfer::TransferStats* stats, std::string_view transport) {
  absl::MutexLock lock(&mutex_);
  Set(metric::kNumRequestsRunning, load.running_sequences);
  Set(metric::kNumRequestsWaiting, load.waiting_sequences);
  Set(metric::kQueueRequests, load.waiting_sequences);
  Set(metric::kQueueTokens, static_cast<double>(load.waiting_tokens));
  const double total = static_cast<double>(std::max<int64_t>(load.blocks_total, 1));
  Set(metric::kKvCacheUsage, static_cast<double>(load.blocks_used) / total);
  const int64_t held = stats == nullptr
                           ? 0
                           : stats->quarantined_blocks.value() + stats->draining_blocks.value();
  // Blocks that a transfer may still touch belong to their sequence: used, for the engine.
  const int64_t quarantined = std::min(held, load.blocks_used);
  Set(metric::kKvBlocks, static_cast<double>(load.blocks_free), {{"state", "free"}});
  Set(metric::kKvBlocks, static_cast<double>(load.blocks_cached), {{"state", "cached"}});
  Set(metric::kKvBlocks, static_cast<double>(load.blocks_used - quarantined), {{"state", "used"}});
  Set(metric::kKvBlocks, static_cast<double>(quarantined), {{"state", "quarantined"}});
  if (load.last_step != absl::InfinitePast()) {
    Set(metric::kEngineLastStep, absl::ToDoubleSeconds(load.last_step - absl::UnixEpoch()));
  }
  if (stats != nullptr) RefreshTransfer(*stats, transport);
}

void WorkerMetrics::RefreshTransfer(const kv_transfer::TransferStats& stats,
                                    std::string_view transport) {
  const std::string direction = Has(common::kPrefillRole) ? "send" : "receive";
  const auto bytes = [&](std::string_view kind) -> Labels {
    return {{"direction", direction}, {"transport", std::string(transport)},
            {"kind", std::string(kind)}};
  };
  RaiseTo(metric::kKvTransferBytes, stats.block_bytes.value(), bytes("bulk"));
  RaiseTo(metric::kKvTransferBytes, stats.slab_bytes.value(), bytes("swa"));
  RaiseTo(metric::kKvTransferBytes, stats.selection_bytes.value(), bytes("selection"));
  for (const kv_transfer::DataPath path :
       {kv_transfer::DataPath::kHost, kv_transfer::DataPath::kDirect,
        kv_transfer::DataPath::kStaged}) {
    if (stats.paths == nullptr) break;
    const int i = static_cast<int>(path);
    const std::string name(kv_transfer::Name(path));
    RaiseTo(metric::kKvPathBytes, stats.paths->sent_bytes[i].value(),
            {{"direction", "send"}, {"path", name}});
    RaiseTo(metric::kKvPathBytes, stats.paths->received_bytes[i].value(),
            {{"direction", "receive"}, {"path", name}});
  }
  RaiseTo(metric::kKvLeaseExpired, stats.lease_expired.value());
  RaiseTo(metric::kKvForcedCloses, stats.forced_closes.value());
  RaiseTo(metric::kKvIntegrityFailures, stats.integrity_failures.value());
  const std::pair<std::string_view, const kv_transfer::Counter*> failures[] = {
      {"aborted", &stats.aborted},       {"lease_expired", &stats.lease_expired},
      {"peer_lost", &stats.peer_lost},   {"deadline", &stats.deadline_exceeded},
      {"integrity", &stats.integrity_failures}, {"refused", &stats.refused}};
  for (const auto& [reason, counter] : failures) {
    RaiseTo(metric::kKvTransferFailures, counter->value(), {{"reason", std::string(reason)}});
  }
  Set(metric::kQuarantinedPages, static_cast<double>(stats.quarantined_blocks.value() +
                                                     stats.draining_blocks.value()));
  Set(metric::kKvLinkBytesPerSecond, static_cast<double>(stats.link_bytes_per_second.value()),
      {{"pair", "all"}});
}

}  // namespace hyserve::worker
