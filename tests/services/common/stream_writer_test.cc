// The writer over real gRPC: order, congestion, ends from every side.
#include "services/common/stream_writer.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/synchronization/notification.h"
#include "hyserve/v1/inference.grpc.pb.h"
#include "services/common/server.h"

namespace hyserve::common {
namespace {

using Writer = StreamWriter<v1::GenerateResponse>;

bool MergeTokens(v1::GenerateResponse* last, v1::GenerateResponse* next) {
  last->mutable_tokens()->mutable_token_ids()->MergeFrom(next->tokens().token_ids());
  return true;
}

struct Listener : StreamListener {
  void OnStreamCancelled() override { ++cancelled; }
  void OnStreamWritable() override { ++writable; }
  void OnSlowConsumer() override { ++slow; }
  void OnStreamDone() override { done.Notify(); }
  std::atomic<int> cancelled{0}, writable{0}, slow{0};
  absl::Notification done;
};

class Service final : public v1::Inference::CallbackService {
 public:
  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest*) override {
    writer = Writer::Create(context, options, listener, merge);
    auto* const reactor = writer->reactor();
    started.Notify();
    return reactor;
  }
  StreamWriterOptions options;
  Writer::Merge merge = nullptr;
  std::shared_ptr<Listener> listener = std::make_shared<Listener>();
  std::shared_ptr<Writer> writer;
  absl::Notification started;
};

class StreamWriterTest : public ::testing::Test {
 protected:
  void Call() {
    ServerOptions options;
    options.address = "127.0.0.1:0";
    auto server = GrpcServer::Start(options, {&service_});
    ASSERT_TRUE(server.ok());
    server_ = *std::move(server);
    stub_ = v1::Inference::NewStub(
        grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials()));
    reader_ = stub_->Generate(&context_, v1::GenerateRequest());
    service_.started.WaitForNotification();
  }
  static v1::GenerateResponse Token(int32_t id, size_t text_bytes = 0) {
    v1::GenerateResponse message;
    message.mutable_tokens()->add_token_ids(id);
    message.mutable_tokens()->set_text(std::string(text_bytes, 'x'));
    return message;
  }
  // Reads to the end; all token ids in order.
  std::vector<int32_t> ReadAll(grpc::Status* status) {
    std::vector<int32_t> ids;
    v1::GenerateResponse message;
    while (reader_->Read(&message)) {
      ids.insert(ids.end(), message.tokens().token_ids().begin(),
                 message.tokens().token_ids().end());
      ++messages_;
    }
    *status = reader_->Finish();
    return ids;
  }

  Service service_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
  int messages_ = 0;
  TimerQueue timers_;
};

TEST_F(StreamWriterTest, KeepsTheOrderAndFinishesAfterTheLast) {
  Call();
  for (int i = 0; i < 500; ++i) EXPECT_TRUE(service_.writer->Write(Token(i), 1));
  service_.writer->WriteAndFinish(Token(500), absl::OkStatus());
  EXPECT_FALSE(service_.writer->Write(Token(501), 1));
  service_.writer->Finish(absl::InternalError("too late"));
  grpc::Status status;
  const std::vector<int32_t> ids = ReadAll(&status);
  EXPECT_TRUE(status.ok());
  ASSERT_EQ(ids.size(), 501u);
  for (int i = 0; i <= 500; ++i) EXPECT_EQ(ids[i], i);
  service_.listener->done.WaitForNotification();
  EXPECT_EQ(service_.listener->cancelled, 0);
}

TEST_F(StreamWriterTest, FinishWithAnErrorComesAfterTheMessages) {
  Call();
  for (int i = 0; i < 10; ++i) service_.writer->Write(Token(i));
  service_.writer->Finish(absl::AbortedError("why"));
  grpc::Status status;
  EXPECT_EQ(ReadAll(&status).size(), 10u);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(status.error_message(), "why");
}

TEST_F(StreamWriterTest, WritesFromManyThreadsAllArrive) {
  Call();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) service_.writer->Write(Token(i));
    });
  }
  for (std::thread& thread : threads) thread.join();
  service_.writer->Finish(absl::OkStatus());
  grpc::Status status;
  EXPECT_EQ(ReadAll(&status).size(), 800u);
}

TEST_F(StreamWriterTest, WaitingMessagesAreMerged) {
  service_.merge = MergeTokens;
  Call();
  for (int i = 0; i < 2000; ++i) service_.writer->Write(Token(i), 1);
  service_.writer->Finish(absl::OkStatus());
  grpc::Status status;
  const std::vector<int32_t> ids = ReadAll(&status);
  ASSERT_EQ(ids.size(), 2000u);
  for (int i = 0; i < 2000; ++i) EXPECT_EQ(ids[i], i);
  EXPECT_LT(messages_, 2000);
}

TEST_F(StreamWriterTest, CongestionIsSignalledAndEndsWhenTheClientReads) {
  service_.options.backlog_bytes = 64 << 10;
  Call();
  int written = 0;
  while (!service_.writer->congested()) {
    service_.writer->Write(Token(written++, 16 << 10), 1);
    ASSERT_LT(written, 10'000);
  }
  v1::GenerateResponse message;
  int read = 0;
  while (service_.writer->congested()) {
    ASSERT_TRUE(reader_->Read(&message));
    EXPECT_EQ(message.tokens().token_ids(0), read++);
  }
  service_.writer->Finish(absl::OkStatus());
  grpc::Status status;
  EXPECT_EQ(ReadAll(&status).size(), static_cast<size_t>(written - read));
  service_.listener->done.WaitForNotification();
  EXPECT_EQ(service_.listener->writable, 1);
}

TEST_F(StreamWriterTest, ASlowConsumerIsEnded) {
  service_.options.backlog_bytes = 64 << 10;
  service_.options.slow_consumer_kill = absl::Milliseconds(20);
  service_.options.timers = &timers_;
  Call();
  const int written = 1000;  // more than any window of the transport
  for (int i = 0; i < written; ++i) service_.writer->Write(Token(i, 16 << 10), 1);
  service_.listener->done.WaitForNotification();  // without a read
  EXPECT_EQ(service_.listener->slow, 1);
  EXPECT_FALSE(service_.writer->Write(Token(0), 1));
  grpc::Status status;
  EXPECT_LT(ReadAll(&status).size(), static_cast<size_t>(written));
  EXPECT_FALSE(status.ok());
}

TEST_F(StreamWriterTest, ACancelReachesTheListenerOnceAndTheStreamStillNeedsItsFinish) {
  Call();
  service_.writer->Write(Token(1));
  context_.TryCancel();
  grpc::Status status;
  ReadAll(&status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  while (service_.listener->cancelled == 0) std::this_thread::yield();
  EXPECT_FALSE(service_.listener->done.HasBeenNotified());
  service_.writer->Abort(absl::CancelledError(""));
  service_.listener->done.WaitForNotification();
  EXPECT_EQ(service_.listener->cancelled, 1);
}

TEST_F(StreamWriterTest, AbortDropsWhatIsQueued) {
  Call();
  while (!service_.writer->congested()) service_.writer->Write(Token(0, 16 << 10), 1);
  service_.writer->Abort(absl::UnavailableError("gone"));
  grpc::Status status;
  ReadAll(&status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  service_.listener->done.WaitForNotification();
}

TEST_F(StreamWriterTest, UseAfterTheEndIsHarmless) {
  Call();
  service_.writer->Finish(absl::OkStatus());
  grpc::Status status;
  ReadAll(&status);
  service_.listener->done.WaitForNotification();
  EXPECT_FALSE(service_.writer->Write(Token(1)));
  service_.writer->Finish(absl::OkStatus());
  service_.writer->Abort(absl::InternalError(""));
  EXPECT_FALSE(service_.writer->congested());
}

}  // namespace
}  // namespace hyserve::common
