#include "engine/scheduler/chunk_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <vector>

namespace hyserve::scheduler {
namespace {

using testing::ElementsAre;

PromptWork Work(int32_t remaining) {
  return {.remaining_tokens = remaining, .rows_to_stop = remaining};
}

TEST(ChunkPolicyTest, OnePromptGetsTheWholeBudget) {
  EXPECT_THAT(ShareRows(std::vector{Work(5000)}, 1024, 0), ElementsAre(1024));
  EXPECT_THAT(ShareRows(std::vector{Work(100)}, 1024, 0), ElementsAre(100));
}

TEST(ChunkPolicyTest, AShortPromptIsNotStuckBehindALongOne) {
  EXPECT_THAT(ShareRows(std::vector{Work(30000), Work(200)}, 1024, 0), ElementsAre(768, 200));
}

TEST(ChunkPolicyTest, TheOldestGetsHalfHoweverManyShortOnesThereAre) {
  std::vector<PromptWork> prompts = {Work(30000)};
  for (int i = 0; i < 20; ++i) prompts.push_back(Work(100));
  const auto rows = ShareRows(prompts, 1024, 0);
  EXPECT_GE(rows[0], 512);
  EXPECT_THAT(std::vector<int32_t>(rows.begin() + 1, rows.begin() + 6),
              ElementsAre(100, 100, 100, 100, 100));
}

TEST(ChunkPolicyTest, ABudgetOfOneBlockTakesTurns) {
  const std::vector prompts = {Work(1000), Work(64)};
  EXPECT_THAT(ShareRows(prompts, 64, 0), ElementsAre(64, 0));
  EXPECT_THAT(ShareRows(prompts, 64, 1), ElementsAre(0, 64));
}

TEST(ChunkPolicyTest, StopsAreKept) {
  std::vector prompts = {PromptWork{.remaining_tokens = 1000, .rows_to_stop = 192},
                         PromptWork{.remaining_tokens = 900, .rows_to_stop = 64}};
  EXPECT_THAT(ShareRows(prompts, 1024, 0), ElementsAre(192, 64));
}

TEST(ChunkPolicyTest, PropertiesHoldForRandomWork) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::vector<PromptWork> prompts(1 + random() % 8);
    for (PromptWork& prompt : prompts) {
      prompt.remaining_tokens = 1 + static_cast<int32_t>(random() % 2000);
      prompt.rows_to_stop = 1 + static_cast<int32_t>(random() % prompt.remaining_tokens);
    }
    const int32_t budget = 64 * (1 + static_cast<int32_t>(random() % 16));
    const auto rows = ShareRows(prompts, budget, random());
    const int32_t sum = std::accumulate(rows.begin(), rows.end(), 0);
    EXPECT_LE(sum, budget);
    EXPECT_GT(sum, 0);
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_LE(rows[i], prompts[i].rows_to_stop);
      EXPECT_TRUE(rows[i] % 64 == 0 || rows[i] == prompts[i].rows_to_stop);
    }
    if (budget >= 128) {
      EXPECT_GE(rows[0], std::min(budget / 2, prompts[0].rows_to_stop) / 64 * 64);
    }
  }
}

TEST(MostRowsPerStepTest, AChunkAloneOrASmallerOneBesideTheOthers) {
  EXPECT_EQ(MostRowsPerStep(/*chunk_tokens=*/8192, /*max_sequences=*/64), 8192);
  EXPECT_EQ(MostRowsPerStep(1024, 1000), 256 + 999);
  EXPECT_EQ(MostRowsPerStep(64, 1), 64);
  EXPECT_EQ(MostRowsPerStep(64, 32), 64 + 31) << "a chunk of one block is not made smaller";
}

}  // namespace
}  // namespace hyserve::scheduler
