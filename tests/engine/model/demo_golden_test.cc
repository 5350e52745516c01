// The demo model against its golden file: logits and selections of chosen rows of two prompts, and
// 256 greedy tokens.
#include <string>
#include <vector>

#include "engine/model/presets.h"
#include "gtest/gtest.h"
#include "tests/engine/model/demo_golden.h"
#include "tests/engine/model/model_runner.h"

namespace hyserve::model {
namespace {

using tensor::DType;

// Below this distance of scores or logits, f32 rounding may choose otherwise than f64.
constexpr float kTieMargin = 1e-3f;

TEST(DemoModelTest, HasTheShapeOfItsPreset) {
  const auto config = ReadModelConfig(kDemoDirectory);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(*config, *Preset("demo"));
}

class DemoGoldenTest : public ::testing::TestWithParam<const char*> {
 protected:
  const DemoGolden golden_{GetParam()};
  ModelRunner runner_ = ModelRunner::LoadExact(kDemoDirectory, DType::kF32);
};

TEST_P(DemoGoldenTest, LogitsAndSelectionsOfChosenRows) {
  const DemoGolden::RowsComparison result = golden_.CompareRows(runner_);
  ASSERT_FALSE(result.rows.empty());
  for (size_t i = 0; i < result.rows.size(); ++i) {
    EXPECT_LE(result.logit_errors[i], 1e-4) << "row " << result.rows[i];
  }
  int compared = 0, left_to_rounding = 0;
  for (const DemoGolden::SelectedSet& set : result.sets) {
    if (set.margin < kTieMargin) {
      ++left_to_rounding;
      continue;
    }
    ++compared;
    EXPECT_TRUE(set.equal) << set.place;
  }
  EXPECT_GT(compared, 4 * left_to_rounding);
}

TEST_P(DemoGoldenTest, GreedyTokensAreIdentical) {
  const std::vector<DemoGolden::Token> tokens = golden_.CompareGreedy(runner_);
  ASSERT_EQ(tokens.size(), 256u);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].margin < kTieMargin) continue;
    ASSERT_EQ(tokens[i].got, tokens[i].wanted) << "token " << i << ", margin " << tokens[i].margin;
  }
}

INSTANTIATE_TEST_SUITE_P(Prompts, DemoGoldenTest, ::testing::Values("short", "long"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace hyserve::model
