#include "engine/sampling/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <vector>

namespace hyserve::sampling {
namespace {

using testing::ElementsAre;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

SampledToken Sample(std::vector<float> logits, const SamplingParams& params, int32_t index = 0,
                    const PenaltyState* penalties = nullptr, std::vector<int32_t> eos = {}) {
  Sampler sampler;
  auto token = sampler.Sample(logits, {.params = &params, .penalties = penalties,
                                       .eos_token_ids = eos, .index = index});
  EXPECT_TRUE(token.ok()) << token.status();
  return token.ok() ? *token : SampledToken{.token_id = -1};
}

// Ids that occur in `count` draws, with their frequencies.
std::map<int32_t, double> Draw(const std::vector<float>& logits, const SamplingParams& params,
                               int count = 4000) {
  Sampler sampler;
  std::map<int32_t, double> frequency;
  for (int index = 0; index < count; ++index) {
    std::vector<float> row = logits;
    frequency[sampler.Sample(row, {.params = &params, .index = index})->token_id] += 1.0 / count;
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

TEST(SamplerTest, TemperatureZeroTakesTheBestAndTiesGoToTheLowerId) {
  SamplingParams params{.temperature = 0};
  EXPECT_EQ(Sample({1, 3, 2}, params).token_id, 1);
  EXPECT_EQ(Sample({1, 3, 3}, params).token_id, 1);
  EXPECT_EQ(Sample({-kInfinity, -5}, params).token_id, 1);
}

TEST(SamplerTest, SameLogitsHistoryAndIndexGiveTheSameToken) {
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

TEST(SamplerTest, RandomOffsetContinuesTheStreamOfAnEarlierAttempt) {
  const std::vector<float> logits(100, 0.0f);
  SamplingParams params{.seed = 3};
  Sampler sampler;
  for (int index = 0; index < 10; ++index) {
    std::vector<float> a = logits, b = logits;
    EXPECT_EQ(sampler.Sample(a, {.params = &params, .index = index, .random_offset = 7})->token_id,
              sampler.Sample(b, {.params = &params, .index = index + 7})->token_id);
  }
}

TEST(SamplerTest, FrequenciesFollowTheDistribution) {
  const std::vector<double> p = {0.5, 0.25, 0.15, 0.1};
  for (const float top_p : {1.0f, 0.9999f}) {  // both code paths
    const auto frequency = Draw(LogitsOf(p), {.top_p = top_p, .seed = 1}, 20000);
    for (int id = 0; id < 4; ++id) EXPECT_NEAR(frequency.at(id), p[id], 0.015) << id;
  }
}

TEST(SamplerTest, TemperatureSharpensAndFlattens) {
  const auto logits = LogitsOf({0.8, 0.2});
  EXPECT_NEAR(Draw(logits, {.temperature = 0.5f})[0], 0.64 / 0.68, 0.02);
  EXPECT_NEAR(Draw(logits, {.temperature = 2.0f})[0], 2.0 / 3, 0.03);
  EXPECT_THAT(Keys(Draw(logits, {.temperature = 1e-30f}, 200)), ElementsAre(0));
}

TEST(SamplerTest, TopKKeepsTheBestWithTiesToTheLowerId) {
  const std::vector<float> logits = {0, 1, 1, 1, -2};
  EXPECT_THAT(Keys(Draw(logits, {.top_k = 1})), ElementsAre(1));
  EXPECT_THAT(Keys(Draw(logits, {.top_k = 2})), ElementsAre(1, 2));
  EXPECT_THAT(Keys(Draw(logits, {.top_k = 4})), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Keys(Draw(logits, {.top_k = 1000})), ElementsAre(0, 1, 2, 3, 4));
}

TEST(SamplerTest, TopPKeepsTheShortestRunThatReachesIt) {
  const auto logits = LogitsOf({0.1, 0.4, 0.3, 0.2});
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.0001f})), ElementsAre(1));
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.39f})), ElementsAre(1));
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.45f})), ElementsAre(1, 2));
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.75f})), ElementsAre(1, 2, 3));
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.95f})), ElementsAre(0, 1, 2, 3));
}

TEST(SamplerTest, TopPAppliesToWhatTopKLeft) {
  // After top_k = 2: 4/7 and 3/7.
  const auto logits = LogitsOf({0.1, 0.4, 0.3, 0.2});
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.5f, .top_k = 2})), ElementsAre(1));
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.6f, .top_k = 2})), ElementsAre(1, 2));
}

TEST(SamplerTest, TopPOverAFlatLargeVocabularyKeepsItsShare) {
  const std::vector<float> logits(20000, 0.0f);
  const auto frequency = Draw(logits, {.top_p = 0.25f}, 500);
  EXPECT_LT(frequency.rbegin()->first, 5001) << "ties are cut by lower id";
  EXPECT_GT(frequency.rbegin()->first, 4900);
}

TEST(SamplerTest, MinPIsRelativeToTheMostProbable) {
  const auto logits = LogitsOf({0.5, 0.3, 0.15, 0.05});
  EXPECT_THAT(Keys(Draw(logits, {.min_p = 0.05f})), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Keys(Draw(logits, {.min_p = 0.2f})), ElementsAre(0, 1, 2));
  EXPECT_THAT(Keys(Draw(logits, {.min_p = 0.5f})), ElementsAre(0, 1));
  EXPECT_THAT(Keys(Draw(logits, {.min_p = 1.0f})), ElementsAre(0));
  EXPECT_THAT(Keys(Draw(logits, {.top_p = 0.9f, .min_p = 0.5f})), ElementsAre(0, 1));
}

TEST(SamplerTest, LogitBiasForcesAndForbids) {
  SamplingParams params{.temperature = 0, .logit_bias = {{2, 100}, {0, -100}}};
  EXPECT_EQ(Sample({5, 1, 0}, params).token_id, 2);
  params.logit_bias = {{0, -100}};
  EXPECT_EQ(Sample({5, 1, 0}, params).token_id, 1);
}

TEST(SamplerTest, PenaltiesAreThoseOfTheTokensSoFar) {
  SamplingParams params{.temperature = 0,
                        .frequency_penalty = 0.5f,
                        .presence_penalty = 1,
                        .repetition_penalty = 2,
                        .num_logprobs = 4};
  PenaltyState penalties(params, std::vector<int32_t>{0, 1});
  penalties.AddGenerated(1);
  penalties.AddGenerated(1);
  penalties.AddGenerated(3);
  std::vector<float> logits = {4, -2, 1, 6};
  penalties.Apply(params, logits);
  // 0: prompt only: 4 / 2. 1: -2 * 2 - 2 * 0.5 - 1. 2: untouched. 3: 6 / 2 - 0.5 - 1.
  EXPECT_THAT(logits, ElementsAre(2, -6, 1, 1.5));
  EXPECT_EQ(Sample({4, -2, 1, 6}, params, 0, &penalties).token_id, 0);
}

TEST(SamplerTest, PenaltyStateIsRebuiltFromTokensAlone) {
  SamplingParams params{.frequency_penalty = 0.3f, .repetition_penalty = 1.2f};
  PenaltyState grown(params, std::vector<int32_t>{1, 2});
  for (const int32_t token : {5, 2, 5}) grown.AddGenerated(token);
  PenaltyState rebuilt(params, std::vector<int32_t>{2, 1});
  for (const int32_t token : {2, 5, 5}) rebuilt.AddGenerated(token);
  std::vector<float> a(8, 1.5f), b(8, 1.5f);
  grown.Apply(params, a);
  rebuilt.Apply(params, b);
  EXPECT_EQ(a, b);
}

TEST(SamplerTest, NoPenaltyKeepsNothing) {
  PenaltyState penalties(SamplingParams{}, std::vector<int32_t>{0});
  penalties.AddGenerated(0);
  std::vector<float> logits = {1, 2};
  penalties.Apply(SamplingParams{.presence_penalty = 1}, logits);
  EXPECT_THAT(logits, ElementsAre(1, 2));
}

TEST(SamplerTest, EndIdsAreImpossibleBeforeMinTokens) {
  SamplingParams params{.temperature = 0, .min_tokens = 2, .stop_token_ids = {1}};
  const std::vector<float> logits = {0, 5, 4, 1};
  EXPECT_EQ(Sample(logits, params, 0, nullptr, {2}).token_id, 3);
  EXPECT_EQ(Sample(logits, params, 1, nullptr, {2}).token_id, 3);
  EXPECT_EQ(Sample(logits, params, 2, nullptr, {2}).token_id, 1);
  params.ignore_eos = true;
  EXPECT_EQ(Sample(logits, params, 0, nullptr, {2}).token_id, 2);
}

TEST(SamplerTest, LogprobsAreOfTheDistributionBeforeTemperature) {
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

TEST(SamplerTest, NanIsNeverChosenAndAllNanIsAnError) {
  const float nan = std::nanf("");
  for (const float temperature : {0.0f, 1.0f}) {
    for (const float top_p : {1.0f, 0.5f}) {
      SamplingParams params{.temperature = temperature, .top_p = top_p};
      EXPECT_EQ(Sample({nan, -3, nan, -kInfinity}, params).token_id, 1);
      EXPECT_EQ(Sample({nan, 1, kInfinity}, params).token_id, 2);
      Sampler sampler;
      std::vector<float> logits = {nan, nan, -kInfinity};
      EXPECT_EQ(sampler.Sample(logits, {.params = &params}).status().code(),
                absl::StatusCode::kInternal);
    }
  }
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
