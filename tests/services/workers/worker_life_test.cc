// What surrounds the requests: readiness, metrics, admin calls, drain, refusals, start-up errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "tests/services/workers/worker_harness.h"

namespace hyserve::test {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(Life, ReadyUntilDraining) {
  WorkerHarness harness;
  worker::WorkerHost& host = harness.prefill()->host();
  EXPECT_THAT(WorkerHarness::Get(host, "/readyz"), StartsWith("200"));
  EXPECT_THAT(WorkerHarness::Get(host, "/livez"), StartsWith("200"));
  harness.prefill()->core().SetDraining();
  EXPECT_THAT(WorkerHarness::Get(host, "/readyz"), StartsWith("503"));
  const auto request = harness.NewRequest(MakePrompt(10), Greedy(2));
  const PrefillReply reply = harness.Prefill(request.prefill);
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(reply.status.message()), StartsWith("draining"));
  EXPECT_TRUE(harness.prefill()->core().Load(nullptr).draining());
}

TEST(Life, DrainLetsRunningRequestsFinish) {
  WorkerHarness harness;
  const auto request = harness.NewRequest(MakePrompt(100), Greedy(200));
  std::thread drain;
  const WorkerHarness::Reply reply = harness.Run(
      request, nullptr, [&](grpc::ClientContext*, const v1::DecodeEvent& event) {
        if (!event.has_started()) return;
        drain = std::thread([&] {
          harness.decode()->host().Drain(absl::Seconds(20), absl::Seconds(25));
        });
      });
  drain.join();
  EXPECT_TRUE(reply.decode.status.ok()) << reply.decode.status;
  EXPECT_EQ(reply.tokens.size(), 200u);
  EXPECT_EQ(harness.decode()->Invariants().live_sequences(), 0);
}

TEST(Life, DrainCancelsWhatTakesTooLong) {
  WorkerHarness harness;
  const auto request = harness.NewRequest(MakePrompt(100), Greedy(30'000));
  std::thread drain;
  const WorkerHarness::Reply reply = harness.Run(
      request, nullptr, [&](grpc::ClientContext*, const v1::DecodeEvent& event) {
        if (!event.has_started()) return;
        drain = std::thread([&] {
          harness.decode()->host().Drain(absl::ZeroDuration(), absl::Seconds(10));
        });
      });
  drain.join();
  EXPECT_FALSE(reply.decode.status.ok());
  EXPECT_EQ(harness.decode()->Invariants().blocks_used(), 0);
  EXPECT_EQ(harness.decode()->Invariants().live_sequences(), 0);
}

TEST(Life, DestroyingAWorkerWithRequestsInFlight) {
  auto harness = std::make_unique<WorkerHarness>(HarnessOptions{.chunk_tokens = 64});
  std::vector<WorkerHarness::Request> requests;
  for (int i = 0; i < 4; ++i) {
    requests.push_back(harness->NewRequest(MakePrompt(2000, i), Greedy(30'000)));
  }
  std::vector<std::thread> clients;
  std::atomic<int> running{0};
  for (auto& request : requests) {
    // The stubs go with the harness: calls of their own.
    clients.emplace_back([&running, &request, prefill = harness->prefill()->host().address(),
                          decode = harness->decode()->host().address()] {
      const auto prefill_stub = v1::PrefillWorker::NewStub(
          grpc::CreateChannel(prefill, grpc::InsecureChannelCredentials()));
      const auto decode_stub = v1::DecodeWorker::NewStub(
          grpc::CreateChannel(decode, grpc::InsecureChannelCredentials()));
      grpc::ClientContext prefill_context, decode_context;
      const auto prefill_reader = prefill_stub->Prefill(&prefill_context, request.prefill);
      const auto decode_reader = decode_stub->Decode(&decode_context, request.decode);
      v1::DecodeEvent event;
      bool counted = false;
      while (decode_reader->Read(&event)) {
        if (!std::exchange(counted, true)) ++running;
      }
      EXPECT_FALSE(decode_reader->Finish().ok());
      v1::PrefillEvent ignored;
      while (prefill_reader->Read(&ignored)) {
      }
      prefill_reader->Finish();
    });
  }
  while (running < 4) std::this_thread::yield();
  harness = nullptr;
  for (std::thread& client : clients) client.join();
}

// The engine does not wait for a router that stopped reading: the sequence is ended.
TEST(Life, ARouterThatDoesNotReadIsCutOff) {
  WorkerHarness harness(
      {.slow_consumer_kill = absl::Milliseconds(50), .small_stream_window = true});
  v1::WorkerSampling sampling = Greedy(30'000);
  sampling.set_num_logprobs(20);  // large messages fill the connection sooner
  const auto request = harness.NewRequest(MakePrompt(100), sampling);
  bool waited = false;
  const auto stop_reading = [&](grpc::ClientContext*, const v1::DecodeEvent& event) {
    if (!event.has_started() || std::exchange(waited, true)) return;
    const absl::Time end = absl::Now() + absl::Seconds(200);  // sanitizers make the engine slow
    while (absl::Now() < end && harness.decode()->Invariants().live_sequences() > 0) {
      absl::SleepFor(absl::Milliseconds(5));
    }
  };
  const WorkerHarness::Reply reply =
      harness.Run(request, nullptr, stop_reading, absl::Seconds(240));
  EXPECT_TRUE(reply.decode.status.code() == absl::StatusCode::kResourceExhausted ||
              reply.decode.status.code() == absl::StatusCode::kCancelled)
      << reply.decode.status;
  EXPECT_EQ(WorkerHarness::Metric(harness.decode()->host(), "hyserve_slow_consumers_total"), 1);
  EXPECT_LT(reply.decode.tokens.size(), 10'000u);
  EXPECT_TRUE(reply.decode.contiguous);
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(Admin, DescribeSaysWhatTheLayoutIs) {
  WorkerHarness harness;
  grpc::ClientContext context;
  v1::Registration registration;
  ASSERT_TRUE(
      harness.prefill_admin()->Describe(&context, v1::DescribeRequest(), &registration).ok());
  EXPECT_EQ(registration.name(), "prefill");
  EXPECT_EQ(registration.role(), v1::WORKER_ROLE_PREFILL);
  EXPECT_EQ(registration.address(), harness.prefill()->host().address());
  EXPECT_EQ(registration.layout_fingerprint(), harness.layout().Fingerprint());
  EXPECT_EQ(registration.kv_bytes_per_block(),
            static_cast<int64_t>(harness.layout().block_bytes()));
  EXPECT_EQ(registration.vocab_size(), 256);
  EXPECT_EQ(registration.protocol_version(), 1u);
  EXPECT_NE(registration.transfer().incarnation(), 0u);
  EXPECT_EQ(registration.transfer().transport(), "loopback");
}

TEST(Admin, ProbeMeasuresTheLink) {
  WorkerHarness harness;
  v1::ProbeLinkRequest request;
  *request.mutable_peer() = harness.prefill()->host().Describe().transfer();
  request.set_message_bytes(1 << 20);
  request.set_messages(4);
  v1::ProbeLinkResponse response;
  {
    grpc::ClientContext context;
    const grpc::Status status = harness.decode_admin()->ProbeLink(&context, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  EXPECT_GT(response.bytes_per_second(), 0);
  EXPECT_GT(WorkerHarness::Metric(harness.decode()->host(), "hyserve_kv_link_bytes_per_second",
                                  "pair=\"probe->decode\""),
            0);
  request.set_messages(1'000'000);
  grpc::ClientContext context;
  EXPECT_EQ(harness.decode_admin()->ProbeLink(&context, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(Refusals, BadRequestsNameTheField) {
  WorkerHarness harness({.monolithic = true});
  const auto expect_invalid = [&](v1::DecodeRequest request, const std::string& field) {
    const DecodeReply reply = harness.Decode(request);
    EXPECT_EQ(reply.status.code(), absl::StatusCode::kInvalidArgument) << reply.status;
    EXPECT_THAT(std::string(reply.status.message()), HasSubstr(field));
  };
  const auto good = harness.NewRequest(MakePrompt(10), Greedy(2));
  v1::DecodeRequest bad = good.decode;
  bad.mutable_id()->clear_request_id();
  expect_invalid(bad, "request_id");
  bad = good.decode;
  bad.set_cache_scope(std::string(65, 'x'));
  expect_invalid(bad, "cache_scope");
  bad = good.decode;
  bad.clear_ticket();
  expect_invalid(bad, "ticket");
  bad = good.decode;
  bad.clear_prompt();
  expect_invalid(bad, "prompt");
  bad = good.decode;
  bad.set_prompt(3, 256);
  expect_invalid(bad, "vocabulary");
  bad = good.decode;
  bad.mutable_sampling()->set_top_p(0);
  expect_invalid(bad, "top_p");
  EXPECT_EQ(harness.Local(good.decode).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(harness.WaitIdle());
  EXPECT_GT(WorkerHarness::Metric(harness.decode()->host(), "hyserve_rejected_total"), 0);
}

TEST(Startup, ABadModelIsAnErrorNotAHalfStart) {
  common::Config config;
  common::WorkerSettings settings;
  settings.role = settings.name = "prefill";
  config.model.path = "/nonexistent";
  EXPECT_FALSE(worker::WorkerCore::Create(config, settings).ok());
  config.model.path = "";
  config.model.random_preset = "no-such-preset";
  EXPECT_FALSE(worker::WorkerCore::Create(config, settings).ok());
  config.model.random_preset = "tiny";
  settings.kv_memory_bytes = 1024;
  EXPECT_FALSE(worker::WorkerCore::Create(config, settings).ok());
  settings.kv_memory_bytes = int64_t{16} << 20;
  settings.device = "cuda:99";
  EXPECT_FALSE(worker::WorkerCore::Create(config, settings).ok());
}

// The series that a served request moves, at the worker that serves it.
TEST(Metrics, AServedRequestMovesThem) {
  WorkerHarness harness({.chunk_tokens = 64, .monolithic = true});
  const std::vector<int32_t> prompt = MakePrompt(200);
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(harness.Run(harness.NewRequest(prompt, Greedy(6))).decode.status.ok());
  }
  ASSERT_TRUE(harness.WaitIdle());
  worker::WorkerHost& prefill = harness.prefill()->host();
  worker::WorkerHost& decode = harness.decode()->host();
  EXPECT_EQ(WorkerHarness::Metric(prefill, "vllm:prompt_tokens_total"), 400);
  EXPECT_EQ(WorkerHarness::Metric(prefill, "vllm:generation_tokens_total"), 2);
  EXPECT_EQ(WorkerHarness::Metric(decode, "vllm:generation_tokens_total"), 12);
  EXPECT_EQ(WorkerHarness::Metric(prefill, "vllm:prefix_cache_queries_total"), 400);
  EXPECT_GT(WorkerHarness::Metric(prefill, "vllm:prefix_cache_hits_total"), 0);
  EXPECT_GT(WorkerHarness::Metric(prefill, "vllm:iteration_tokens_total_count"), 0);
  EXPECT_GT(WorkerHarness::Metric(decode, "hyserve_engine_step_seconds_count"), 0);
  EXPECT_GT(WorkerHarness::Metric(decode, "hyserve_engine_last_step_timestamp"), 1e9);
  EXPECT_EQ(WorkerHarness::Metric(prefill, "vllm:time_to_first_token_seconds_count"), 2);
  EXPECT_EQ(WorkerHarness::Metric(prefill, "vllm:request_prefill_time_seconds_count"), 2);
  EXPECT_EQ(WorkerHarness::Metric(decode, "vllm:inter_token_latency_seconds_count"), 10);
  EXPECT_EQ(WorkerHarness::Metric(decode, "vllm:request_time_per_output_token_seconds_count"), 2);
  EXPECT_EQ(WorkerHarness::Metric(decode, "vllm:request_decode_time_seconds_count"), 2);
  for (worker::WorkerHost* host : {&prefill, &decode}) {
    EXPECT_EQ(WorkerHarness::Metric(*host, "vllm:e2e_request_latency_seconds_count"), 2);
    EXPECT_EQ(WorkerHarness::Metric(*host, "vllm:request_queue_time_seconds_count"), 2);
    EXPECT_EQ(WorkerHarness::Metric(*host, "vllm:request_inference_time_seconds_count"), 2);
    EXPECT_EQ(WorkerHarness::Metric(*host, "vllm:request_prompt_tokens_count"), 2);
    EXPECT_EQ(WorkerHarness::Metric(*host, "vllm:request_generation_tokens_count"), 2);
    EXPECT_EQ(WorkerHarness::Metric(*host, "vllm:request_success_total"), 2);
    EXPECT_EQ(WorkerHarness::Metric(*host, "hyserve_requests_total"), 2);
    EXPECT_EQ(WorkerHarness::Metric(*host, "vllm:cache_config_info"), 1);
    EXPECT_EQ(WorkerHarness::Metric(*host, "hyserve_model_info"), 1);
    EXPECT_EQ(WorkerHarness::Metric(*host, "hyserve_build_info"), 1);
    EXPECT_GT(WorkerHarness::Metric(*host, "hyserve_kv_blocks_capacity"), 0);
    EXPECT_EQ(WorkerHarness::Metric(*host, "hyserve_kv_full_attention_bytes_total"),
              2 * harness.layout().FullAttentionBytes(200));
    EXPECT_GT(WorkerHarness::Metric(*host, "hyserve_kv_transfer_bytes_total"), 0);
    EXPECT_GT(WorkerHarness::Metric(*host, "hyserve_handoff_seconds_count"), 0);
  }
  EXPECT_EQ(WorkerHarness::Metric(decode, "hyserve_kv_transfer_seconds_count"), 2);
  EXPECT_EQ(WorkerHarness::Metric(decode, "hyserve_kv_transfer_exposed_seconds_count"), 2);
  EXPECT_EQ(WorkerHarness::Metric(decode, "hyserve_prompt_tokens_recomputed_total"), 0);
  EXPECT_GT(WorkerHarness::Metric(decode, "hyserve_kv_link_bytes_per_second"), 0);
}

// Gauges while a request runs, and back.
TEST(Metrics, GaugesFollowTheEngine) {
  WorkerHarness harness({.max_sequences = 1});
  worker::WorkerHost& decode = harness.decode()->host();
  const auto request = harness.NewRequest(MakePrompt(100), Greedy(20'000));
  double running = -1, usage = -1, used = -1;
  harness.Run(request, nullptr, [&](grpc::ClientContext* context, const v1::DecodeEvent& event) {
    if (!event.has_tokens() || running >= 0) return;
    running = WorkerHarness::Metric(decode, "vllm:num_requests_running");
    usage = WorkerHarness::Metric(decode, "vllm:kv_cache_usage_perc");
    used = WorkerHarness::Metric(decode, "hyserve_kv_blocks", "state=\"used\"");
    context->TryCancel();
  });
  EXPECT_EQ(running, 1);
  EXPECT_GT(usage, 0);
  EXPECT_GT(used, 0);
  ASSERT_TRUE(harness.WaitIdle());
  EXPECT_EQ(WorkerHarness::Metric(decode, "vllm:num_requests_running"), 0);
  EXPECT_EQ(WorkerHarness::Metric(decode, "vllm:kv_cache_usage_perc"), 0);
}

}  // namespace
}  // namespace hyserve::test
