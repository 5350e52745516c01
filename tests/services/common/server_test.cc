#include "services/common/server.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "hyserve/v1/inference.grpc.pb.h"

namespace hyserve::common {
namespace {

using ::testing::HasSubstr;

class Echo final : public v1::Inference::Service {
 public:
  grpc::Status Tokenize(grpc::ServerContext* context, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    response->add_token_ids(static_cast<int32_t>(request->text().size()));
    return grpc::Status::OK;
  }
};

struct Client {
  explicit Client(const std::string& address) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetMaxSendMessageSize(-1);
    stub = v1::Inference::NewStub(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  }
  grpc::Status Call(size_t text_bytes, size_t metadata_bytes = 0) {
    grpc::ClientContext context;
    if (metadata_bytes > 0) context.AddMetadata("x-big", std::string(metadata_bytes, 'x'));
    v1::TokenizeRequest request;
    request.set_text(std::string(text_bytes, 'x'));
    v1::TokenizeResponse response;
    return stub->Tokenize(&context, request, &response);
  }
  std::unique_ptr<v1::Inference::Stub> stub;
};

TEST(GrpcServer, ServesAndBoundsMessagesAndMetadata) {
  Echo echo;
  ServerOptions options;
  options.address = "127.0.0.1:0";
  options.max_receive_bytes = 10'000;
  options.max_metadata_bytes = 4'000;
  const auto server = GrpcServer::Start(options, {&echo});
  ASSERT_TRUE(server.ok()) << server.status();
  Client client((*server)->address());
  EXPECT_TRUE(client.Call(9'000).ok());
  EXPECT_EQ(client.Call(11'000).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(client.Call(10, 1'000).ok());
  EXPECT_EQ(client.Call(10, 8'000).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(GrpcServer, SaysWhichAddressIsTaken) {
  Echo echo;
  ServerOptions options;
  options.address = "127.0.0.1:0";
  const auto first = GrpcServer::Start(options, {&echo});
  ASSERT_TRUE(first.ok());
  Echo other;
  options.address = (*first)->address();
  const auto second = GrpcServer::Start(options, {&other});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr((*first)->address()));
  options.address = "no port";
  EXPECT_FALSE(GrpcServer::Start(options, {&other}).ok());
}

TEST(GrpcServer, RefusesCallsAfterShutdownAndStaysNotServing) {
  Echo echo;
  ServerOptions options;
  options.address = "127.0.0.1:0";
  const auto server = GrpcServer::Start(options, {&echo});
  ASSERT_TRUE(server.ok());
  Client client((*server)->address());
  ASSERT_TRUE(client.Call(1).ok());
  (*server)->Shutdown(absl::ZeroDuration());
  (*server)->SetServing(true);  // too late, and harmless
  EXPECT_EQ(client.Call(1).error_code(), grpc::StatusCode::UNAVAILABLE);
  (*server)->Shutdown(absl::ZeroDuration());
}

}  // namespace
}  // namespace hyserve::common
