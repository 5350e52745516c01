#include "services/worker/worker_host.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "base/strings.h"
#include "services/common/logging.h"
#include "services/worker/setup.h"

namespace hyserve::worker {
namespace {

constexpr absl::Duration kHealthInterval = absl::Milliseconds(50);
constexpr absl::Duration kReportTimeout = absl::Seconds(1);
constexpr absl::Duration kReleaseTimeout = absl::Seconds(30);
constexpr int32_t kSpareStreams = 64;  // of one connection, beside Prefill and Decode calls

// What others dial: `advertise`, with the port that was bound where it says 0.
std::string Advertised(const std::string& advertise, const common::GrpcServer& server) {
  if (advertise.empty()) return server.address();
  const size_t colon = advertise.rfind(':');
  if (advertise.substr(colon + 1) != "0") return advertise;
  return StrCat(advertise.substr(0, colon), ":", server.port());
}

}  // namespace

WorkerHost::WorkerHost(const WorkerHostOptions& options)
    : options_(options),
      admin_({.invariants = options.invariants,
              .describe = [this] { return Describe(); },
              .probe = options.probe,
              .transport = options.transport == nullptr ? ""
                                                        : std::string(options.transport->name()),
              .worker = options.core->settings().name,
              .metrics = &options.core->metrics()}) {}

absl::StatusOr<std::unique_ptr<WorkerHost>> WorkerHost::Start(const WorkerHostOptions& options) {
  std::unique_ptr<WorkerHost> host(new WorkerHost(options));
  absl::Status status = host->StartServers();
  if (!status.ok()) return status;
  if (options.registers) host->Register();
  absl::MutexLock lock(&host->health_->mutex);
  host->ScheduleHealthCheck();
  return host;
}

absl::Status WorkerHost::StartServers() {
  WorkerCore* const core = options_.core;
  const common::WorkerSettings& settings = core->settings();
  common::ServerOptions server_options;
  server_options.address = settings.listen;
  server_options.max_receive_bytes = MaxRequestBytes(core->engine().max_context_tokens());
  server_options.max_metadata_bytes = core->config().limits.metadata_bytes;
  server_options.max_streams_per_connection =
      settings.max_queue + settings.max_sequences + kSpareStreams;
  auto server = common::GrpcServer::Start(server_options, {options_.service, &admin_});
  if (!server.ok()) return server.status();
  server_ = *std::move(server);
  {
    absl::MutexLock lock(&mutex_);
    advertised_ = Advertised(settings.advertise, *server_);
  }
  if (settings.metrics_listen.empty()) return absl::OkStatus();
  auto metrics_server = common::MetricsServer::Start(
      settings.metrics_listen, core->metrics().registry(), [this] { return NotReadyReason(); },
      [this, core] {
        core->metrics().Refresh(
            core->engine().load(), options_.stats,
            options_.transport == nullptr ? "" : options_.transport->name());
      });
  if (!metrics_server.ok()) return metrics_server.status();
  metrics_server_ = *std::move(metrics_server);
  return absl::OkStatus();
}

void WorkerHost::Register() {
  common::RegistrationOptions registration;
  registration.router_address = options_.core->config().router.registry_listen;
  registration.registration = Describe();
  registration.load = [this] { return Load(); };
  auto client = std::make_shared<common::WorkerRegistrationClient>(std::move(registration));
  absl::MutexLock lock(&mutex_);
  registration_ = std::move(client);
}

std::shared_ptr<common::WorkerRegistrationClient> WorkerHost::registration() const {
  absl::MutexLock lock(&mutex_);
  return registration_;
}

void WorkerHost::StopRegistration() {
  std::shared_ptr<common::WorkerRegistrationClient> client;  // destroyed without the lock
  absl::MutexLock lock(&mutex_);
  client = std::move(registration_);
}

v1::LoadReport WorkerHost::Load() {
  v1::LoadReport report = options_.core->Load(options_.stats);
  absl::MutexLock lock(&mutex_);
  draining_reports_ += report.draining();
  return report;
}

WorkerHost::~WorkerHost() {
  {
    absl::MutexLock lock(&health_->mutex);
    health_->stopping = true;
  }
  StopRegistration();
  metrics_server_ = nullptr;
  if (server_ != nullptr) server_->Shutdown(absl::ZeroDuration());
  // A stream may have ended before what it held was given back.
  options_.core->sequences().WaitForNone(kReleaseTimeout);
}

std::string WorkerHost::address() const { return server_->address(); }

v1::Registration WorkerHost::Describe() const {
  v1::Registration registration = options_.core->Describe(options_.transport);
  absl::MutexLock lock(&mutex_);
  registration.set_address(advertised_);
  return registration;
}

int WorkerHost::metrics_port() const {
  return metrics_server_ == nullptr ? 0 : metrics_server_->port();
}

std::string WorkerHost::NotReadyReason() const {
  if (const absl::Status health = options_.core->engine().health(); !health.ok()) {
    return std::string(health.message());
  }
  if (options_.core->draining()) return "draining";
  if (!options_.registers) return "";
  const auto client = registration();
  return client != nullptr && client->registered() ? "" : "not registered at the router";
}

bool WorkerHost::WaitRegistered(absl::Duration timeout) const {
  const auto client = registration();
  return client == nullptr || client->WaitRegistered(timeout);
}

void WorkerHost::ScheduleHealthCheck() {
  server_->SetServing(NotReadyReason().empty());
  const absl::Status device = options_.core->engine().health();
  if (!device.ok() && !std::exchange(health_->failed, true)) {
    common::LogError("the device is lost; this worker can compute nothing any more",
                     {{"reason", std::string(device.message())}});
    if (const auto client = registration()) client->ReportNow();
    if (health_->on_failure) health_->on_failure();
  }
  options_.core->timers().ScheduleAfter(kHealthInterval, [this, health = health_] {
    absl::MutexLock lock(&health->mutex);
    if (!health->stopping) ScheduleHealthCheck();
  });
}

void WorkerHost::OnDeviceFailure(std::function<void()> call) {
  absl::MutexLock lock(&health_->mutex);
  health_->on_failure = std::move(call);
  if (health_->failed && health_->on_failure) health_->on_failure();
}

void WorkerHost::Drain(absl::Duration soft, absl::Duration hard) {
  WorkerCore* const core = options_.core;
  const absl::Time begin = absl::Now();
  core->SetDraining();
  if (const auto client = registration(); client != nullptr && client->registered()) {
    // Two reports: when the second is made, the first has left. The router then takes the end of
    // the registration for what it is.
    client->ReportNow();
    absl::MutexLock lock(&mutex_);
    const auto reported = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return draining_reports_ >= 2;
    };
    mutex_.AwaitWithTimeout(absl::Condition(&reported), kReportTimeout);
  }
  if (!core->sequences().WaitForNone(soft)) {
    common::LogWarning("cancelling what still runs", {{"sequences", core->sequences().value()}});
  }
  StopRegistration();
  server_->Shutdown(absl::ZeroDuration());
  const absl::Duration left = std::max(absl::ZeroDuration(), begin + hard - absl::Now());
  if (!core->sequences().WaitForNone(left)) {
    common::LogError("some memory was still held at the end of the drain",
                     {{"sequences", core->sequences().value()}});
  }
}

}  // namespace hyserve::worker
