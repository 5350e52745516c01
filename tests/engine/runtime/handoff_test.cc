// kLocal == kPrefill + transfer + kDecode, token by token.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <tuple>
#include <vector>

#include "tests/engine/runtime/engine_harness.h"
#include "tests/engine/runtime/fake_engine.h"

namespace hyserve::runtime {
namespace {

using sampling::SamplingParams;

const std::vector<int> kLengths = {1, 63, 64, 65, 127, 128, 129, 300, 600};

std::vector<SamplingParams> Samplings() {
  return {{.temperature = 0, .max_tokens = 70},
          {.temperature = 0.8f,
           .top_p = 0.95f,
           .top_k = 50,
           .frequency_penalty = 0.4f,
           .presence_penalty = 0.2f,
           .repetition_penalty = 1.1f,
           .seed = 77,
           .max_tokens = 40,
           .num_logprobs = 3}};
}

FakeEngineOptions WithChunk(int32_t chunk_tokens, bool windows = true, bool cache = true) {
  FakeEngineOptions options;
  options.engine.chunk_tokens = chunk_tokens;
  options.engine.prefix_cache = cache;
  options.engine.snapshot_interval_tokens = 128;
  options.engine.max_sequences = 8;
  options.has_window_layers = windows;
  return options;
}

class HandoffTest : public testing::TestWithParam<std::tuple<int, bool>> {};

TEST_P(HandoffTest, EqualsLocalTokenByToken) {
  const auto [chunk_tokens, windows] = GetParam();
  FakeEngine reference(WithChunk(1024, windows, false));
  FakeEngine local(WithChunk(chunk_tokens, windows));
  FakeEngine prefill(WithChunk(chunk_tokens, windows));
  FakeEngine decode(WithChunk(chunk_tokens, windows, false));
  SequenceId id = 1;
  for (const SamplingParams& params : Samplings()) {
    for (const int length : kLengths) {
      SCOPED_TRACE(length);
      // Twice: without and with a prefix in the cache. Lengths of one seed share prefixes as well.
      for (const Pull pull : {Pull::kPerLayer, Pull::kAtTheEnd}) {
        const auto request = [&] {
          return Request(id, SequenceMode::kLocal, Prompt(length, 5), params);
        };
        const Record expected = RunLocal(*reference, request());
        ASSERT_EQ(expected.status, absl::OkStatus());
        ASSERT_FALSE(expected.tokens.empty());
        const Record at_once = RunLocal(*local, request());
        const Record handed = RunHandoff(*prefill, *decode, request(), pull);
        ++id;
        EXPECT_EQ(at_once.tokens, expected.tokens);
        EXPECT_EQ(handed.tokens, expected.tokens);
        EXPECT_EQ(handed.token_indices, expected.token_indices);
        EXPECT_EQ(handed.reason, expected.reason);
        EXPECT_EQ(handed.usage.generated_tokens, expected.usage.generated_tokens);
        EXPECT_EQ(expected.cached_tokens, 0);
        if (pull == Pull::kAtTheEnd) {
          EXPECT_EQ(at_once.cached_tokens, (length - 1) / 64 * 64) << "asked before";
          EXPECT_EQ(handed.usage.cached_tokens, (length - 1) / 64 * 64);
        }
        EXPECT_EQ(handed.selection.size(), 2u);
      }
    }
  }
  AwaitAllFree(*local);
  AwaitAllFree(*prefill);
  AwaitAllFree(*decode);
}

INSTANTIATE_TEST_SUITE_P(ChunksAndWindows, HandoffTest,
                         testing::Combine(testing::Values(64, 128, 256, 1024), testing::Bool()));

TEST(ConcurrentHandoffTest, EightAtOnceDoNotMix) {
  FakeEngine reference(WithChunk(1024, true, false));
  FakeEngine prefill(WithChunk(128));
  FakeEngine decode(WithChunk(128));
  std::vector<std::thread> clients;
  for (int client = 0; client < 8; ++client) {
    clients.emplace_back([&, client] {
      for (int round = 0; round < 6; ++round) {
        const SequenceId id = 100 * client + round + 1;
        // Half of the clients share a prefix and so each other's blocks.
        auto request = Request(id, SequenceMode::kLocal,
                               Prompt(60 + 37 * ((client * 3 + round) % 12), client / 2),
                               Samplings()[round % 2]);
        const Record expected = RunLocal(*reference, request);
        const Record handed = RunHandoff(*prefill, *decode, request,
                                         round % 2 ? Pull::kPerLayer : Pull::kAtTheEnd);
        EXPECT_EQ(handed.tokens, expected.tokens) << "client " << client << " round " << round;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  AwaitAllFree(*prefill);
  AwaitAllFree(*decode);
}

TEST(PrefixCacheEquivalenceTest, HitEqualsMissAtEveryBoundary) {
  for (const bool windows : {true, false}) {
    FakeEngine reference(WithChunk(256, windows, false));
    FakeEngine cached(WithChunk(256, windows));
    SequenceId id = 1;
    // Prompts that leave a common text at every block boundary and beside it, 0 to 3 blocks + 1.
    for (int shared = 0; shared <= 193; shared += shared % 64 == 1 ? 62 : 1) {
      for (const int extra : {1, 63, 64, 65}) {
        std::vector<int32_t> prompt = Prompt(shared, 3);
        const auto own = Prompt(extra, static_cast<uint32_t>(1000 + id));
        prompt.insert(prompt.end(), own.begin(), own.end());
        const auto request = Request(id++, SequenceMode::kLocal, prompt);
        EXPECT_EQ(RunLocal(*cached, request).tokens, RunLocal(*reference, request).tokens)
            << "shared " << shared << " extra " << extra;
      }
    }
  }
}

TEST(PriorTokensTest, ANewAttemptContinuesTheStreamOfTheOldOne) {
  FakeEngine engine;
  SamplingParams params = Samplings()[1];
  params.ignore_eos = true;
  const auto prompt = Prompt(100, 9);
  const Record whole = RunLocal(*engine, Request(1, SequenceMode::kLocal, prompt, params));
  ASSERT_EQ(whole.tokens.size(), 40u);
  for (const int committed : {1, 7, 39}) {
    auto again = Request(2, SequenceMode::kLocal, prompt, params);
    for (int i = 0; i < committed; ++i) again.prompt.push_back(whole.tokens[i].token_id);
    again.prior_generated_tokens = committed;
    again.sampling.max_tokens -= committed;
    const Record rest = RunLocal(*engine, again);
    EXPECT_EQ(rest.tokens, std::vector(whole.tokens.begin() + committed, whole.tokens.end()));
  }
}

}  // namespace
}  // namespace hyserve::runtime
