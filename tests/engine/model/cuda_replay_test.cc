// Steps that replay what earlier steps enqueued (Device::RunRecorded) against steps that enqueue
// everything themselves: equal bits. Needs a GPU.
#include <gtest/gtest.h>

#include "engine/model/presets.h"
#include "engine/tensor/cuda_device.h"
#include "tests/engine/model/model_runner.h"
#include "tests/engine/model/steps_within.h"

namespace hyserve::model {
namespace {

using Logits = SequenceRows::Logits;
using tensor::DType;

int64_t NumReplays(ModelRunner& runner) {
  return static_cast<const tensor::CudaDevice&>(runner.device()).recordings().num_replays();
}

struct ReplayCase {
  const char* name;
  ModelConfig config;
};

class ReplayTest : public ::testing::TestWithParam<ReplayCase> {
 protected:
  // Sequences of contexts below, at and far above a block, the last just below what the first
  // bucket of contexts holds.
  static constexpr int kPrompts[] = {5, 63, 300, 1000};

  ReplayTest() {
    for (ModelRunner* runner : {&replayed_, &direct_}) {
      for (const int tokens : kPrompts) {
        Sequences(*runner).push_back(runner->NewSequence(tokens + 200));
        runner->Step(Sequences(*runner).back(), RandomIds(tokens, 256, tokens), Logits::kNone);
      }
    }
  }
  std::vector<ModelRunner::Sequence>& Sequences(ModelRunner& runner) {
    return runner_sequences_[&runner == &direct_];
  }

  // One token each; a step that announces its layers enqueues them itself.
  StepOutput Decode(ModelRunner& runner, const std::vector<int>& batch, int step, bool sampled) {
    std::vector<int32_t> tokens;
    std::vector<kernels::SampleRow> samples;
    std::vector<kernels::LogitEdit> edits;
    for (const int s : batch) {
      tokens.push_back((31 * step + 7 * s) % 256);
      // Greedy, or drawn with edits of which there are more and more.
      kernels::SampleRow& row = samples.emplace_back();
      if ((s + step) % 2 == 0) continue;
      row = {.uniform = 0.37, .temperature = 1, .top_p = 0.9f, .num_logprobs = 3,
             .first_edit = static_cast<int32_t>(edits.size()), .num_edits = step};
      for (int i = 0; i < step; ++i) edits.push_back({.token_id = i, .penalty = 0.5f});
    }
    StepInput input;
    input.edits = edits;
    for (size_t i = 0; i < batch.size(); ++i) {
      input.sequences.push_back(ModelRunner::Rows(
          Sequences(runner)[batch[i]], std::span(tokens).subspan(i, 1), Logits::kLast));
      if (sampled) input.sequences[i].samples = std::span(samples).subspan(i, 1);
    }
    if (&runner == &direct_) input.on_layer_kv_ready = [](int) {};
    return runner.Forward(input);
  }

  void ExpectEqualSteps(const std::vector<int>& batch, int step, bool sampled = false) {
    const StepOutput got = Decode(replayed_, batch, step, sampled);
    const StepOutput want = Decode(direct_, batch, step, sampled);
    ASSERT_EQ(got.logits, want.logits) << "step " << step;
    ASSERT_EQ(got.logits.empty(), sampled);
    ASSERT_EQ(got.sampled.size(), sampled ? batch.size() : 0);
    for (size_t i = 0; i < got.sampled.size(); ++i) {
      ASSERT_EQ(got.sampled[i].token_id, want.sampled[i].token_id) << "step " << step;
      ASSERT_EQ(got.sampled[i].logprob, want.sampled[i].logprob) << "step " << step;
      ASSERT_GE(got.sampled[i].token_id, 0);
    }
    ASSERT_EQ(got.selections, want.selections) << "step " << step;
  }

  ModelRunner replayed_ =
      ModelRunner::Random(GetParam().config, DType::kBF16, DType::kBF16, 3, "cuda");
  ModelRunner direct_ =
      ModelRunner::Random(GetParam().config, DType::kBF16, DType::kBF16, 3, "cuda");
  std::vector<ModelRunner::Sequence> runner_sequences_[2];
};

TEST_P(ReplayTest, StepsHaveTheBitsOfDirectSteps) {
  constexpr int kSteps = 160;
  for (int step = 0; step < kSteps; ++step) {
    const std::vector<int> batch = step < 40    ? std::vector<int>{0}
                                   : step < 80  ? std::vector<int>{1, 0, 3}
                                   : step < 120 ? std::vector<int>{3, 2}
                                                : std::vector<int>{0, 1, 2, 3};
    ExpectEqualSteps(batch, step, step % 3 == 2);
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(NumReplays(direct_), 0);
  // Direct were the first steps of four batches with two kinds of logits, of the bucket that
  // sequence 3 enters, and some after memory had grown.
  EXPECT_GE(NumReplays(replayed_), kSteps - 30);
}

TEST_P(ReplayTest, MemoryThatMovesIsNotUsedAgain) {
  for (int step = 0; step < 4; ++step) ExpectEqualSteps({0, 1}, step);
  const int64_t before = NumReplays(replayed_);
  EXPECT_GE(before, 2);
  // More rows than any step before: workspaces grow.
  for (ModelRunner* runner : {&replayed_, &direct_}) {
    ModelRunner::Sequence sequence = runner->NewSequence(600);
    runner->Step(sequence, RandomIds(600, 256, 9), Logits::kAll);
  }
  ExpectEqualSteps({0, 1}, 4);
  EXPECT_EQ(NumReplays(replayed_), before);
  for (int step = 5; step < 8; ++step) ExpectEqualSteps({0, 1}, step);
  EXPECT_GT(NumReplays(replayed_), before);
}

INSTANTIATE_TEST_SUITE_P(Nets, ReplayTest,
                         ::testing::Values(ReplayCase{"dense", *Preset("tiny")},
                                           ReplayCase{"demo", *Preset("demo")},
                                           ReplayCase{"experts", TinyExperts()}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace hyserve::model
