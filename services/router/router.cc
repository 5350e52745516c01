#include "services/router/router.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/time/clock.h"
#include "services/common/metrics_server.h"
#include "services/common/server.h"
#include "services/common/timer_queue.h"
#include "services/router/active_request.h"
#include "services/router/random_ids.h"
#include "services/router/registry_service.h"
#include "services/router/router_service.h"
#include "services/router/worker_client.h"

namespace hyserve::router {
namespace {

constexpr absl::Duration kHealthInterval = absl::Milliseconds(100);
// For unary calls that run while the router stops.
constexpr absl::Duration kUnaryGrace = absl::Milliseconds(200);
constexpr char kInferenceService[] = "hyserve.v1.Inference";

RegistryOptions RegistryOptionsOf(const common::Config& config) {
  RegistryOptions options;
  options.model_name = config.model.name;
  options.prefix_index_blocks = config.router.prefix_index_blocks;
  options.pair_quarantine = config.router.pair_quarantine;
  return options;
}

DispatcherOptions DispatcherOptionsOf(const common::Config& config) {
  DispatcherOptions options;
  options.admission = {config.limits.queued_requests, config.limits.queued_tokens};
  options.max_queue_time = config.limits.max_queue_time;
  options.retry_budget_ratio = config.limits.retry_budget_ratio;
  return options;
}

}  // namespace

// Members in order of construction: what is used is made before its users and outlives them. The
// servers are last; the timers end before what their functions touch.
struct Router::Impl {
  Impl(const common::Config& config, std::unique_ptr<TextModel> text_model)
      : text(std::move(text_model)),
        metrics(config.model.name, "router"),
        router_metrics(&metrics),
        registry(RegistryOptionsOf(config)),
        live(config.limits.live_requests),
        dispatcher(DispatcherOptionsOf(config), &registry, &timers, &router_metrics),
        text_pool(std::make_unique<TextPool>(config.router.text_threads, config.router.text_queue)),
        context{config.limits,  config.router.inline_text_bytes,
                RandomWord(),   text.get(),
                text_pool.get(), &registry,
                &dispatcher,    &live,
                &timers,        &router_metrics},
        service(&context),
        registry_service(&registry, &dispatcher, &router_metrics, ConnectWorker, RandomWord()) {}

  void UpdateMetrics() {
    router_metrics.Update(registry.stats(absl::Now()), live.size(), dispatcher.queued_requests(),
                          dispatcher.queued_tokens());
  }
  std::string NotReadyReason() const {
    if (live.draining()) return "draining";
    if (!registry.stats(absl::Now()).can_serve) return "no pair of workers";
    return "";
  }
  // Mirrors readiness into gRPC health.
  void WatchHealth() {
    const bool serving = NotReadyReason().empty();
    if (serving != healthy.exchange(serving)) {
      server->SetServing(serving);
      server->SetServing(kInferenceService, serving);
    }
    timers.ScheduleAfter(kHealthInterval, [this] { WatchHealth(); });
  }

  std::unique_ptr<TextModel> text;
  common::Metrics metrics;
  RouterMetrics router_metrics;
  WorkerRegistry registry;
  LiveRequests live;
  common::TimerQueue timers;
  Dispatcher dispatcher;
  std::unique_ptr<TextPool> text_pool;
  RouterContext context;
  RouterService service;
  RegistryService registry_service;
  std::atomic<bool> healthy{false};
  bool drained = false;
  std::unique_ptr<common::GrpcServer> registry_server;
  std::unique_ptr<common::GrpcServer> server;
  std::unique_ptr<common::MetricsServer> metrics_server;
};

absl::StatusOr<std::unique_ptr<Router>> Router::Start(const common::Config& config,
                                                      std::unique_ptr<TextModel> text) {
  auto impl = std::make_unique<Impl>(config, std::move(text));
  Impl* const raw = impl.get();
  common::ServerOptions internal;
  internal.address = config.router.registry_listen;
  auto registry_server = common::GrpcServer::Start(internal, {&impl->registry_service});
  if (!registry_server.ok()) return registry_server.status();
  impl->registry_server = *std::move(registry_server);

  common::ServerOptions open;
  open.address = config.router.listen;
  open.internal = false;
  open.max_receive_bytes = config.limits.request_bytes;
  open.max_metadata_bytes = config.limits.metadata_bytes;
  open.max_streams_per_connection = config.limits.streams_per_connection;
  auto server = common::GrpcServer::Start(open, {&impl->service});
  if (!server.ok()) return server.status();
  impl->server = *std::move(server);
  impl->server->SetServing(kInferenceService, false);

  if (!config.router.metrics_listen.empty()) {
    auto metrics_server = common::MetricsServer::Start(
        config.router.metrics_listen, &impl->metrics, [raw] { return raw->NotReadyReason(); },
        [raw] { raw->UpdateMetrics(); });
    if (!metrics_server.ok()) return metrics_server.status();
    impl->metrics_server = *std::move(metrics_server);
  }
  std::unique_ptr<Router> router(new Router(std::move(impl)));
  raw->WatchHealth();
  return router;
}

Router::Router(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Router::~Router() { Drain(absl::ZeroDuration(), absl::ZeroDuration()); }

std::string Router::address() const { return impl_->server->address(); }
std::string Router::registry_address() const { return impl_->registry_server->address(); }
int Router::metrics_port() const {
  return impl_->metrics_server == nullptr ? 0 : impl_->metrics_server->port();
}
common::Metrics* Router::metrics() { return &impl_->metrics; }
std::string Router::NotReadyReason() const { return impl_->NotReadyReason(); }
int Router::usable_workers() const {
  int usable = 0;
  for (const auto& worker : impl_->registry.stats(absl::Now()).workers) usable += worker.reported;
  return usable;
}
int64_t Router::open_bookings() const {
  return impl_->registry.stats(absl::Now()).bookings + impl_->dispatcher.queued_requests();
}

void Router::Drain(absl::Duration soft, absl::Duration hard) {
  if (std::exchange(impl_->drained, true)) return;
  const absl::Time end = absl::Now() + hard;
  const auto left = [end] { return std::max(end - absl::Now(), absl::ZeroDuration()); };
  impl_->live.StartDraining();
  if (impl_->server != nullptr) {
    impl_->server->SetServing(false);
    impl_->server->SetServing(kInferenceService, false);
    impl_->live.WaitEmpty(soft);
    impl_->live.ShutdownAll();
    // The last messages of ended requests may still be on their way. Not waited for are idle
    // connections: a client that makes no call looks at its connection every few seconds only.
    impl_->live.WaitDestroyed(left());
    impl_->server->Shutdown(std::min(kUnaryGrace, left()));
    impl_->live.ShutdownAll();  // calls that outlived their requests
    impl_->text_pool = nullptr;  // runs what it still holds
    impl_->live.WaitDestroyed(absl::InfiniteDuration());
  }
  impl_->registry_service.StopListening();
  if (impl_->registry_server != nullptr) impl_->registry_server->Shutdown(absl::ZeroDuration());
  impl_->metrics_server = nullptr;
  impl_->timers.Stop();  // stays in place: what it runs at this moment may schedule again
}

}  // namespace hyserve::router
