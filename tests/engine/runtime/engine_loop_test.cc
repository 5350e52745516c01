// Promises of engine.h: events and their order, answers to bad requests, prompt log-probabilities.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "absl/synchronization/notification.h"
#include "tests/engine/runtime/engine_harness.h"
#include "tests/engine/runtime/fake_engine.h"

namespace hyserve::runtime {
namespace {

using sampling::FinishReason;
using sampling::SamplingParams;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(EngineLoopTest, PrefillTellsItsEventsInOrder) {
  FakeEngineOptions options;
  options.engine.chunk_tokens = 64;
  FakeEngine engine(options);
  auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine->Submit(Request(1, SequenceMode::kPrefill, Prompt(100, 1)), sink).ok());
  const Record record = sink->AwaitEnd();
  EXPECT_THAT(record.calls, ElementsAre("admitted", "layer", "layer", "progress", "layer", "layer",
                                        "progress", "done", "tokens", "finished"));
  EXPECT_THAT(record.layers_ready,
              ElementsAre(std::pair(0, 64), std::pair(1, 64), std::pair(0, 100),
                          std::pair(1, 100)));
  EXPECT_EQ(record.progress, 100);
  EXPECT_EQ(record.kv->blocks.size(), 2u);
  EXPECT_THAT(record.selection, ElementsAre(0, 1));
  EXPECT_EQ(record.reason, FinishReason::kNone) << "generation goes on elsewhere";
  EXPECT_EQ(record.usage.prompt_tokens, 100);
  EXPECT_EQ(record.usage.generated_tokens, 1);
  EXPECT_EQ(engine->load().blocks_used, 2) << "pinned for the hand-off";
  EXPECT_EQ(engine->load().slabs_used, 1);
  engine->Release(1);
  engine->Release(1);
  AwaitAllFree(*engine);
  EXPECT_EQ(sink->Now().calls.size(), record.calls.size()) << "nothing after the end";
}

TEST(EngineLoopTest, PrefillOfOneTokenRequestEndsWithLength) {
  FakeEngine engine;
  auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine->Submit(Request(1, SequenceMode::kPrefill, Prompt(5, 1),
                                     {.temperature = 0, .max_tokens = 1}),
                             sink)
                  .ok());
  EXPECT_EQ(sink->AwaitEnd().reason, FinishReason::kLength);
  engine->Release(1);
  AwaitAllFree(*engine);
}

TEST(EngineLoopTest, LocalTellsItsEventsInOrder) {
  FakeEngine engine;
  const Record record = RunLocal(*engine, Request(1, SequenceMode::kLocal, Prompt(10, 1),
                                                  {.temperature = 0, .max_tokens = 3,
                                                   .ignore_eos = true}));
  EXPECT_THAT(record.calls,
              ElementsAre("admitted", "progress", "tokens", "tokens", "tokens", "finished"));
  EXPECT_THAT(record.token_indices, ElementsAre(0, 1, 2));
  EXPECT_EQ(record.reason, FinishReason::kLength);
  EXPECT_EQ(record.usage.generated_tokens, 3);
}

TEST(EngineLoopTest, StopTokenIsEmittedAndEnds) {
  FakeEngine engine;
  SamplingParams params{.temperature = 0, .max_tokens = 50, .ignore_eos = true};
  const Record all = RunLocal(*engine, Request(1, SequenceMode::kLocal, Prompt(10, 1), params));
  params.stop_token_ids = {all.tokens[5].token_id};
  const Record stopped = RunLocal(*engine, Request(2, SequenceMode::kLocal, Prompt(10, 1), params));
  EXPECT_EQ(stopped.reason, FinishReason::kStopToken);
  EXPECT_LE(stopped.tokens.size(), 6u);
  EXPECT_EQ(stopped.tokens.back().token_id, all.tokens[5].token_id);
}

TEST(EngineLoopTest, BadRequestsAreRefusedAtOnceAndTheSinkIsNotCalled) {
  FakeEngineOptions options;
  options.num_blocks = 4;
  options.engine.max_context_tokens = 1000;
  FakeEngine engine(options);
  auto sink = std::make_shared<RecordingSink>();
  auto submit = [&](SequenceRequest request) { return engine->Submit(std::move(request), sink); };
  using Code = absl::StatusCode;
  EXPECT_EQ(submit(Request(1, SequenceMode::kLocal, {})).code(), Code::kInvalidArgument);
  EXPECT_EQ(submit(Request(1, SequenceMode::kLocal, {97})).code(), Code::kInvalidArgument);
  EXPECT_EQ(submit(Request(1, SequenceMode::kLocal, {-1})).code(), Code::kInvalidArgument);
  EXPECT_EQ(submit(Request(1, SequenceMode::kLocal, Prompt(1001, 1))).code(),
            Code::kInvalidArgument);
  EXPECT_EQ(submit(Request(1, SequenceMode::kDecode, {1})).code(), Code::kInvalidArgument);
  EXPECT_EQ(submit(Request(1, SequenceMode::kLocal, {1}, {.temperature = -1})).code(),
            Code::kInvalidArgument);
  EXPECT_EQ(submit(Request(1, SequenceMode::kLocal, Prompt(300, 1))).code(),
            Code::kResourceExhausted);
  EXPECT_EQ(engine->Reserve(Request(1, SequenceMode::kLocal, {1}), sink).code(),
            Code::kInvalidArgument);
  auto logprobs = Request(1, SequenceMode::kDecode, {1});
  logprobs.num_prompt_logprobs = 0;
  EXPECT_EQ(engine->Reserve(logprobs, sink).code(), Code::kInvalidArgument);
  logprobs.mode = SequenceMode::kLocal;
  logprobs.num_prompt_logprobs = 21;
  EXPECT_EQ(submit(logprobs).code(), Code::kInvalidArgument);
  auto prior = Request(1, SequenceMode::kLocal, {1});
  prior.prior_generated_tokens = 1;
  EXPECT_EQ(submit(prior).code(), Code::kInvalidArgument);
  EXPECT_THAT(sink->Now().calls, IsEmpty());
}

TEST(EngineLoopTest, CommandsForUnknownIdsHaveNoEffect) {
  FakeEngine engine;
  engine->Cancel(5);
  engine->Release(5);
  engine->Resume(5, 1);
  EXPECT_EQ(RunLocal(*engine, Request(5, SequenceMode::kLocal, Prompt(5, 1))).status,
            absl::OkStatus());
}

TEST(EngineLoopTest, PromptLogprobsAreThoseOfEveryTokenWhateverTheChunks) {
  std::vector<sampling::SampledToken> expected;
  for (const int32_t chunk : {64, 128, 1024}) {
    FakeEngineOptions options;
    options.engine.chunk_tokens = chunk;
    FakeEngine engine(options);
    const auto prompt = Prompt(150, 4);
    RunLocal(*engine, Request(1, SequenceMode::kLocal, prompt));  // the cache must not cut them
    auto request = Request(2, SequenceMode::kLocal, prompt);
    request.num_prompt_logprobs = 2;
    const Record record = RunLocal(*engine, request);
    ASSERT_EQ(record.prompt_logprobs.size(), 149u);
    for (int i = 0; i < 149; ++i) {
      EXPECT_EQ(record.logprob_indices[i], i + 1);
      EXPECT_EQ(record.prompt_logprobs[i].token_id, prompt[i + 1]);
      EXPECT_LT(record.prompt_logprobs[i].logprob, 0);
      EXPECT_EQ(record.prompt_logprobs[i].top.size(), 2u);
    }
    if (expected.empty()) expected = record.prompt_logprobs;
    EXPECT_EQ(record.prompt_logprobs, expected);
  }
}

TEST(EngineLoopTest, DecodeReservesForPromptAndGeneration) {
  FakeEngineOptions options;
  options.num_blocks = 4;
  FakeEngine engine(options);
  auto first = std::make_shared<RecordingSink>();
  auto second = std::make_shared<RecordingSink>();
  const SamplingParams params{.temperature = 0, .max_tokens = 100};
  ASSERT_TRUE(
      engine->Reserve(Request(1, SequenceMode::kDecode, Prompt(64, 1), params), first).ok());
  EXPECT_EQ(first->AwaitReserved().kv->blocks.size(), 1u) << "blocks of the prompt only";
  EXPECT_EQ(engine->load().blocks_used, 3) << "163 positions";
  ASSERT_TRUE(
      engine->Reserve(Request(2, SequenceMode::kDecode, Prompt(64, 1), params), second).ok());
  engine->Cancel(1);
  first->AwaitEnd();
  EXPECT_FALSE(second->Now().kv.has_value()) << "the first keeps its memory until Release";
  engine->Release(1);
  second->AwaitReserved();
  engine->Resume(2, 96);  // the model's end token
  const Record record = second->AwaitEnd();
  EXPECT_EQ(record.reason, FinishReason::kEndOfSequence);
  EXPECT_THAT(record.tokens, IsEmpty());
  EXPECT_EQ(record.usage.generated_tokens, 1);
  AwaitAllFree(*engine);
}

TEST(EngineLoopTest, ResumeWithATokenOutsideTheVocabularyIsRefused) {
  FakeEngine engine;
  auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine->Reserve(Request(1, SequenceMode::kDecode, Prompt(5, 1)), sink).ok());
  sink->AwaitReserved();
  engine->Resume(1, 97);
  EXPECT_EQ(sink->AwaitEnd().status.code(), absl::StatusCode::kInvalidArgument);
  engine->Release(1);
  AwaitAllFree(*engine);
}

TEST(EngineLoopTest, ObserverAndLoadSeeEveryStep) {
  std::vector<StepStats> steps;  // written on the engine thread, read after the engine has ended
  {
    FakeEngineOptions options;
    options.observer = [&steps](const StepStats& stats) { steps.push_back(stats); };
    FakeEngine engine(options);
    const SamplingParams params{.temperature = 0, .max_tokens = 4, .ignore_eos = true};
    for (int id = 1; id <= 2; ++id) {
      RunLocal(*engine, Request(id, SequenceMode::kLocal, Prompt(100, 1), params));
    }
    AwaitAllFree(*engine);
    EXPECT_EQ(engine->load().step_counter, 2 + 3 + 1 + 3);
    EXPECT_GT(engine->load().prefill_tokens_per_second, 0);
    EXPECT_GT(engine->load().decode_step_ms, 0);
    EXPECT_GT(engine->load().blocks_cached, 0);
    EXPECT_THAT(engine->Description(), HasSubstr("fake"));
  }
  ASSERT_EQ(steps.size(), 9u);
  int64_t prefill = 0, decode = 0, looked_up = 0, hit = 0;
  for (const StepStats& step : steps) {
    prefill += step.prefill_tokens;
    decode += step.decode_tokens;
    looked_up += step.prefix_query_tokens;
    hit += step.prefix_hit_tokens;
  }
  EXPECT_EQ(prefill, 100 + 36);
  EXPECT_EQ(decode, 6);
  EXPECT_EQ(looked_up, 200);
  EXPECT_EQ(hit, 64);
}

}  // namespace
}  // namespace hyserve::runtime
