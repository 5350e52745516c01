// Tokens that a step chooses against those chosen from the logits that it would have copied.
#include "engine/model/step_results.h"

#include <gtest/gtest.h>

#include <vector>

#include "engine/kernels/ops.h"
#include "engine/model/presets.h"
#include "engine/model/step.h"
#include "tests/engine/model/model_runner.h"

namespace hyserve::model {
namespace {

using Logits = SequenceRows::Logits;
using tensor::DType;

ModelRunner Runner() {
  return ModelRunner::Random(*Preset("tiny"), DType::kF32, DType::kF32, 3);
}

// A row of every kind in turn; edits of some.
void AppendSample(int i, std::vector<kernels::SampleRow>* samples,
                  std::vector<kernels::LogitEdit>* edits) {
  kernels::SampleRow row;
  row.num_logprobs = i % 4 - 1;
  if (i % 3 == 1) row.given_token = (7 * i) % 48;
  if (i % 3 == 2) {
    row.uniform = (i % 97) / 97.0;
    row.temperature = 1.5f;
    if (i % 2 == 0) row.top_k = 20;
  }
  row.first_edit = static_cast<int32_t>(edits->size());
  row.num_edits = i % 5 == 0 ? 3 : 0;
  for (int e = 0; e < row.num_edits; ++e) {
    edits->push_back({.token_id = (i + 11 * e) % 48, .bias = 2.5f, .penalty = 0.5f});
  }
  samples->push_back(row);
}

// Rows of two sequences, more than are sampled at a time, and of one that wants none.
TEST(StepResultsTest, SampledRowsAreThoseOfTheLogits) {
  ModelRunner runner = Runner();
  const std::vector<int32_t> a = RandomIds(kSampledRowsAtATime + 40, 48, 1);
  const std::vector<int32_t> b = RandomIds(9, 48, 2), c = RandomIds(30, 48, 3);
  std::vector<kernels::SampleRow> samples;
  std::vector<kernels::LogitEdit> edits;
  for (size_t i = 0; i < a.size() + 1; ++i) AppendSample(static_cast<int>(i), &samples, &edits);
  const auto step = [&](bool sampled) {
    StepInput input;
    ModelRunner::Sequence of_a = runner.NewSequence(400), of_b = runner.NewSequence(64),
                          of_c = runner.NewSequence(64);
    input.sequences = {ModelRunner::Rows(of_a, a, Logits::kAll),
                       ModelRunner::Rows(of_b, b, Logits::kNone),
                       ModelRunner::Rows(of_c, c, Logits::kLast)};
    if (sampled) {
      input.edits = edits;
      input.sequences[0].samples = std::span(samples).first(a.size());
      input.sequences[2].samples = std::span(samples).last(1);
    }
    return runner.Forward(input);
  };
  StepOutput logits = step(false);
  const StepOutput sampled = step(true);
  EXPECT_TRUE(logits.sampled.empty());
  EXPECT_TRUE(sampled.logits.empty());
  EXPECT_EQ(sampled.logit_row_begin, logits.logit_row_begin);
  const int64_t num_rows = static_cast<int64_t>(samples.size());
  const int64_t vocab = runner.model().config().vocab_size;
  ASSERT_EQ(static_cast<int64_t>(sampled.sampled.size()), num_rows);
  ASSERT_EQ(static_cast<int64_t>(logits.logits.size()), num_rows * vocab);
  std::vector<kernels::SampledRow> wanted(samples.size());
  ASSERT_TRUE(kernels::SampleTokens(
                  runner.device(),
                  {.logits = {logits.logits.data(), DType::kF32, num_rows, vocab, vocab},
                   .rows = samples.data(),
                   .edits = edits.data(),
                   .out = wanted.data()})
                  .ok());
  for (size_t i = 0; i < wanted.size(); ++i) {
    ASSERT_EQ(sampled.sampled[i].token_id, wanted[i].token_id) << i;
    ASSERT_EQ(sampled.sampled[i].logprob, wanted[i].logprob) << i;
    ASSERT_EQ(sampled.sampled[i].num_top, wanted[i].num_top) << i;
    for (int top = 0; top < wanted[i].num_top; ++top) {
      ASSERT_EQ(sampled.sampled[i].top_ids[top], wanted[i].top_ids[top]) << i;
    }
  }
}

TEST(StepResultsTest, SamplesThatDoNotFitTheRowsAreRefused) {
  ModelRunner runner = Runner();
  const std::vector<int32_t> ids = RandomIds(3, 48, 1);
  ModelRunner::Sequence sequence = runner.NewSequence(64), other = runner.NewSequence(64);
  const std::vector<kernels::LogitEdit> edits = {{.token_id = 1}};
  const std::vector<kernels::LogitEdit> foreign = {
      {.token_id = runner.model().config().vocab_size}};
  std::vector<kernels::SampleRow> samples(2);
  const auto status_of = [&](Logits logits, size_t num_samples, kernels::SampleRow first,
                             std::span<const kernels::LogitEdit> with_edits,
                             bool beside_unsampled = false) {
    samples[0] = first;
    StepInput input;
    input.edits = with_edits;
    input.sequences = {ModelRunner::Rows(sequence, ids, logits)};
    sequence.length = 0;
    input.sequences[0].samples = std::span(samples).first(num_samples);
    if (beside_unsampled) {
      input.sequences.push_back(ModelRunner::Rows(other, ids, Logits::kLast));
      other.length = 0;
    }
    return CheckStepInput(input, runner.model().config(), runner.pool()).code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(status_of(Logits::kLast, 1, {}, edits), absl::StatusCode::kOk);
  EXPECT_EQ(status_of(Logits::kLast, 2, {}, edits), kInvalid);
  EXPECT_EQ(status_of(Logits::kAll, 2, {}, edits), kInvalid);
  EXPECT_EQ(status_of(Logits::kNone, 1, {}, edits), kInvalid);
  EXPECT_EQ(status_of(Logits::kLast, 1, {.given_token = 1 << 20}, edits), kInvalid);
  EXPECT_EQ(status_of(Logits::kLast, 1, {.num_logprobs = 21}, edits), kInvalid);
  EXPECT_EQ(status_of(Logits::kLast, 1, {.first_edit = 1, .num_edits = 1}, edits), kInvalid);
  EXPECT_EQ(status_of(Logits::kLast, 1, {.first_edit = -1, .num_edits = 1}, edits), kInvalid);
  EXPECT_EQ(status_of(Logits::kLast, 1, {}, foreign), kInvalid);
  EXPECT_EQ(status_of(Logits::kLast, 1, {}, edits, true), kInvalid);
}

}  // namespace
}  // namespace hyserve::model
