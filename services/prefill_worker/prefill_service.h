// PrefillWorker over gRPC.
#ifndef HYSERVE_SERVICES_PREFILL_WORKER_PREFILL_SERVICE_H_
#define HYSERVE_SERVICES_PREFILL_WORKER_PREFILL_SERVICE_H_

#include "hyserve/v1/worker.grpc.pb.h"
#include "services/prefill_worker/prefill_sequence.h"

namespace hyserve::prefill_worker {

class PrefillService final : public v1::PrefillWorker::CallbackService {
 public:
  // `context` outlives the service and every sequence.
  explicit PrefillService(const PrefillContext* context) : context_(context) {}

  grpc::ServerWriteReactor<v1::PrefillEvent>* Prefill(grpc::CallbackServerContext* context,
                                                      const v1::PrefillRequest* request) override {
    return PrefillSequence::Start(context_, context, *request);
  }

 private:
  const PrefillContext* const context_;
};

}  // namespace hyserve::prefill_worker

#endif  // HYSERVE_SERVICES_PREFILL_WORKER_PREFILL_SERVICE_H_
