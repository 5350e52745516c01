#include "services/common/worker_registration_client.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <mutex>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "hyserve/v1/worker.grpc.pb.h"
#include "services/common/server.h"

namespace hyserve::common {
namespace {

// A registry that notes what it gets and answers as told.
class FakeRegistry final : public v1::WorkerRegistry::Service {
 public:
  grpc::Status Register(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::RegistryMessage, v1::WorkerReport>* stream) override {
    v1::WorkerReport report;
    bool first = true;
    int reports_left = 0;
    while (stream->Read(&report)) {
      v1::RegistryMessage answer;
      {
        absl::MutexLock lock(&mutex_);
        if (first) {
          EXPECT_TRUE(report.has_registration());
          ++registrations_;
          name_ = report.registration().name();
          reports_left = reports_per_stream_;
          if (refuse_) {
            answer.mutable_refused()->set_reason("no");
          } else {
            answer.mutable_registered()->set_router_incarnation(1);
          }
        } else {
          sequences_.push_back(report.load().sequence());
          if (--reports_left == 0) return grpc::Status::OK;
        }
      }
      if (first) stream->Write(answer);
      if (answer.has_refused()) return grpc::Status::OK;
      first = false;
    }
    return grpc::Status::OK;
  }

  bool Wait(std::function<bool()> condition) {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(&condition), absl::Seconds(10));
  }

  absl::Mutex mutex_;
  bool refuse_ = false;
  int reports_per_stream_ = 0;  // then the stream ends; 0: never
  int registrations_ = 0;
  std::string name_;
  std::vector<uint64_t> sequences_;
};

class RegistrationClientTest : public ::testing::Test {
 protected:
  RegistrationClientTest() { Serve("127.0.0.1:0"); }
  void Serve(const std::string& address) {
    ServerOptions options;
    options.address = address;
    auto server = GrpcServer::Start(options, {&registry_});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  RegistrationOptions Options() {
    RegistrationOptions options;
    options.router_address = server_->address();
    options.registration.set_name("w");
    options.load = [] { return v1::LoadReport(); };
    options.report_interval = absl::Milliseconds(2);
    options.first_backoff = options.max_backoff = absl::Milliseconds(5);
    options.refused_backoff = absl::Milliseconds(5);
    return options;
  }
  FakeRegistry registry_;
  std::unique_ptr<GrpcServer> server_;
};

TEST_F(RegistrationClientTest, RegistersThenReportsInSequence) {
  WorkerRegistrationClient client(Options());
  EXPECT_TRUE(client.WaitRegistered(absl::Seconds(10)));
  EXPECT_TRUE(registry_.Wait([&] { return registry_.sequences_.size() >= 5; }));
  absl::MutexLock lock(&registry_.mutex_);
  EXPECT_EQ(registry_.name_, "w");
  for (uint64_t i = 0; i < 5; ++i) EXPECT_EQ(registry_.sequences_[i], i + 1);
}

TEST_F(RegistrationClientTest, ComesBackAfterTheStreamEnds) {
  registry_.reports_per_stream_ = 2;
  WorkerRegistrationClient client(Options());
  EXPECT_TRUE(registry_.Wait([&] { return registry_.registrations_ >= 3; }));
}

TEST_F(RegistrationClientTest, ComesBackAfterTheRouterRestarts) {
  WorkerRegistrationClient client(Options());
  ASSERT_TRUE(client.WaitRegistered(absl::Seconds(10)));
  const std::string address = server_->address();
  server_ = nullptr;
  Serve(address);
  EXPECT_TRUE(registry_.Wait([&] { return registry_.registrations_ >= 2; }));
  EXPECT_TRUE(client.WaitRegistered(absl::Seconds(10)));
}

TEST_F(RegistrationClientTest, ARefusalIsTriedAgainAndNotACrash) {
  {
    absl::MutexLock lock(&registry_.mutex_);
    registry_.refuse_ = true;
  }
  WorkerRegistrationClient client(Options());
  ASSERT_TRUE(registry_.Wait([&] { return registry_.registrations_ >= 2; }));
  EXPECT_FALSE(client.registered());
  {
    absl::MutexLock lock(&registry_.mutex_);
    registry_.refuse_ = false;
  }
  EXPECT_TRUE(client.WaitRegistered(absl::Seconds(10)));
}

TEST_F(RegistrationClientTest, ReportNowDoesNotWaitForTheInterval) {
  RegistrationOptions options = Options();
  options.report_interval = absl::Hours(1);
  WorkerRegistrationClient client(options);
  ASSERT_TRUE(client.WaitRegistered(absl::Seconds(10)));
  ASSERT_TRUE(registry_.Wait([&] { return registry_.sequences_.size() == 1; }));  // at once
  client.ReportNow();
  EXPECT_TRUE(registry_.Wait([&] { return registry_.sequences_.size() == 2; }));
}

TEST_F(RegistrationClientTest, EndsAtOnceWithoutARouter) {
  RegistrationOptions options = Options();
  server_ = nullptr;
  options.max_backoff = options.first_backoff = absl::Hours(1);
  WorkerRegistrationClient client(options);
  EXPECT_FALSE(client.registered());
}

}  // namespace
}  // namespace hyserve::common
