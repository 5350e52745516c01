#include "engine/sampling/logprobs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace hyserve::sampling {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(LogprobsTest, ProbabilitiesSumToOneAndDoNotOverflow) {
  std::vector<float> logits = {1000, 999, 998, -1000};
  double sum = 0;
  for (int id = 0; id < 4; ++id) sum += std::exp(ScoreToken(logits, id, 0)->logprob);
  EXPECT_NEAR(sum, 1, 1e-6);
  EXPECT_NEAR(ScoreToken(logits, 1, 0)->logprob, -1 - std::log(1 + std::exp(-1) + std::exp(-2)),
              1e-5);
}

TEST(LogprobsTest, TopMatchesAFullSortWithTiesToTheLowerId) {
  std::mt19937 random(1);
  std::vector<float> logits(5000);
  for (float& logit : logits) logit = static_cast<float>(random() % 50);  // many ties
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const auto token = ScoreToken(logits, 3, 20);
  ASSERT_TRUE(token.ok());
  ASSERT_EQ(token->top.size(), 20u);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(token->top[i].token_id, order[i]) << i;
}

TEST(LogprobsTest, NanIsImpossibleAndInfinityIsTheBest) {
  std::vector<float> logits = {std::nanf(""), 1, 2};
  auto token = ScoreToken(logits, 0, 3);
  ASSERT_TRUE(token.ok());
  EXPECT_EQ(token->logprob, -kInfinity);
  ASSERT_EQ(token->top.size(), 2u) << "tokens of probability 0 are left out";
  EXPECT_EQ(token->top[0].token_id, 2);
  logits = {1, kInfinity, 2};
  token = ScoreToken(logits, 1, 1);
  ASSERT_TRUE(token.ok());
  EXPECT_EQ(token->top[0].token_id, 1);
  EXPECT_NEAR(token->logprob, 0, 1e-6);
}

TEST(LogprobsTest, NoFiniteLogitIsAnError) {
  std::vector<float> logits = {std::nanf(""), -kInfinity};
  EXPECT_EQ(ScoreToken(logits, 0, 0).status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace hyserve::sampling
