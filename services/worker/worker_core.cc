#include "services/worker/worker_core.h"

#include <utility>

#include "base/strings.h"
#include "services/common/logging.h"
#include "services/worker/setup.h"

namespace hyserve::worker {
namespace {

// Beyond these a stream counts as not read. Larger than the router's own: a router that holds back
// a slow client must be seen by the router first.
constexpr int32_t kBacklogTokens = 4096;
constexpr int64_t kBacklogBytes = int64_t{1} << 20;

}  // namespace

WorkerCore::WorkerCore(const common::Config& config, const common::WorkerSettings& settings)
    : config_(config),
      settings_(settings),
      metrics_(std::make_unique<WorkerMetrics>(config.model.name, settings.role)) {}

absl::StatusOr<std::unique_ptr<WorkerCore>> WorkerCore::Create(
    const common::Config& config, const common::WorkerSettings& settings) {
  return Create(config, settings, [&](runtime::StepObserver observer) {
    return runtime::Engine::Create(ToEngineOptions(config, settings), std::move(observer));
  });
}

absl::StatusOr<std::unique_ptr<WorkerCore>> WorkerCore::Create(
    const common::Config& config, const common::WorkerSettings& settings, MakeEngine make_engine) {
  std::unique_ptr<WorkerCore> core(new WorkerCore(config, settings));
  auto engine = make_engine([metrics = core->metrics_.get()](const runtime::StepStats& step) {
    metrics->OnStep(step);
  });
  if (!engine.ok()) return engine.status();
  core->engine_ = *std::move(engine);
  core->metrics_->SetEngine(*core->engine_);
  common::LogInfo("engine ready", {{"engine", core->engine_->Description()}});
  return core;
}

absl::Status WorkerCore::CheckAcceptsWork() const {
  if (absl::Status status = engine_->health(); !status.ok()) return status;
  if (!draining_) return absl::OkStatus();
  return absl::UnavailableError("draining: this worker is going away");
}

common::StreamWriterOptions WorkerCore::StreamOptions() {
  common::StreamWriterOptions options;
  options.backlog_tokens = kBacklogTokens;
  options.backlog_bytes = kBacklogBytes;
  options.slow_consumer_kill = config_.limits.slow_consumer_kill;
  options.timers = &timers_;
  return options;
}

v1::Registration WorkerCore::Describe(const kv_transfer::Transport* transport) const {
  const kv_cache::KvLayout& layout = engine_->layout();
  v1::Registration registration;
  registration.set_name(settings_.name);
  registration.set_role(ToRole(settings_.role));
  if (transport != nullptr) {
    v1::TransferEndpoint* const endpoint = registration.mutable_transfer();
    endpoint->set_transport_address(transport->local_address());
    endpoint->set_incarnation(transport->incarnation());
    endpoint->set_transport(std::string(transport->name()));
  }
  registration.set_model_name(config_.model.name);
  registration.set_model_digest(layout.model_digest);
  registration.set_layout_fingerprint(layout.Fingerprint());
  registration.set_vocab_size(engine_->config().vocab_size);
  registration.set_max_context_tokens(static_cast<int32_t>(engine_->max_context_tokens()));
  registration.set_kv_bytes_per_block(static_cast<int64_t>(layout.block_bytes()));
  registration.set_slab_bytes(static_cast<int64_t>(layout.slab_bytes));
  registration.set_selection_bytes(static_cast<int64_t>(layout.selection_bytes()));
  registration.set_full_attention_bytes_per_block(
      static_cast<int64_t>(layout.FullAttentionBytes(kv_cache::kTokensPerBlock)));
  const std::vector<int32_t>& eos = engine_->config().eos_token_ids;
  registration.mutable_eos_token_ids()->Add(eos.begin(), eos.end());
  registration.set_protocol_version(kProtocolVersion);
  registration.set_max_sequences(settings_.max_sequences);
  return registration;
}

v1::LoadReport WorkerCore::Load(const kv_transfer::TransferStats* stats) const {
  const runtime::EngineLoad load = engine_->load();
  v1::LoadReport report;
  report.set_step_counter(load.step_counter);
  report.set_waiting_sequences(load.waiting_sequences);
  report.set_waiting_tokens(load.waiting_tokens);
  report.set_running_sequences(load.running_sequences);
  report.set_context_tokens(load.context_tokens);
  report.set_blocks_total(load.blocks_total);
  report.set_blocks_free(load.blocks_free + load.blocks_cached);
  report.set_prefill_tokens_per_second(load.prefill_tokens_per_second);
  report.set_decode_step_ms(load.decode_step_ms);
  report.set_draining(draining_);
  report.set_failure(std::string(engine_->health().message()));
  if (stats == nullptr) return report;
  report.set_blocks_quarantined(stats->quarantined_blocks.value() + stats->draining_blocks.value());
  report.set_link_bytes_per_second(static_cast<double>(stats->link_bytes_per_second.value()));
  return report;
}

v1::GetInvariantsResponse WorkerCore::Invariants(const kv_transfer::TransferStats* stats) const {
  const runtime::EngineLoad load = engine_->load();
  v1::GetInvariantsResponse response;
  response.set_blocks_total(load.blocks_total);
  response.set_blocks_free(load.blocks_free);
  response.set_blocks_cached(load.blocks_cached);
  response.set_blocks_used(load.blocks_used);
  response.set_slabs_total(load.slabs_total);
  response.set_slabs_free(load.slabs_free);
  response.set_slabs_cached(load.slabs_cached);
  response.set_slabs_used(load.slabs_used);
  response.set_live_sequences(sequences_.value());
  response.set_open_streams(streams_.value());
  if (stats != nullptr) {
    response.set_blocks_quarantined(stats->quarantined_blocks.value() +
                                    stats->draining_blocks.value());
  }
  return response;
}

}  // namespace hyserve::worker
