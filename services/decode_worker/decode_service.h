// DecodeWorker over gRPC.
#ifndef HYSERVE_SERVICES_DECODE_WORKER_DECODE_SERVICE_H_
#define HYSERVE_SERVICES_DECODE_WORKER_DECODE_SERVICE_H_

#include "hyserve/v1/worker.grpc.pb.h"
#include "services/decode_worker/decode_sequence.h"

namespace hyserve::decode_worker {

class DecodeService final : public v1::DecodeWorker::CallbackService {
 public:
  // `context` outlives the service and every sequence.
  explicit DecodeService(const DecodeContext* context) : context_(context) {}

  grpc::ServerWriteReactor<v1::DecodeEvent>* Decode(grpc::CallbackServerContext* context,
                                                    const v1::DecodeRequest* request) override {
    return DecodeSequence::Start(context_, context, *request);
  }

 private:
  const DecodeContext* const context_;
};

}  // namespace hyserve::decode_worker

#endif  // HYSERVE_SERVICES_DECODE_WORKER_DECODE_SERVICE_H_
