// The public API over gRPC. Adaptors only: the work is in active_request and text.
#ifndef HYSERVE_SERVICES_ROUTER_ROUTER_SERVICE_H_
#define HYSERVE_SERVICES_ROUTER_ROUTER_SERVICE_H_

#include "hyserve/v1/inference.grpc.pb.h"
#include "services/router/active_request.h"

namespace hyserve::router {

class RouterService final : public v1::Inference::CallbackService {
 public:
  // `router` must outlive the service.
  explicit RouterService(const RouterContext* router) : router_(router) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;

 private:
  const RouterContext* const router_;
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_ROUTER_SERVICE_H_
