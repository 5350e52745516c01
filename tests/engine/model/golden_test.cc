// The engine against the golden files of the reference implementation, in f32.
#include <algorithm>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/model/golden_file.h"
#include "tests/engine/model/model_runner.h"

namespace hyserve::model {
namespace {

using tensor::DType;

class GoldenTest : public ::testing::TestWithParam<const char*> {
 protected:
  std::string Directory() const { return kGoldenDirectory + "/" + GetParam(); }
};

// Layers whose selection is an output, in the order of StepOutput.
std::vector<int> OracleLayers(const Model& model) {
  std::vector<int> layers;
  for (const int slot : model.layout().oracle_slots) {
    layers.push_back(model.layout().full_layers[slot]);
  }
  return layers;
}

TEST_P(GoldenTest, LogitsAndSelectionsOfEveryRow) {
  const GoldenFile golden(Directory() + "/golden.safetensors");
  const std::vector<int32_t> ids = golden.Ints("input_ids");
  const std::vector<float> logits = golden.Floats("logits");
  ModelRunner runner = ModelRunner::Load(Directory(), DType::kF32);
  const int64_t vocab = runner.model().config().vocab_size;
  const int64_t num_rows = static_cast<int64_t>(ids.size());
  ASSERT_EQ(static_cast<int64_t>(logits.size()), num_rows * vocab);

  // Row by row, so that the selection of every row is seen.
  ModelRunner::Sequence sequence = runner.NewSequence(num_rows);
  const Trace trace = runner.Run(sequence, ids, 1);
  ASSERT_EQ(static_cast<int64_t>(trace.logits.size()), num_rows);
  const std::vector<int> oracles = OracleLayers(runner.model());
  ASSERT_FALSE(oracles.empty());
  std::vector<std::vector<int32_t>> tables;
  for (const int layer : oracles) {
    tables.push_back(golden.Ints(absl::StrCat("selection.", layer)));
  }
  double worst = 0;
  int64_t different_sets = 0;
  std::vector<float> all;
  for (int64_t row = 0; row < num_rows; ++row) {
    worst = std::max(worst, RelativeError(trace.logits[row],
                                          std::span(logits).subspan(row * vocab, vocab)));
    all.insert(all.end(), trace.logits[row].begin(), trace.logits[row].end());
    std::vector<int32_t> wanted;
    for (const std::vector<int32_t>& table : tables) {
      const int64_t width = static_cast<int64_t>(table.size()) / num_rows;
      wanted.insert(wanted.end(), table.begin() + row * width, table.begin() + (row + 1) * width);
    }
    different_sets += trace.selections[row] == wanted ? 0 : 1;
  }
  EXPECT_LE(RelativeError(all, logits), 1e-4);
  EXPECT_LE(worst, 1e-4);
  // The margins of these cases are above 1e-4, so rounding cannot decide a set.
  EXPECT_EQ(different_sets, 0);
}

TEST_P(GoldenTest, OneShotGivesTheSame) {
  const GoldenFile golden(Directory() + "/golden.safetensors");
  const std::vector<int32_t> ids = golden.Ints("input_ids");
  ModelRunner runner = ModelRunner::Load(Directory(), DType::kF32);
  ModelRunner::Sequence sequence = runner.NewSequence(static_cast<int64_t>(ids.size()));
  const StepOutput output = runner.Step(sequence, ids);
  EXPECT_LE(RelativeError(output.logits, golden.Floats("logits")), 1e-4);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTest,
                         ::testing::Values("gqa", "partial_rotary", "element_gates", "moe",
                                           "moe_plain", "sliding_first", "no_sinks_no_gates",
                                           "tied_sparse_last", "budget_covers"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace hyserve::model
