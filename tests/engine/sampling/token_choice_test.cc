#include "engine/sampling/token_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "engine/kernels/ops.h"
#include "engine/sampling/finish_reason.h"

namespace hyserve::sampling {
namespace {

using testing::ElementsAre;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

tensor::Device& Device() {
  static const std::unique_ptr<tensor::Device> device =
      *tensor::Device::Create({.num_threads = 1});
  return *device;
}

absl::StatusOr<SampledToken> TrySample(std::vector<float> logits, const kernels::SampleRow& row,
                                       const std::vector<kernels::LogitEdit>& edits) {
  const int64_t vocab_size = static_cast<int64_t>(logits.size());
  kernels::SampledRow sampled;
  const absl::Status status = kernels::SampleTokens(
      Device(), {.logits = {logits.data(), tensor::DType::kF32, 1, vocab_size, vocab_size},
                 .rows = &row,
                 .edits = edits.data(),
                 .out = &sampled});
  if (!status.ok()) return status;
  return ToSampledToken(sampled);
}

absl::StatusOr<SampledToken> TrySample(const std::vector<float>& logits,
                                       const SamplingContext& context) {
  std::vector<kernels::LogitEdit> edits;
  const kernels::SampleRow row = ChooseToken(context, &edits);
  return TrySample(logits, row, edits);
}

SampledToken Sample(const std::vector<float>& logits, const SamplingParams& params,
                    int32_t index = 0, const PenaltyState* penalties = nullptr,
                    const std::vector<int32_t>& eos = {}) {
  const auto token = TrySample(logits, {.params = &params, .penalties = penalties,
                                        .eos_token_ids = eos, .index = index});
  EXPECT_TRUE(token.ok()) << token.status();
  return token.ok() ? *token : SampledToken{.token_id = -1};
}

// The logits after the row's edits, from their log-probabilities.
std::vector<float> Edited(const std::vector<float>& logits, const SamplingParams& params,
                          const PenaltyState& penalties) {
  std::vector<kernels::LogitEdit> edits;
  kernels::SampleRow row = ChooseToken({.params = &params, .penalties = &penalties}, &edits);
  std::vector<float> edited = logits;
  for (size_t id = 0; id < logits.size(); ++id) {
    row.given_token = static_cast<int32_t>(id);
    row.num_logprobs = 0;
    edited[id] = TrySample(logits, row, edits)->logprob;
  }
  return edited;
}

// Ids that occur in `count` draws, with their frequencies.
std::map<int32_t, double> Draw(const std::vector<float>& logits, const SamplingParams& params,
                               int count = 4000) {
  std::map<int32_t, double> frequency;
  for (int index = 0; index < count; ++index) {
    frequency[Sample(logits, params, index).token_id] += 1.0 / count;
  }
  return frequency;
}

std::vector<float> LogitsOf(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

std::vector<int32_t> Keys(const std::map<int32_t, double>& frequency) {
  std::vector<int32_t> keys;
  for (const auto& [id, f] : frequency) keys.push_back(id);
  return keys;
}

TEST(TokenChoiceTest, TemperatureZeroTakesTheBestAndTiesGoToTheLowerId) {
  SamplingParams params{.temperature = 0};
  EXPECT_EQ(Sample({1, 3, 2}, params).token_id, 1);
  EXPECT_EQ(Sample({1, 3, 3}, params).token_id, 1);
  EXPECT_EQ(Sample({-kInfinity, -5}, params).token_id, 1);
}

TEST(TokenChoiceTest, SameLogitsHistoryAndIndexGiveTheSameToken) {
  std::mt19937 random(5);
  std::vector<float> logits(1000);
  for (float& logit : logits) logit = static_cast<float>(random() % 1000) / 200;
  SamplingParams params{.top_p = 0.9f, .min_p = 0.01f, .top_k = 300, .seed = 9};
  std::set<int32_t> seen;
  for (int index = 0; index < 50; ++index) {
    const int32_t token = Sample(logits, params, index).token_id;
    EXPECT_EQ(Sample(logits, params, index).token_id, token);
    seen.insert(token);
  }
  EXPECT_GT(seen.size(), 20u) << "the index must change the number drawn";
}

TEST(TokenChoiceTest, RandomOffsetContinuesTheStreamOfAnEarlierAttempt) {
  const std::vector<float> logits(100, 0.0f);
  SamplingParams params{.seed = 3};
  for (int index = 0; index < 10; ++index) {
    EXPECT_EQ(
        TrySample(logits, {.params = &params, .index = index, .random_offset = 7})->token_id,
        TrySample(logits, {.params = &params, .index = index + 7})->token_id);
  }
}

TEST(TokenChoiceTest, FrequenciesFollowTheDistribution) {
  const std::vector<double> p = {0.5, 0.25, 0.15, 0.1};
  for (const float top_p : {1.0f, 0.9999f}) {  // both code paths
    const auto frequency = Draw(LogitsOf(p), {.top_p = top_p, .seed = 1}, 20000);
    for (int id = 0; id < 4; ++id) EXPECT_NEAR(frequency.at(id), p[id], 0.015) << id;
  }
}

TEST(TokenChoiceTest, TemperatureSharpensAndFlattens) {
  const auto logits = LogitsOf({0.8, 0.2});
  EXPECT_NEAR(Draw(logits, {.temperature = 0.5f})[0], 0.64 / 0.68, 0.02);
  EXPECT_NEAR(Draw(logits, {.temperature = 2.0f})[0], 2.0 / 3, 0.03);
  EXPECT_THAT(Keys(Draw(logits, {.temperature = 1e-30f}, 200)), ElementsAre(0));
}

TEST(TokenChoiceTest, TopKKeepsTheBestWithTiesToTheLowerId) {
  const std::vector<float> logits = {0, 1, 1, 1, -2};
  EXPECT_THAT(Keys(Draw(logits, {.top_k = 1})), ElementsAre(1));
  EXPECT_THAT(Keys(Draw(logits, {.top_k = 2})), ElementsAre(1, 2));
  EXPECT_THAT(Keys(Draw(logits, {.top_k = 4})), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Keys(Draw(logits, {.top_k = 1000})), ElementsAre(0, 1, 2, 3, 4));
}

TEST(TokenChoiceTest, TopPKeepsTheShortestRunThatReachesIt) {
  const auto logits = LogitsOf({0.1, 0.4, 0.3, 0.2});
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.0001f})), ElementsAre(1));
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.39f})), ElementsAre(1));
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.45f})), ElementsAre(1, 2));
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.75f})), ElementsAre(1, 2, 3));
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.95f})), ElementsAre(0, 1, 2, 3));
}

TEST(TokenChoiceTest, TopPAppliesToWhatTopKLeft) {
  // After top_k = 2: 4/7 and 3/7.
  const auto logits = LogitsOf({0.1, 0.4, 0.3, 0.2});
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.5f, .top_k = 2})), ElementsAre(1));
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.6f, .top_k = 2})), ElementsAre(1, 2));
}

TEST(TokenChoiceTest, TopPOverAFlatLargeVocabularyKeepsItsShare) {
  const std::vector<float> logits(20000, 0.0f);
  const auto frequency = Draw(logits, {.top_p = 0.25f}, 500);
  EXPECT_LT(frequency.rbegin()->first, 5001) << "ties are cut by lower id";
  EXPECT_GT(frequency.rbegin()->first, 4900);
}

TEST(TokenChoiceTest, MinPIsRelativeToTheMostProbable) {
  const auto logits = LogitsOf({0.5, 0.3, 0.15, 0.05});
  EXPECT_THAT(Keys(Draw(logits, {.min_p = 0.05f})), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Keys(Draw(logits, {.min_p = 0.2f})), ElementsAre(0, 1, 2));
  EXPECT_THAT(Keys(Draw(logits, {.min_p = 0.5f})), ElementsAre(0, 1));
  EXPECT_THAT(Keys(Draw(logits, {.min_p = 1.0f})), ElementsAre(0));
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.9f, .min_p = 0.5f})), ElementsAre(0, 1));
}

TEST(TokenChoiceTest, LogitBiasForcesAndForbids) {
  SamplingParams params{.temperature = 0, .logit_bias = {{2, 100}, {0, -100}}};
  EXPECT_EQ(Sample({5, 1, 0}, params).token_id, 2);
  params.logit_bias = {{0, -100}};
  EXPECT_EQ(Sample({5, 1, 0}, params).token_id, 1);
}

TEST(TokenChoiceTest, PenaltiesAreThoseOfTheTokensSoFar) {
  SamplingParams params{.temperature = 0,
                        .frequency_penalty = 0.5f,
                        .presence_penalty = 1,
                        .repetition_penalty = 2,
                        .num_logprobs = 4};
  PenaltyState penalties(params, std::vector<int32_t>{0, 1});
  penalties.AddGenerated(1);
  penalties.AddGenerated(1);
  penalties.AddGenerated(3);
  // 0: prompt only: 4 / 2. 1: -2 * 2 - 2 * 0.5 - 1. 2: untouched. 3: 6 / 2 - 0.5 - 1.
  const std::vector<float> wanted = {2, -6, 1, 1.5};
  double sum = 0;
  for (const float logit : wanted) sum += std::exp(logit);
  const std::vector<float> edited = Edited({4, -2, 1, 6}, params, penalties);
  for (int id = 0; id < 4; ++id) EXPECT_NEAR(edited[id], wanted[id] - std::log(sum), 1e-5) << id;
  EXPECT_EQ(Sample({4, -2, 1, 6}, params, 0, &penalties).token_id, 0);
}

TEST(TokenChoiceTest, PenaltyStateIsRebuiltFromTokensAlone) {
  SamplingParams params{.frequency_penalty = 0.3f, .repetition_penalty = 1.2f};
  PenaltyState grown(params, std::vector<int32_t>{1, 2});
  for (const int32_t token : {5, 2, 5}) grown.AddGenerated(token);
  PenaltyState rebuilt(params, std::vector<int32_t>{2, 1});
  for (const int32_t token : {2, 5, 5}) rebuilt.AddGenerated(token);
  const std::vector<float> logits(8, 1.5f);
  const std::vector<float> edited = Edited(logits, params, grown);
  EXPECT_EQ(edited, Edited(logits, params, rebuilt));
  EXPECT_NE(edited, Edited(logits, params, PenaltyState(params, {})));
}

TEST(TokenChoiceTest, NoPenaltyKeepsNothing) {
  const SamplingParams params;
  PenaltyState penalties(params, std::vector<int32_t>{0});
  penalties.AddGenerated(0);
  std::vector<kernels::LogitEdit> edits;
  EXPECT_EQ(ChooseToken({.params = &params, .penalties = &penalties}, &edits).num_edits, 0);
  EXPECT_TRUE(edits.empty());
}

// No token twice, whatever asks for it; the edits of one row follow those of another.
TEST(TokenChoiceTest, AskedForTwiceATokenHasOneEdit) {
  SamplingParams params{.presence_penalty = 1,
                        .logit_bias = {{1, 2.0f}, {5, 3.0f}, {1, 0.5f}},
                        .min_tokens = 3,
                        .stop_token_ids = {5, 6}};
  PenaltyState penalties(params, {});
  penalties.AddGenerated(1);
  penalties.AddGenerated(6);
  std::vector<kernels::LogitEdit> edits(2);
  const std::vector<int32_t> eos = {7};
  const kernels::SampleRow row = ChooseToken(
      {.params = &params, .penalties = &penalties, .eos_token_ids = eos, .index = 2}, &edits);
  EXPECT_EQ(row.first_edit, 2);
  EXPECT_EQ(row.num_edits, 4);
  ASSERT_EQ(edits.size(), 6u);
  std::map<int32_t, kernels::LogitEdit> by_id;
  for (size_t i = 2; i < edits.size(); ++i) by_id[edits[i].token_id] = edits[i];
  ASSERT_EQ(by_id.size(), 4u);
  EXPECT_EQ(by_id[1].bias, 2.5f);
  EXPECT_EQ(by_id[1].penalty, 1.0f);
  EXPECT_EQ(by_id[5].bias, 3.0f);
  for (const int32_t id : {5, 6, 7}) EXPECT_EQ(by_id[id].penalty, kInfinity) << id;
}

TEST(TokenChoiceTest, EndIdsAreImpossibleBeforeMinTokens) {
  SamplingParams params{.temperature = 0, .min_tokens = 2, .stop_token_ids = {1}};
  const std::vector<float> logits = {0, 5, 4, 1};
  EXPECT_EQ(Sample(logits, params, 0, nullptr, {2}).token_id, 3);
  EXPECT_EQ(Sample(logits, params, 1, nullptr, {2}).token_id, 3);
  EXPECT_EQ(Sample(logits, params, 2, nullptr, {2}).token_id, 1);
  params.ignore_eos = true;
  EXPECT_EQ(Sample(logits, params, 0, nullptr, {2}).token_id, 2);
}

TEST(TokenChoiceTest, LogprobsAreOfTheDistributionBeforeTemperature) {
  SamplingParams params{.temperature = 0.1f, .top_k = 1, .num_logprobs = 2};
  const auto token = Sample(LogitsOf({0.5, 0.3, 0.2}), params);
  EXPECT_EQ(token.token_id, 0);
  EXPECT_NEAR(token.logprob, std::log(0.5), 1e-5);
  ASSERT_EQ(token.top.size(), 2u);
  EXPECT_EQ(token.top[1].token_id, 1);
  EXPECT_NEAR(token.top[1].logprob, std::log(0.3), 1e-5);
  params.num_logprobs = 0;
  EXPECT_TRUE(Sample({1, 2}, params).top.empty());
}

TEST(TokenChoiceTest, NanIsNeverChosenAndAllNanIsAnError) {
  const float nan = std::nanf("");
  for (const float temperature : {0.0f, 1.0f}) {
    for (const float top_p : {1.0f, 0.5f}) {
      SamplingParams params{.temperature = temperature, .top_p = top_p};
      EXPECT_EQ(Sample({nan, -3, nan, -kInfinity}, params).token_id, 1);
      EXPECT_EQ(Sample({nan, 1, kInfinity}, params).token_id, 2);
      EXPECT_EQ(TrySample({nan, nan, -kInfinity}, {.params = &params}).status().code(),
                absl::StatusCode::kInternal);
    }
  }
}

absl::StatusOr<SampledToken> Score(const std::vector<float>& logits, int32_t token_id,
                                   int num_top) {
  return TrySample(logits, ScoreToken(token_id, num_top), {});
}

TEST(ScoreTokenTest, ProbabilitiesSumToOneAndDoNotOverflow) {
  std::vector<float> logits = {1000, 999, 998, -1000};
  double sum = 0;
  for (int id = 0; id < 4; ++id) sum += std::exp(Score(logits, id, 0)->logprob);
  EXPECT_NEAR(sum, 1, 1e-6);
  EXPECT_NEAR(Score(logits, 1, 0)->logprob, -1 - std::log(1 + std::exp(-1) + std::exp(-2)),
              1e-5);
}

TEST(ScoreTokenTest, TopMatchesAFullSortWithTiesToTheLowerId) {
  std::mt19937 random(1);
  std::vector<float> logits(5000);
  for (float& logit : logits) logit = static_cast<float>(random() % 50);  // many ties
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const auto token = Score(logits, 3, 20);
  ASSERT_TRUE(token.ok());
  ASSERT_EQ(token->top.size(), 20u);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(token->top[i].token_id, order[i]) << i;
}

TEST(ScoreTokenTest, NanIsImpossibleAndInfinityIsTheBest) {
  std::vector<float> logits = {std::nanf(""), 1, 2};
  auto token = Score(logits, 0, 3);
  ASSERT_TRUE(token.ok());
  EXPECT_EQ(token->logprob, -kInfinity);
  ASSERT_EQ(token->top.size(), 2u) << "tokens of probability 0 are left out";
  EXPECT_EQ(token->top[0].token_id, 2);
  logits = {1, kInfinity, 2};
  token = Score(logits, 1, 1);
  ASSERT_TRUE(token.ok());
  EXPECT_EQ(token->top[0].token_id, 1);
  EXPECT_NEAR(token->logprob, 0, 1e-6);
}

TEST(ScoreTokenTest, NoFiniteLogitIsAnError) {
  std::vector<float> logits = {std::nanf(""), -kInfinity};
  EXPECT_EQ(Score(logits, 0, 0).status().code(), absl::StatusCode::kInternal);
}

TEST(FinishReasonTest, StopGoesBeforeEosBeforeLength) {
  SamplingParams params{.max_tokens = 10, .stop_token_ids = {7}};
  const std::vector<int32_t> eos = {7, 8};
  EXPECT_EQ(FinishReasonOf(params, eos, 7, 0, 10), FinishReason::kStopToken);
  EXPECT_EQ(FinishReasonOf(params, eos, 8, 9, 10), FinishReason::kEndOfSequence);
  EXPECT_EQ(FinishReasonOf(params, eos, 1, 9, 10), FinishReason::kLength);
  EXPECT_EQ(FinishReasonOf(params, eos, 1, 8, 10), FinishReason::kNone);
  EXPECT_EQ(FinishReasonOf(params, eos, 1, 4, 5), FinishReason::kLength) << "end of the context";
  params.ignore_eos = true;
  EXPECT_EQ(FinishReasonOf(params, eos, 8, 0, 10), FinishReason::kNone);
  params.min_tokens = 3;
  EXPECT_EQ(FinishReasonOf(params, eos, 7, 2, 10), FinishReason::kNone);
  EXPECT_EQ(FinishReasonOf(params, eos, 7, 3, 10), FinishReason::kStopToken);
}

}  // namespace
}  // namespace hyserve::sampling
