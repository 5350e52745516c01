// WorkerAdmin over gRPC, for every kind of worker.
#ifndef HYSERVE_SERVICES_WORKER_ADMIN_SERVICE_H_
#define HYSERVE_SERVICES_WORKER_ADMIN_SERVICE_H_

#include <functional>

#include "hyserve/v1/worker.grpc.pb.h"
#include "kv_transfer/link_probe.h"
#include "services/worker/worker_metrics.h"

namespace hyserve::worker {

class AdminService final : public v1::WorkerAdmin::CallbackService {
 public:
  struct Parts {
    std::function<v1::GetInvariantsResponse()> invariants;
    std::function<v1::Registration()> describe;
    kv_transfer::LinkProbe* probe = nullptr;  // null: no transfers
    std::string transport;                    // its name
    std::string worker;                       // this worker's name, for the metric
    WorkerMetrics* metrics = nullptr;
  };
  explicit AdminService(Parts parts) : parts_(std::move(parts)) {}

  grpc::ServerUnaryReactor* GetInvariants(grpc::CallbackServerContext* context,
                                          const v1::GetInvariantsRequest* request,
                                          v1::GetInvariantsResponse* response) override;
  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::DescribeRequest* request,
                                     v1::Registration* response) override;
  grpc::ServerUnaryReactor* ProbeLink(grpc::CallbackServerContext* context,
                                      const v1::ProbeLinkRequest* request,
                                      v1::ProbeLinkResponse* response) override;

 private:
  const Parts parts_;
};

}  // namespace hyserve::worker

#endif  // HYSERVE_SERVICES_WORKER_ADMIN_SERVICE_H_
