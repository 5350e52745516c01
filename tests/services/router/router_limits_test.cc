// Bounds: queue, live requests, duplicate ids, slow clients, message size.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "services/common/status_mapping.h"
#include "tests/support/router_harness.h"

namespace hyserve::test {
namespace {

using ::testing::HasSubstr;

const std::vector<int32_t> kPrompt = {1, 2, 3};

// Decode that stops after one token until the test lets it go on.
DecodeHandler Gate(absl::Notification* gate) {
  return [gate](grpc::ServerContext* context, const v1::DecodeRequest& request,
                DecodeWriter* writer) {
    gate->WaitForNotificationWithTimeout(absl::Seconds(10));
    return GoodDecode(context, request, writer);
  };
}

TEST(RouterLimits, RequestsBeyondTheWorkersWaitInTheRoutersQueue) {
  common::Config config = RouterHarness::DefaultConfig();
  config.limits.queued_requests = 1;
  RouterHarness harness(config);
  harness.AddPrefill("p0");
  absl::Notification gate;
  FakeWorker* const decode =
      harness.Add({.name = "d0", .role = v1::WORKER_ROLE_DECODE, .max_sequences = 1});
  decode->OnDecode(Gate(&gate));
  const auto in_background = [&](Reply* reply) {
    return std::thread([&harness, reply] {
      *reply = harness.Generate(RouterHarness::TokenRequest(kPrompt, 4));
    });
  };
  Reply first, second;
  std::thread a = in_background(&first);
  while (harness.router()->open_bookings() < 1) absl::SleepFor(absl::Milliseconds(1));
  std::thread b = in_background(&second);
  while (harness.router()->open_bookings() < 2) absl::SleepFor(absl::Milliseconds(1));
  // One runs, one waits: the third is too many.
  const Reply third = harness.Generate(RouterHarness::TokenRequest(kPrompt, 4));
  EXPECT_EQ(third.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(common::RetryDelay(third.status).has_value());
  EXPECT_FALSE(third.pushback_ms.empty());
  EXPECT_EQ(harness.Metric("hyserve_router_shed_total{model=\"fake\",reason=\"overload\""), 1);
  EXPECT_LE(decode->decode_calls(), 1);
  gate.Notify();
  a.join();
  b.join();
  EXPECT_TRUE(first.status.ok()) << first.status;
  EXPECT_TRUE(second.status.ok()) << second.status;
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(RouterLimits, WaitingTooLongIsRefused) {
  common::Config config = RouterHarness::DefaultConfig();
  config.limits.max_queue_time = absl::Milliseconds(30);
  RouterHarness harness(config);
  harness.AddPrefill("p0");
  FakeWorker* const decode = harness.AddDecode("d0");
  decode->DropRegistration();
  while (harness.router()->NotReadyReason().empty()) absl::SleepFor(absl::Milliseconds(1));
  const Reply reply = harness.Generate(RouterHarness::TokenRequest(kPrompt, 4));
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(reply.status.ToString(), HasSubstr("no_capacity"));
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(RouterLimits, ALiveIdIsUniqueAndFreeAgainAtTheEnd) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  absl::Notification gate;
  harness.AddDecode("d0")->OnDecode(Gate(&gate));
  v1::GenerateRequest request = RouterHarness::TokenRequest(kPrompt, 4);
  request.set_request_id("same");
  Reply first;
  std::thread client([&] { first = harness.Generate(request); });
  while (harness.router()->open_bookings() < 1) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(harness.Generate(request).status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(harness.Metric("hyserve_rejected_total{model=\"fake\",reason=\"duplicate\""), 1);
  gate.Notify();
  client.join();
  EXPECT_TRUE(first.status.ok());
  EXPECT_TRUE(harness.Generate(request).status.ok());
}

TEST(RouterLimits, LiveRequestsAreLimited) {
  common::Config config = RouterHarness::DefaultConfig();
  config.limits.live_requests = 1;
  RouterHarness harness(config);
  harness.AddPrefill("p0");
  absl::Notification gate;
  harness.AddDecode("d0")->OnDecode(Gate(&gate));
  Reply first;
  std::thread client(
      [&] { first = harness.Generate(RouterHarness::TokenRequest(kPrompt, 4)); });
  while (harness.router()->open_bookings() < 1) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(harness.Generate(RouterHarness::TokenRequest(kPrompt, 4)).status.code(),
            absl::StatusCode::kResourceExhausted);
  gate.Notify();
  client.join();
  EXPECT_TRUE(first.status.ok());
}

TEST(RouterLimits, ARequestLargerThanEveryWorkerIsRefusedAtOnce) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  harness.Add({.name = "d0", .role = v1::WORKER_ROLE_DECODE, .blocks = 2});
  const Reply reply = harness.Generate(RouterHarness::TokenRequest(kPrompt, 1000));
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(common::RetryDelay(reply.status).has_value());
}

TEST(RouterLimits, AClientThatDoesNotReadIsEndedAndItsWorkersAreFreed) {
  constexpr int32_t kTokens = 30'000;  // with logprobs more than the transport's windows take
  constexpr int32_t kContext = 1 << 20;
  common::Config config = RouterHarness::DefaultConfig();
  config.limits.slow_consumer_kill = absl::Milliseconds(100);
  RouterHarness harness(config);
  harness.Add(
      {.name = "p0", .role = v1::WORKER_ROLE_PREFILL, .max_context_tokens = kContext});
  FakeWorker* const decode = harness.Add(
      {.name = "d0", .role = v1::WORKER_ROLE_DECODE, .max_context_tokens = kContext});
  decode->OnDecode([](grpc::ServerContext* context, const v1::DecodeRequest& request,
                       DecodeWriter* writer) {
    SendStarted(writer);
    v1::DecodeEvent event;
    for (int32_t index = 1; !context->IsCancelled() && index < kTokens; ++index) {
      event.mutable_tokens()->set_first_index(index);
      event.mutable_tokens()->clear_tokens();
      auto* const token = event.mutable_tokens()->add_tokens();
      token->set_token_id('x');
      for (int i = 0; i < 20; ++i) token->add_top()->set_token_id('y');
      if (!writer->Write(event)) break;
    }
    return grpc::Status(grpc::StatusCode::CANCELLED, "");
  });
  v1::GenerateRequest request = RouterHarness::TokenRequest(kPrompt, kTokens);
  request.mutable_output()->set_logprobs(20);
  grpc::ClientContext context;
  const auto reader = harness.stub()->Generate(&context, request);
  while (decode->decode_calls() == 0) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_TRUE(harness.WaitIdle());  // without a single read
  EXPECT_EQ(harness.Metric("hyserve_slow_consumers_total{"), 1);
  EXPECT_EQ(harness.Metric("hyserve_requests_total{code=\"RESOURCE_EXHAUSTED\",model=\"fake\","
                           "reason=\"slow_consumer\""),
            1);
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

// The windows and buffers between decode and a client that does not read hold a bounded number of
// bytes: the decode worker's writes stop, whatever it still has.
TEST(RouterLimits, BackPressureReachesTheDecodeWorker) {
  constexpr int64_t kMessages = 20'000;
  constexpr int64_t kMaxBuffered = int64_t{1} << 20;
  common::Config config = RouterHarness::DefaultConfig();
  config.limits.slow_consumer_kill = absl::Milliseconds(500);
  RouterHarness harness(config);
  constexpr int32_t kContext = 1 << 20;
  harness.Add({.name = "p0", .role = v1::WORKER_ROLE_PREFILL, .max_context_tokens = kContext});
  FakeWorker* const decode = harness.Add(
      {.name = "d0", .role = v1::WORKER_ROLE_DECODE, .max_context_tokens = kContext});
  std::atomic<int64_t> written{0}, message_bytes{0};
  decode->OnDecode([&](grpc::ServerContext* context, const v1::DecodeRequest& request,
                       DecodeWriter* writer) {
    SendStarted(writer);
    v1::DecodeEvent event;
    auto* const token = event.mutable_tokens()->add_tokens();
    token->set_token_id('x');
    for (int i = 0; i < 20; ++i) {
      token->add_top()->set_token_id('y');
      token->mutable_top(i)->set_logprob(-1.5f);
    }
    message_bytes = static_cast<int64_t>(event.ByteSizeLong());
    for (int32_t index = 1; index < kMessages && !context->IsCancelled(); ++index) {
      event.mutable_tokens()->set_first_index(index);
      if (!writer->Write(event)) break;
      written += message_bytes;
    }
    return grpc::Status(grpc::StatusCode::CANCELLED, "");
  });
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // the client's window stays small too
  const auto stub = v1::Inference::NewStub(grpc::CreateCustomChannel(
      harness.router()->address(), grpc::InsecureChannelCredentials(), arguments));
  v1::GenerateRequest request = RouterHarness::TokenRequest(kPrompt, kMessages);
  request.mutable_output()->set_logprobs(20);
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, request);
  while (decode->decode_calls() == 0) absl::SleepFor(absl::Milliseconds(1));
  ASSERT_TRUE(harness.WaitIdle());  // ended as a slow consumer, without a single read
  EXPECT_GT(message_bytes * kMessages, 3 * kMaxBuffered) << "more than was let through";
  EXPECT_LT(written, kMaxBuffered);
  context.TryCancel();
  reader->Finish();
}

TEST(RouterLimits, ASlowReaderGetsEveryTokenOnce) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  harness.AddDecode("d0");
  int messages = 0;
  const Reply reply = harness.Generate(RouterHarness::TokenRequest(kPrompt, 3000),
                                       [&](grpc::ClientContext*, const v1::GenerateResponse&) {
                                         if (++messages % 50 == 1) {
                                           absl::SleepFor(absl::Milliseconds(2));
                                         }
                                       });
  ASSERT_TRUE(reply.status.ok()) << reply.status;
  EXPECT_TRUE(reply.contiguous);
  EXPECT_EQ(reply.text, FakeText(kPrompt, 3000));
}

TEST(RouterLimits, AMessageThatIsTooLargeIsRefused) {
  common::Config config = RouterHarness::DefaultConfig();
  config.limits.request_bytes = 4096;
  RouterHarness harness(config);
  v1::GenerateRequest request;
  request.set_text(std::string(8192, 'x'));
  EXPECT_EQ(harness.Generate(request).status.code(), absl::StatusCode::kResourceExhausted);
}

TEST(RouterLimits, GaugesFollowTheQueueAndTheWorkers) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  absl::Notification gate;
  harness.Add({.name = "d0", .role = v1::WORKER_ROLE_DECODE, .max_sequences = 1})
      ->OnDecode(Gate(&gate));
  std::vector<std::thread> clients;
  for (int i = 0; i < 3; ++i) {
    clients.emplace_back([&] { harness.Generate(RouterHarness::TokenRequest(kPrompt, 4)); });
  }
  while (harness.router()->open_bookings() < 3) absl::SleepFor(absl::Milliseconds(1));
  harness.Scrape();
  const std::string labels = "{engine=\"0\",model_name=\"fake\",role=\"router\"}";
  EXPECT_EQ(harness.Metric("vllm:num_requests_running" + labels), 1);
  EXPECT_EQ(harness.Metric("vllm:num_requests_waiting" + labels), 2);
  EXPECT_EQ(harness.Metric("hyserve_queue_requests{"), 2);
  EXPECT_EQ(harness.Metric("hyserve_queue_tokens{"), 6);
  EXPECT_EQ(harness.Metric(
                "hyserve_router_worker_inflight{model=\"fake\",role=\"router\",worker=\"d0\"}"),
            1);
  EXPECT_EQ(harness.Metric(
                "hyserve_router_workers{model=\"fake\",role=\"router\",worker_role=\"decode\"}"),
            1);
  gate.Notify();
  for (std::thread& client : clients) client.join();
}

}  // namespace
}  // namespace hyserve::test
