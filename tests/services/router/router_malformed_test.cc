// Bytes that are no message of the API: every public method says so, and the router goes on.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <random>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "tests/support/router_harness.h"

namespace hyserve::test {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr char kService[] = "/hyserve.v1.Inference/";
constexpr const char* kMethods[] = {"Generate", "Tokenize", "Detokenize", "GetModel"};

// Sends bytes as the request of a method; the answer's status. Messages of the answer are dropped.
grpc::Status Send(RouterHarness& harness, const std::string& method, const std::string& bytes) {
  grpc::GenericStub stub(
      grpc::CreateChannel(harness.router()->address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(20)));
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);

  class Reader final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
   public:
    void Start(const grpc::ByteBuffer* request) {
      StartWriteLast(request, grpc::WriteOptions());
      StartRead(&message_);
      StartCall();
    }
    void OnReadDone(bool ok) override {
      if (ok) StartRead(&message_);
    }
    void OnDone(const grpc::Status& status) override {
      status_ = status;
      done_.Notify();
    }
    grpc::Status Wait() {
      done_.WaitForNotification();
      return status_;
    }

   private:
    grpc::ByteBuffer message_;
    grpc::Status status_;
    absl::Notification done_;
  };
  Reader reader;
  stub.PrepareBidiStreamingCall(&context, kService + method, grpc::StubOptions(), &reader);
  reader.Start(&request);
  return reader.Wait();
}

TEST(RouterMalformed, EveryMethodNamesTheMessageThatItWanted) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  harness.AddDecode("d0");
  const std::pair<const char*, std::string> cases[] = {
      {"a field number of 0", std::string("\x00\x01", 2)},
      {"a length beyond the end", std::string("\x0a\x7f\x01", 3)},
      {"a varint without an end", std::string(12, '\xff')},
      {"a group that is not closed", "\x0b"},
  };
  for (const char* method : kMethods) {
    for (const auto& [what, bytes] : cases) {
      SCOPED_TRACE(std::string(method) + ": " + what);
      const grpc::Status status = Send(harness, method, bytes);
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
      EXPECT_THAT(status.error_message(),
                  HasSubstr(std::string("hyserve.v1.") + method + "Request: malformed protobuf"));
    }
  }
  EXPECT_EQ(harness.Metric("hyserve_rejected_total{model=\"fake\",reason=\"invalid\""), 4);
  EXPECT_TRUE(harness.WaitIdle());
  EXPECT_TRUE(harness.Generate(RouterHarness::TokenRequest({1, 2, 3}, 4)).status.ok());
}

// A string field must be UTF-8 (the id and the model's name are strings, prompts are bytes).
TEST(RouterMalformed, AStringThatIsNotUtf8IsMalformed) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  harness.AddDecode("d0");
  v1::GenerateRequest good = RouterHarness::TokenRequest({1, 2, 3}, 4);
  good.set_request_id("xyxyxyxy");
  std::string bytes = good.SerializeAsString();
  ASSERT_TRUE(Send(harness, "Generate", bytes).ok());
  bytes.replace(bytes.find("xyxyxyxy"), 8, "xyx\xff\xfeyxy");
  const grpc::Status status = Send(harness, "Generate", bytes);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("not UTF-8"));
}

TEST(RouterMalformed, RandomBytesNeverReachTheRuntimesOwnErrors) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  harness.AddDecode("d0");
  std::mt19937 random(7);
  for (int i = 0; i < 200; ++i) {
    std::string bytes(1 + random() % 40, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    const grpc::Status status = Send(harness, kMethods[i % 4], bytes);
    EXPECT_THAT(status.error_code(), AnyOf(grpc::StatusCode::INVALID_ARGUMENT,
                                           grpc::StatusCode::NOT_FOUND, grpc::StatusCode::OK))
        << status.error_message();
  }
  EXPECT_TRUE(harness.WaitIdle());
}

}  // namespace
}  // namespace hyserve::test
