// The public API over gRPC. Adaptors only: the work is in active_request and text.
//
// Requests are parsed here, not by gRPC, whose answer to a malformed message is UNIMPLEMENTED or
// INTERNAL without a word about what is wrong: INVALID_ARGUMENT, with the message's name.
#ifndef HYSERVE_SERVICES_ROUTER_ROUTER_SERVICE_H_
#define HYSERVE_SERVICES_ROUTER_ROUTER_SERVICE_H_

#include "hyserve/v1/inference.grpc.pb.h"
#include "services/router/active_request.h"

namespace hyserve::router {

class RouterService final
    : public v1::Inference::WithRawCallbackMethod_Generate<
          v1::Inference::WithRawCallbackMethod_Tokenize<
              v1::Inference::WithRawCallbackMethod_Detokenize<
                  v1::Inference::WithRawCallbackMethod_GetModel<v1::Inference::Service>>>> {
 public:
  // `router` must outlive the service.
  explicit RouterService(const RouterContext* router) : router_(router) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;

 private:
  const RouterContext* const router_;
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_ROUTER_SERVICE_H_
