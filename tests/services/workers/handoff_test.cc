// A hand-off gives the tokens that one process gives, and ships what the formula says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/services/workers/worker_harness.h"

namespace hyserve::test {
namespace {

constexpr int32_t kMaxTokens = 12;

void ExpectGoodHandoff(WorkerHarness& harness, const WorkerHarness::Request& request,
                       const WorkerHarness::Reply& reply) {
  const int32_t length = request.prefill.prompt_size();
  EXPECT_TRUE(reply.prefill.status.ok()) << reply.prefill.status;
  EXPECT_TRUE(reply.decode.status.ok()) << reply.decode.status;
  EXPECT_EQ(reply.prefill.handoff, "committed");
  EXPECT_FALSE(reply.prefill.finished);
  ASSERT_FALSE(reply.prefill.progress.empty());
  EXPECT_EQ(reply.prefill.progress.back(), length);
  EXPECT_TRUE(reply.decode.reserved);
  EXPECT_TRUE(reply.decode.started);
  EXPECT_EQ(reply.decode.handoff.shipped_bytes(), harness.layout().HandoffBytes(length));
  EXPECT_EQ(reply.decode.handoff.recomputed_tokens(), 0);
  EXPECT_EQ(reply.decode.first_index, 1);
  EXPECT_TRUE(reply.decode.contiguous);
  EXPECT_EQ(reply.decode.finished_count, 1);
  EXPECT_TRUE(reply.decode.finished.by_length());
  EXPECT_EQ(reply.decode.finished.generated_tokens(), request.decode.sampling().max_tokens());
}

class Handoff : public testing::TestWithParam<int32_t> {};  // chunk_tokens

TEST_P(Handoff, EqualsOneProcessTokenByToken) {
  WorkerHarness harness({.chunk_tokens = GetParam(), .monolithic = true});
  for (const int32_t length : {1, 63, 64, 65, 129, 1025}) {
    for (const bool greedy : {true, false}) {
      SCOPED_TRACE(testing::Message() << length << " tokens, " << (greedy ? "greedy" : "seeded"));
      const auto request =
          harness.NewRequest(MakePrompt(length, length), greedy ? Greedy(kMaxTokens)
                                                                : Seeded(kMaxTokens, 41 + length));
      const DecodeReply local = harness.Local(WorkerHarness::WithoutTicket(request));
      ASSERT_TRUE(local.status.ok()) << local.status;
      ASSERT_EQ(local.tokens.size(), static_cast<size_t>(kMaxTokens));
      const WorkerHarness::Reply reply = harness.Run(request);
      ExpectGoodHandoff(harness, request, reply);
      EXPECT_EQ(reply.tokens, local.tokens);
    }
  }
  EXPECT_TRUE(harness.WaitIdle());
}

INSTANTIATE_TEST_SUITE_P(ChunkSizes, Handoff, testing::Values(64, 256, 1024));

TEST(HandoffMany, EightAtOnceEqualOneProcess) {
  WorkerHarness harness({.chunk_tokens = 128, .monolithic = true});
  std::vector<WorkerHarness::Request> requests;
  std::vector<DecodeReply> local;
  for (int i = 0; i < 8; ++i) {
    requests.push_back(harness.NewRequest(
        MakePrompt(40 + 97 * i, i), i % 2 == 0 ? Greedy(kMaxTokens) : Seeded(kMaxTokens, i)));
    local.push_back(harness.Local(WorkerHarness::WithoutTicket(requests.back())));
  }
  std::vector<WorkerHarness::Reply> replies(8);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] { replies[i] = harness.Run(requests[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 8; ++i) {
    SCOPED_TRACE(i);
    ExpectGoodHandoff(harness, requests[i], replies[i]);
    EXPECT_EQ(replies[i].tokens, local[i].tokens);
  }
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(HandoffCache, AHitShipsAndGeneratesTheSame) {
  WorkerHarness harness;
  const std::vector<int32_t> prompt = MakePrompt(400);
  const auto miss_request = harness.NewRequest(prompt, Greedy(kMaxTokens));
  const WorkerHarness::Reply miss = harness.Run(miss_request);
  const auto hit_request = harness.NewRequest(prompt, Greedy(kMaxTokens));
  const WorkerHarness::Reply hit = harness.Run(hit_request);
  ExpectGoodHandoff(harness, miss_request, miss);
  ExpectGoodHandoff(harness, hit_request, hit);
  EXPECT_EQ(miss.prefill.cached_tokens, 0);
  EXPECT_GT(hit.prefill.cached_tokens, 0);
  EXPECT_EQ(hit.tokens, miss.tokens);

  auto off_request = harness.NewRequest(prompt, Greedy(kMaxTokens));
  off_request.prefill.set_use_prefix_cache(false);
  const WorkerHarness::Reply off = harness.Run(off_request);
  EXPECT_EQ(off.prefill.cached_tokens, 0);
  EXPECT_EQ(off.tokens, miss.tokens);
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(HandoffNotNeeded, TheOnlyTokenAllowedIsTheFirst) {
  WorkerHarness harness;
  const auto request = harness.NewRequest(MakePrompt(100), Greedy(1));
  const PrefillReply reply = harness.Prefill(request.prefill);
  EXPECT_TRUE(reply.status.ok()) << reply.status;
  EXPECT_TRUE(reply.finished);
  EXPECT_TRUE(reply.finished_by_length);
  EXPECT_EQ(reply.handoff, "not_needed");
  EXPECT_TRUE(harness.WaitIdle());
}

// Decode is cancelled by the router when it has seen token 1, not told to fail by prefill.
TEST(HandoffNotNeeded, TheFirstTokenIsAStopToken) {
  WorkerHarness harness;
  v1::WorkerSampling sampling = Greedy(8);
  (*sampling.mutable_logit_bias())[17] = 100;
  sampling.add_stop_token_ids(17);
  const auto request = harness.NewRequest(MakePrompt(100), sampling);
  std::atomic<grpc::ClientContext*> decode_context{nullptr};
  const WorkerHarness::Reply reply = harness.Run(
      request,
      [&](grpc::ClientContext*, const v1::PrefillEvent& event) {
        if (!event.has_first_token()) return;
        while (decode_context == nullptr) std::this_thread::yield();
        decode_context.load()->TryCancel();
      },
      [&](grpc::ClientContext* context, const v1::DecodeEvent&) { decode_context = context; });
  EXPECT_TRUE(reply.prefill.status.ok()) << reply.prefill.status;
  EXPECT_EQ(reply.prefill.first_token, 17);
  EXPECT_TRUE(reply.prefill.finished);
  EXPECT_FALSE(reply.prefill.finished_by_length);
  EXPECT_EQ(reply.prefill.handoff, "not_needed");
  EXPECT_EQ(reply.decode.status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(HandoffLogprobs, OfPromptAndTokens) {
  WorkerHarness harness;
  v1::WorkerSampling sampling = Greedy(4);
  sampling.set_num_logprobs(3);
  auto request = harness.NewRequest(MakePrompt(150), sampling);
  request.prefill.set_num_prompt_logprobs(2);
  int tops = 0;
  const WorkerHarness::Reply reply = harness.Run(
      request, nullptr, [&](grpc::ClientContext*, const v1::DecodeEvent& event) {
        for (const v1::SampledToken& token : event.tokens().tokens()) tops += token.top_size();
      });
  EXPECT_TRUE(reply.decode.status.ok()) << reply.decode.status;
  EXPECT_EQ(reply.prefill.prompt_logprobs, 149);
  EXPECT_EQ(tops, 3 * 3);
  EXPECT_TRUE(harness.WaitIdle());
}

}  // namespace
}  // namespace hyserve::test
