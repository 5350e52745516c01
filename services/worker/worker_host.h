// The life of a worker's process around its services: gRPC server, health, metrics page,
// registration at the router, drain.
#ifndef HYSERVE_SERVICES_WORKER_WORKER_HOST_H_
#define HYSERVE_SERVICES_WORKER_WORKER_HOST_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kv_transfer/link_probe.h"
#include "kv_transfer/stats.h"
#include "kv_transfer/transport.h"
#include "services/common/metrics_server.h"
#include "services/common/server.h"
#include "services/common/worker_registration_client.h"
#include "services/worker/admin_service.h"
#include "services/worker/worker_core.h"

namespace hyserve::worker {

struct WorkerHostOptions {
  WorkerCore* core = nullptr;                         // all must outlive the host
  const kv_transfer::Transport* transport = nullptr;  // null: a worker without transfers
  kv_transfer::LinkProbe* probe = nullptr;            // likewise
  const kv_transfer::TransferStats* stats = nullptr;  // likewise
  std::function<v1::GetInvariantsResponse()> invariants;
  grpc::Service* service = nullptr;  // beside WorkerAdmin, which the host adds
  bool registers = true;             // at the router of the configuration
};

class WorkerHost {
 public:
  // Serves, then registers. UNAVAILABLE names the address that could not be bound.
  static absl::StatusOr<std::unique_ptr<WorkerHost>> Start(const WorkerHostOptions& options);
  // Ends running calls at once.
  ~WorkerHost();

  std::string address() const;         // of the gRPC server
  v1::Registration Describe() const;   // what the worker registers with; no address before Start()
  int metrics_port() const;            // 0: none
  // Empty while the worker can take work, else why not.
  std::string NotReadyReason() const;
  bool WaitRegistered(absl::Duration timeout) const;
  // `call` is made once the device is lost, at once if it is; on a thread of the timers. Health is
  // NOT_SERVING by then and the router has been told or will be with the next report.
  void OnDeviceFailure(std::function<void()> call);

  // No new work; running calls may go on for `soft`, then they are cancelled and have until `hard`
  // to give back what they hold. Blocks.
  void Drain(absl::Duration soft, absl::Duration hard);

 private:
  explicit WorkerHost(const WorkerHostOptions& options);

  // Outlives the host in timers that are running when it goes.
  struct HealthCheck {
    absl::Mutex mutex;
    bool stopping ABSL_GUARDED_BY(mutex) = false;
    bool failed ABSL_GUARDED_BY(mutex) = false;
    std::function<void()> on_failure ABSL_GUARDED_BY(mutex);
  };

  absl::Status StartServers();
  void Register();
  v1::LoadReport Load();
  // Health follows readiness.
  void ScheduleHealthCheck() ABSL_EXCLUSIVE_LOCKS_REQUIRED(health_->mutex);
  std::shared_ptr<common::WorkerRegistrationClient> registration() const;
  void StopRegistration();

  const WorkerHostOptions options_;
  worker::AdminService admin_;
  std::unique_ptr<common::GrpcServer> server_;
  std::unique_ptr<common::MetricsServer> metrics_server_;
  const std::shared_ptr<HealthCheck> health_ = std::make_shared<HealthCheck>();

  mutable absl::Mutex mutex_;
  std::string advertised_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<common::WorkerRegistrationClient> registration_ ABSL_GUARDED_BY(mutex_);
  int draining_reports_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace hyserve::worker

#endif  // HYSERVE_SERVICES_WORKER_WORKER_HOST_H_
