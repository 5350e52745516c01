// WorkerRegistry over gRPC: one stream per worker; its end is the worker's end.
#ifndef HYSERVE_SERVICES_ROUTER_REGISTRY_SERVICE_H_
#define HYSERVE_SERVICES_ROUTER_REGISTRY_SERVICE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "hyserve/v1/worker.grpc.pb.h"
#include "services/router/dispatcher.h"
#include "services/router/router_metrics.h"
#include "services/router/worker_link.h"
#include "services/router/worker_registry.h"

namespace hyserve::router {

class RegistryService final : public v1::WorkerRegistry::CallbackService {
 public:
  using Connect = std::function<std::shared_ptr<WorkerLink>(const std::string& address)>;

  // All must outlive the service.
  RegistryService(WorkerRegistry* registry, Dispatcher* dispatcher, RouterMetrics* metrics,
                  Connect connect, uint64_t incarnation);

  grpc::ServerBidiReactor<v1::WorkerReport, v1::RegistryMessage>* Register(
      grpc::CallbackServerContext* context) override;

  // The router stops: from now on the end of a stream says nothing about its worker.
  void StopListening() { stopping_ = true; }

 private:
  class Stream;

  WorkerRegistry* const registry_;
  Dispatcher* const dispatcher_;
  RouterMetrics* const metrics_;
  const Connect connect_;
  const uint64_t incarnation_;
  std::atomic<bool> stopping_{false};
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_REGISTRY_SERVICE_H_
