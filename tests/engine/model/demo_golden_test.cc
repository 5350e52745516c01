// The demo model against its golden file: logits and selections of chosen rows of two prompts, and
// 256 greedy tokens.
#include <algorithm>
#include <string>
#include <vector>

#include "engine/model/presets.h"
#include "gtest/gtest.h"
#include "tests/engine/model/golden_file.h"
#include "tests/engine/model/model_runner.h"

namespace hyserve::model {
namespace {

using tensor::DType;

// Below this distance of scores or logits, f32 rounding may choose otherwise than f64.
constexpr float kTieMargin = 1e-3f;

const std::string kDemoDirectory = HYSERVE_SOURCE_DIR "/models/demo";

TEST(DemoModelTest, HasTheShapeOfItsPreset) {
  const auto config = ReadModelConfig(kDemoDirectory);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(*config, *Preset("demo"));
}

class DemoGoldenTest : public ::testing::TestWithParam<const char*> {
 protected:
  std::string Name(const char* tensor) const { return std::string(GetParam()) + "." + tensor; }

  const GoldenFile golden_{kGoldenDirectory + "/demo/golden.safetensors"};
  const std::vector<int32_t> ids_ = golden_.Ints(Name("input_ids"));
  ModelRunner runner_ = ModelRunner::LoadExact(kDemoDirectory, DType::kF32);
};

TEST_P(DemoGoldenTest, LogitsAndSelectionsOfChosenRows) {
  const std::vector<int32_t> rows = golden_.Ints(Name("rows"));
  const std::vector<float> logits = golden_.Floats(Name("logits"));
  const int64_t vocab = runner_.model().config().vocab_size;
  ASSERT_FALSE(rows.empty());
  const kv_cache::KvLayout& layout = runner_.model().layout();
  const int64_t group_width = layout.selected_blocks;
  ModelRunner::Sequence sequence = runner_.NewSequence(static_cast<int64_t>(ids_.size()));
  int compared = 0, left_to_rounding = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    // A step that ends at the row, so that its selection is seen.
    const StepOutput output = runner_.Step(
        sequence, std::span(ids_).subspan(sequence.length, rows[i] + 1 - sequence.length),
        SequenceRows::Logits::kLast);
    EXPECT_LE(RelativeError(output.logits, std::span(logits).subspan(i * vocab, vocab)), 1e-4)
        << "row " << rows[i];
    int64_t at = 0;
    for (const int slot : layout.oracle_slots) {
      const std::string layer = absl::StrCat(layout.full_layers[slot]);
      const std::vector<int32_t> wanted = golden_.Ints(Name("selection.") + layer);
      const std::vector<float> margin = golden_.Floats(Name("selection_margin.") + layer);
      for (int g = 0; g < layout.num_kv_heads; ++g, at += group_width) {
        const int64_t group = static_cast<int64_t>(i) * layout.num_kv_heads + g;
        if (margin[group] < kTieMargin) {
          ++left_to_rounding;
          continue;
        }
        ++compared;
        EXPECT_TRUE(std::equal(wanted.begin() + group * group_width,
                               wanted.begin() + (group + 1) * group_width,
                               output.selections[0].begin() + at))
            << "row " << rows[i] << ", layer " << layer << ", group " << g;
      }
    }
  }
  EXPECT_GT(compared, 4 * left_to_rounding);
}

TEST_P(DemoGoldenTest, GreedyTokensAreIdentical) {
  const std::vector<int32_t> greedy = golden_.Ints(Name("greedy_ids"));
  const std::vector<float> margin = golden_.Floats(Name("greedy_margin"));
  ASSERT_EQ(greedy.size(), 256u);
  ModelRunner::Sequence sequence =
      runner_.NewSequence(static_cast<int64_t>(ids_.size() + greedy.size()));
  StepOutput output = runner_.Step(sequence, ids_, SequenceRows::Logits::kGreedy);
  for (size_t i = 0; i < greedy.size(); ++i) {
    ASSERT_TRUE(output.logits.empty());
    ASSERT_EQ(output.greedy_tokens.size(), 1u);
    if (margin[i] >= kTieMargin) {
      ASSERT_EQ(output.greedy_tokens[0], greedy[i]) << "token " << i << ", margin " << margin[i];
    }
    // Near a tie the golden token is followed, so that every later token is still compared.
    output = runner_.Step(sequence, std::span(greedy).subspan(i, 1), SequenceRows::Logits::kGreedy);
  }
}

INSTANTIATE_TEST_SUITE_P(Prompts, DemoGoldenTest, ::testing::Values("short", "long"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace hyserve::model
