// The router as a client sees it, over real gRPC with correct fake workers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "services/common/status_mapping.h"
#include "tests/support/byte_tokenizer.h"
#include "tests/support/router_harness.h"

namespace hyserve::test {
namespace {

using ::testing::HasSubstr;

const std::vector<int32_t> kPrompt = {10, 20, 30};

TEST(Router, StreamsOneRequestThroughBothWorkers) {
  RouterHarness harness;
  FakeWorker* const prefill = harness.AddPrefill("p0");
  FakeWorker* const decode = harness.AddDecode("d0");
  v1::GenerateRequest request = RouterHarness::TokenRequest(kPrompt, 20);
  request.set_request_id("my-id");
  request.mutable_output()->set_report_progress(true);
  const Reply reply = harness.Generate(request);
  ASSERT_TRUE(reply.status.ok()) << reply.status;
  EXPECT_EQ(reply.text, FakeText(kPrompt, 20));
  EXPECT_EQ(reply.token_ids.size(), 20u);
  EXPECT_TRUE(reply.contiguous);
  EXPECT_EQ(reply.finished_count, 1);
  ASSERT_TRUE(reply.messages[0].has_accepted());
  EXPECT_EQ(reply.messages[0].accepted().request_id(), "my-id");
  EXPECT_EQ(reply.messages[0].accepted().prompt_tokens(), 3);
  EXPECT_TRUE(reply.messages[1].has_progress());
  const v1::Finished& finished = reply.finished;
  EXPECT_EQ(finished.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(finished.usage().prompt_tokens(), 3);
  EXPECT_EQ(finished.usage().generated_tokens(), 20);
  EXPECT_EQ(finished.usage().cached_tokens(), 64);
  EXPECT_EQ(finished.handoff().prefill_worker(), "p0");
  EXPECT_EQ(finished.handoff().decode_worker(), "d0");
  EXPECT_EQ(finished.handoff().shipped_bytes(), 1000u);
  EXPECT_EQ(finished.handoff().full_attention_bytes(), 5000u);
  EXPECT_EQ(finished.handoff().attempts(), 1u);
  EXPECT_EQ(finished.timings().prefill_ms(), 1.5);
  EXPECT_GT(finished.timings().total_ms(), 0);
  EXPECT_NE(finished.seed(), 0u);
  EXPECT_EQ(prefill->prefill_calls(), 1);
  EXPECT_EQ(decode->decode_calls(), 1);
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(Router, TicketNamesThePrefillWorkerAndTheAttempt) {
  RouterHarness harness;
  FakeWorker* const prefill = harness.AddPrefill("p0");
  FakeWorker* const decode = harness.AddDecode("d0");
  std::mutex mutex;
  v1::PrefillRequest seen_prefill;
  v1::DecodeRequest seen_decode;
  prefill->OnPrefill([&](grpc::ServerContext* context, const v1::PrefillRequest& request,
                         PrefillWriter* writer) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      seen_prefill = request;
    }
    return GoodPrefill(context, request, writer);
  });
  decode->OnDecode([&](grpc::ServerContext* context, const v1::DecodeRequest& request,
                       DecodeWriter* writer) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      seen_decode = request;
    }
    return GoodDecode(context, request, writer);
  });
  v1::GenerateRequest request = RouterHarness::TokenRequest(kPrompt, 5);
  request.mutable_sampling()->set_temperature(0.5);
  request.mutable_sampling()->set_seed(77);
  request.set_cache_scope("scope");
  ASSERT_TRUE(harness.Generate(request).status.ok());
  std::lock_guard<std::mutex> lock(mutex);
  EXPECT_EQ(seen_decode.ticket().transfer_id().size(), 16u);
  EXPECT_EQ(seen_decode.ticket().SerializeAsString(), seen_prefill.ticket().SerializeAsString());
  EXPECT_EQ(seen_decode.sampling().SerializeAsString(),
            seen_prefill.sampling().SerializeAsString());
  EXPECT_EQ(seen_decode.ticket().layout_fingerprint(), "layout");
  EXPECT_NE(seen_decode.ticket().source().incarnation(), 0u);
  EXPECT_EQ(seen_decode.id().attempt(), 1u);
  EXPECT_EQ(seen_prefill.sampling().seed(), 77u);
  EXPECT_EQ(seen_prefill.sampling().temperature(), 0.5f);
  EXPECT_EQ(seen_prefill.cache_scope(), "scope");
  EXPECT_EQ(std::vector<int32_t>(seen_prefill.prompt().begin(), seen_prefill.prompt().end()),
            kPrompt);
}

TEST(Router, TextAndChatPromptsAreTokenizedShortAndLong) {
  common::Config config = RouterHarness::DefaultConfig();
  config.router.inline_text_bytes = 100;
  RouterHarness harness(config);
  harness.AddPrefill("p0");
  harness.AddDecode("d0");
  for (const size_t length : {5, 500}) {  // 500: through the pool
    v1::GenerateRequest request;
    request.set_text(std::string(length, 'x'));
    request.mutable_stopping()->set_max_tokens(4);
    const Reply reply = harness.Generate(request);
    ASSERT_TRUE(reply.status.ok()) << reply.status;
    EXPECT_EQ(reply.finished.usage().prompt_tokens(), static_cast<int32_t>(length));
    EXPECT_EQ(reply.text, FakeText(std::vector<int32_t>(length, 'x'), 4));
  }
  v1::GenerateRequest chat;
  chat.mutable_chat()->add_messages()->set_role("user");
  chat.mutable_chat()->mutable_messages(0)->set_content("hey");
  chat.mutable_stopping()->set_max_tokens(2);
  EXPECT_EQ(harness.Generate(chat).finished.usage().prompt_tokens(), 6);
}

TEST(Router, AStopStringEndsTheRequestAndFreesTheWorkers) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  FakeWorker* const decode = harness.AddDecode("d0");
  decode->OnDecode([](grpc::ServerContext* context, const v1::DecodeRequest& request,
                      DecodeWriter* writer) {
    SendStarted(writer);
    SendTokens(request, 1, 9, writer);
    return UntilCancelled(context);  // never finishes by itself
  });
  const std::string text = FakeText(kPrompt, 10);
  v1::GenerateRequest request = RouterHarness::TokenRequest(kPrompt, 100);
  request.mutable_stopping()->add_stop(text.substr(5, 3));
  const Reply reply = harness.Generate(request);
  ASSERT_TRUE(reply.status.ok()) << reply.status;
  EXPECT_EQ(reply.text, text.substr(0, 5));
  EXPECT_EQ(reply.finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(reply.finished.stop(), text.substr(5, 3));
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(Router, MonolithicWorkersServeAlone) {
  RouterHarness harness;
  FakeWorker* const worker = harness.Add({.name = "m0", .role = v1::WORKER_ROLE_MONOLITHIC});
  const Reply reply = harness.Generate(RouterHarness::TokenRequest(kPrompt, 6));
  ASSERT_TRUE(reply.status.ok()) << reply.status;
  EXPECT_EQ(reply.text, FakeText(kPrompt, 6));
  EXPECT_EQ(reply.finished.handoff().prefill_worker(), "");
  EXPECT_EQ(reply.finished.handoff().shipped_bytes(), 0u);
  EXPECT_EQ(worker->prefill_calls(), 0);
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(Router, LogprobsCarryTheTokensBytes) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  harness.AddDecode("d0");
  v1::GenerateRequest request = RouterHarness::TokenRequest(kPrompt, 3);
  request.mutable_output()->set_logprobs(1);
  const Reply reply = harness.Generate(request);
  std::vector<v1::TokenLogprobs> rows;
  for (const auto& message : reply.messages) {
    rows.insert(rows.end(), message.tokens().logprobs().begin(), message.tokens().logprobs().end());
  }
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].chosen().token(), FakeText(kPrompt, 1));
  EXPECT_EQ(rows[0].chosen().logprob(), -0.5f);
  EXPECT_EQ(rows[1].top(0).token(), "z");
}

TEST(Router, RefusesWithDetails) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  harness.AddDecode("d0");
  v1::GenerateRequest request = RouterHarness::TokenRequest({1, 999}, 0);
  const Reply reply = harness.Generate(request);
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kInvalidArgument);
  const auto violations = common::FieldViolations(reply.status);
  ASSERT_EQ(violations.size(), 2u);
  EXPECT_EQ(violations[0].field, "token_ids.ids[1]");
  EXPECT_EQ(violations[1].field, "stopping.max_tokens");
  request = RouterHarness::TokenRequest(kPrompt, 5000);
  EXPECT_THAT(harness.Generate(request).status.ToString(), HasSubstr("exceed context 4096"));
  request.set_model("another");
  EXPECT_EQ(harness.Generate(request).status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(harness.Metric("hyserve_rejected_total{model=\"fake\",reason=\"invalid\""), 3);
}

TEST(Router, WithoutWorkersItIsNotReadyAndSaysSo) {
  RouterHarness harness;
  EXPECT_EQ(harness.router()->NotReadyReason(), "no pair of workers");
  const Reply reply = harness.Generate(RouterHarness::TokenRequest(kPrompt, 5));
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(common::RetryDelay(reply.status).has_value());
  EXPECT_EQ(reply.pushback_ms, "1000");
  EXPECT_EQ(harness.Metric("hyserve_rejected_total{model=\"fake\",reason=\"no_capacity\""), 1);
}

TEST(Router, TokenizeDetokenizeAndGetModel) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  harness.AddDecode("d0");
  harness.AddDecode("d1");
  {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text("ab");
    v1::TokenizeResponse response;
    ASSERT_TRUE(harness.stub()->Tokenize(&context, request, &response).ok());
    EXPECT_EQ(response.token_ids_size(), 2);
    EXPECT_EQ(response.token_ids(1), 'b');
  }
  {
    grpc::ClientContext context;
    v1::DetokenizeRequest request;
    request.add_token_ids('h');
    request.add_token_ids(kEndTokenId);
    v1::DetokenizeResponse response;
    ASSERT_TRUE(harness.stub()->Detokenize(&context, request, &response).ok());
    EXPECT_EQ(response.text(), "h");
    request.add_token_ids(-1);
    grpc::ClientContext second;
    EXPECT_EQ(harness.stub()->Detokenize(&second, request, &response).error_code(),
              grpc::StatusCode::INVALID_ARGUMENT);
  }
  grpc::ClientContext context;
  v1::GetModelResponse model;
  ASSERT_TRUE(harness.stub()->GetModel(&context, v1::GetModelRequest(), &model).ok());
  EXPECT_EQ(model.name(), "fake");
  EXPECT_EQ(model.vocab_size(), 259);
  EXPECT_EQ(model.prefill_workers(), 1);
  EXPECT_EQ(model.decode_workers(), 2);
  EXPECT_EQ(model.kv_bytes_per_token(), 1000 / 64);
}

TEST(Router, ManyRequestsAtOnceAllEndRight) {
  RouterHarness harness;
  for (const char* name : {"p0", "p1"}) harness.AddPrefill(name);
  for (const char* name : {"d0", "d1"}) harness.AddDecode(name);
  std::atomic<int> good{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < 8; ++c) {
    clients.emplace_back([&, c] {
      for (int i = 0; i < 25; ++i) {
        const std::vector<int32_t> prompt(70 + c, i);
        const Reply reply = harness.Generate(RouterHarness::TokenRequest(prompt, 12));
        good += reply.status.ok() && reply.contiguous && reply.text == FakeText(prompt, 12);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(good, 200);
  EXPECT_TRUE(harness.WaitIdle());
  EXPECT_EQ(harness.Metric("vllm:request_success_total{engine=\"0\",finished_reason=\"length\""),
            200);
}

TEST(Router, MetricsMoveWithRequests) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  harness.AddDecode("d0");
  const std::vector<int32_t> prompt(128, 5);
  ASSERT_TRUE(harness.Generate(RouterHarness::TokenRequest(prompt, 10)).status.ok());
  ASSERT_TRUE(harness.WaitIdle());
  ASSERT_TRUE(harness.Generate(RouterHarness::TokenRequest(prompt, 10)).status.ok());
  ASSERT_TRUE(harness.WaitIdle());
  const auto vllm = [&](const std::string& name) {
    return harness.Metric("vllm:" + name + "{engine=\"0\",model_name=\"fake\",role=\"router\"}");
  };
  EXPECT_EQ(vllm("prompt_tokens_total"), 256);
  EXPECT_EQ(vllm("generation_tokens_total"), 20);
  EXPECT_EQ(vllm("time_to_first_token_seconds_count"), 2);
  EXPECT_EQ(vllm("inter_token_latency_seconds_count"), 18);
  EXPECT_EQ(vllm("request_time_per_output_token_seconds_count"), 2);
  EXPECT_EQ(vllm("e2e_request_latency_seconds_count"), 2);
  EXPECT_EQ(vllm("request_queue_time_seconds_count"), 2);
  EXPECT_EQ(vllm("request_prefill_time_seconds_count"), 2);
  EXPECT_EQ(vllm("request_decode_time_seconds_count"), 2);
  EXPECT_EQ(vllm("request_inference_time_seconds_count"), 2);
  EXPECT_EQ(vllm("request_prompt_tokens_sum"), 256);
  EXPECT_EQ(vllm("request_generation_tokens_sum"), 20);
  const auto own = [&](const std::string& name, const std::string& labels = "") {
    return harness.Metric("hyserve_" + name + "{" + labels);
  };
  EXPECT_EQ(own("router_requests_total"), 2);
  EXPECT_EQ(own("router_queue_seconds_count"), 2);
  EXPECT_EQ(own("router_decision_seconds_count"), 2);
  EXPECT_EQ(own("router_prefix_hit_tokens_total"), 128);  // the second request's
  EXPECT_EQ(own("requests_total", "code=\"OK\""), 2);
  EXPECT_EQ(own("build_info"), 1);
}

}  // namespace
}  // namespace hyserve::test
