// With real arithmetic: kLocal == kPrefill + transfer + kDecode on random weights, f32 cache.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "tests/engine/runtime/engine_harness.h"

namespace hyserve::runtime {
namespace {

using sampling::SamplingParams;

std::unique_ptr<Engine> MakeTiny(int32_t chunk_tokens, bool cache) {
  EngineOptions options;
  options.device.num_threads = 1;
  options.random_preset = "tiny";
  options.random_dtype = tensor::DType::kF32;
  options.random_seed = 11;
  options.model.kv_dtype = tensor::DType::kF32;
  options.kv_memory_bytes = int64_t{32} << 20;
  options.max_sequences = 8;
  options.chunk_tokens = chunk_tokens;
  options.prefix_cache = cache;
  options.snapshot_slabs = 8;
  options.snapshot_interval_tokens = 128;
  auto engine = Engine::Create(options, nullptr);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return engine.ok() ? *std::move(engine) : nullptr;
}

std::vector<SamplingParams> Samplings() {
  return {{.temperature = 0, .max_tokens = 12},
          {.temperature = 0.9f, .top_p = 0.9f, .repetition_penalty = 1.1f, .seed = 5,
           .max_tokens = 12}};
}

TEST(EngineModelTest, HandoffEqualsLocalTokenByToken) {
  const auto reference = MakeTiny(1024, false);
  ASSERT_NE(reference, nullptr);
  const int32_t vocab = reference->config().vocab_size;
  const auto decode = MakeTiny(64, false);
  for (const int32_t chunk : {64, 128, 1024}) {
    SCOPED_TRACE(chunk);
    const auto prefill = MakeTiny(chunk, true);
    const auto local = MakeTiny(chunk, true);
    SequenceId id = 1;
    for (const int length : {1, 63, 64, 65, 127, 128, 129, 400}) {
      for (const SamplingParams& params : Samplings()) {
        // The second sampling finds the prompt in the cache.
        const auto request = Request(id++, SequenceMode::kLocal, Prompt(length, 3, vocab), params);
        const Record expected = RunLocal(*reference, request);
        ASSERT_EQ(expected.status, absl::OkStatus());
        EXPECT_EQ(RunLocal(*local, request).TokenIds(), expected.TokenIds()) << length;
        const Record handed = RunHandoff(*prefill, *decode, request, Pull::kPerLayer);
        EXPECT_EQ(handed.TokenIds(), expected.TokenIds()) << length;
        EXPECT_EQ(handed.reason, expected.reason);
        EXPECT_EQ(handed.selection.size() * sizeof(int32_t),
                  prefill->layout().selection_bytes());
      }
    }
    AwaitAllFree(*prefill);
    AwaitAllFree(*local);
  }
  AwaitAllFree(*decode);
}

TEST(EngineModelTest, EightAtOnceDoNotMix) {
  const auto reference = MakeTiny(1024, false);
  const auto prefill = MakeTiny(128, true);
  const auto decode = MakeTiny(128, false);
  ASSERT_NE(reference, nullptr);
  const int32_t vocab = reference->config().vocab_size;
  std::vector<std::thread> clients;
  for (int client = 0; client < 8; ++client) {
    clients.emplace_back([&, client] {
      for (int round = 0; round < 2; ++round) {
        const auto request = Request(10 * client + round, SequenceMode::kLocal,
                                     Prompt(50 + 41 * client, client / 2, vocab),
                                     Samplings()[round]);
        const Record expected = RunLocal(*reference, request);
        const Record handed = RunHandoff(*prefill, *decode, request, Pull::kAtTheEnd);
        EXPECT_EQ(handed.TokenIds(), expected.TokenIds()) << client << " " << round;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  AwaitAllFree(*prefill);
  AwaitAllFree(*decode);
}

TEST(EngineCreateTest, FaultsOfOptionsAreStatuses) {
  EngineOptions options;
  options.device.num_threads = 1;
  EXPECT_EQ(Engine::Create(options, nullptr).status().code(), absl::StatusCode::kInvalidArgument)
      << "neither a checkpoint nor a preset";
  options.random_preset = "no such preset";
  EXPECT_EQ(Engine::Create(options, nullptr).status().code(), absl::StatusCode::kNotFound);
  options.random_preset = "tiny";
  options.kv_memory_bytes = 1000;
  EXPECT_EQ(Engine::Create(options, nullptr).status().code(), absl::StatusCode::kInvalidArgument);
  options.kv_memory_bytes = int64_t{1} << 30;
  options.device.name = "no such device";
  EXPECT_EQ(Engine::Create(options, nullptr).status().code(), absl::StatusCode::kInvalidArgument);
  options.device.name = "cpu";
  options.random_preset.clear();
  options.model_directory = "/no/such/directory";
  EXPECT_FALSE(Engine::Create(options, nullptr).ok());
}

}  // namespace
}  // namespace hyserve::runtime
