#include "services/worker/admin_service.h"

#include <grpcpp/grpcpp.h>

#include "base/strings.h"
#include "services/common/status_mapping.h"

namespace hyserve::worker {
namespace {

constexpr uint64_t kMaxProbeMessageBytes = uint64_t{64} << 20;
constexpr uint32_t kMaxProbeMessages = 256;

absl::StatusOr<kv_transfer::LinkProbeOptions> ToProbeOptions(const v1::ProbeLinkRequest& request) {
  kv_transfer::LinkProbeOptions options;
  if (request.message_bytes() > kMaxProbeMessageBytes) {
    return absl::InvalidArgumentError(StrCat("message_bytes: must be at most ",
                                             kMaxProbeMessageBytes, "; got ",
                                             request.message_bytes()));
  }
  if (request.messages() > kMaxProbeMessages) {
    return absl::InvalidArgumentError(StrCat("messages: must be at most ", kMaxProbeMessages,
                                             "; got ", request.messages()));
  }
  if (request.message_bytes() > 0) options.message_bytes = request.message_bytes();
  if (request.messages() > 0) options.messages = static_cast<int32_t>(request.messages());
  return options;
}

}  // namespace

grpc::ServerUnaryReactor* AdminService::GetInvariants(grpc::CallbackServerContext* context,
                                                      const v1::GetInvariantsRequest* request,
                                                      v1::GetInvariantsResponse* response) {
  *response = parts_.invariants();
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::Describe(grpc::CallbackServerContext* context,
                                                 const v1::DescribeRequest* request,
                                                 v1::Registration* response) {
  *response = parts_.describe();
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::ProbeLink(grpc::CallbackServerContext* context,
                                                  const v1::ProbeLinkRequest* request,
                                                  v1::ProbeLinkResponse* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  absl::StatusOr<kv_transfer::LinkProbeOptions> options = ToProbeOptions(*request);
  if (options.ok() && parts_.probe == nullptr) {
    options = absl::FailedPreconditionError("this worker has no transport");
  } else if (options.ok() && request->peer().transport() != parts_.transport) {
    options = absl::InvalidArgumentError(
        StrCat("peer.transport: this worker uses ", parts_.transport));
  }
  if (!options.ok()) {
    reactor->Finish(common::ToGrpcStatus(options.status()));
    return reactor;
  }
  const kv_transfer::PeerAddress peer{.transport_address = request->peer().transport_address(),
                                      .incarnation = request->peer().incarnation()};
  // gRPC keeps the response until Finish().
  parts_.probe->Measure(peer, *options,
                        [this, reactor, response](absl::StatusOr<kv_transfer::LinkReport> report) {
                          if (report.ok()) {
                            response->set_bytes_per_second(report->bytes_per_second);
                            response->set_latency_us(report->latency_us);
                            response->set_transports(report->connection);
                            parts_.metrics->OnLinkMeasured(StrCat("probe->", parts_.worker),
                                                           report->bytes_per_second);
                          }
                          reactor->Finish(common::ToGrpcStatus(report.status()));
                        });
  return reactor;
}

}  // namespace hyserve::worker
