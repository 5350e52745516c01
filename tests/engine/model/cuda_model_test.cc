// Whole nets on a GPU, whose activations and cache are bf16, against the float64 reference (golden
// files) and against the CPU. Needs a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "tests/engine/model/demo_golden.h"
#include "tests/engine/model/golden_file.h"
#include "tests/engine/model/model_runner.h"

namespace hyserve::model {
namespace {

using tensor::DType;

// Of the norm of a row's logits. The PyTorch reference in bf16 has a median of 1e-2 over the rows
// of the short prompt and 2e-3 over those of the long one. Single rows are touchy: noise of the
// size of one bf16 rounding on the weights moves row 63 of the short prompt by 1 to 5 percent in
// float32 already.
constexpr double kMedianTolerance = 1.5e-2;
constexpr double kWorstTolerance = 0.1;
// Two candidates closer than this (in logits, or in log-probabilities of blocks) may change places.
constexpr float kGreedyMargin = 0.25f;
constexpr float kSelectionMargin = 0.1f;

class CudaDemoTest : public ::testing::TestWithParam<const char*> {
 protected:
  const DemoGolden golden_{GetParam()};
  ModelRunner runner_ = ModelRunner::LoadOnCuda(kDemoDirectory);
};

TEST_P(CudaDemoTest, LogitsAndSelectionsOfChosenRows) {
  const DemoGolden::RowsComparison result = golden_.CompareRows(runner_);
  for (size_t i = 0; i < result.rows.size(); ++i) {
    std::printf("%s: row %d within %.4f\n", GetParam(), result.rows[i], result.logit_errors[i]);
  }
  int equal = 0, left_to_rounding = 0;
  for (const DemoGolden::SelectedSet& set : result.sets) {
    if (set.equal) {
      ++equal;
      continue;
    }
    EXPECT_LT(set.margin, kSelectionMargin) << set.place;
    ++left_to_rounding;
  }
  std::printf("%s: %d of %zu selections equal, %d near ties differ\n", GetParam(), equal,
              result.sets.size(), left_to_rounding);
  std::vector<double> errors = result.logit_errors;
  ASSERT_FALSE(errors.empty());
  std::sort(errors.begin(), errors.end());
  EXPECT_LE(errors[errors.size() / 2], kMedianTolerance);
  EXPECT_LE(errors.back(), kWorstTolerance);
  EXPECT_GT(equal, 4 * left_to_rounding);
}

TEST_P(CudaDemoTest, GreedyTokensFollowTheReference) {
  const std::vector<DemoGolden::Token> tokens = golden_.CompareGreedy(runner_);
  ASSERT_EQ(tokens.size(), 256u);
  int equal = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    equal += tokens[i].got == tokens[i].wanted;
    if (tokens[i].margin < kGreedyMargin) continue;
    ASSERT_EQ(tokens[i].got, tokens[i].wanted) << "token " << i << ", margin " << tokens[i].margin;
  }
  std::printf("%s: %d of 256 greedy tokens equal\n", GetParam(), equal);
  EXPECT_GE(equal, 240);
}

// Left to itself up to the end of its answer: what it says goes in again.
TEST_P(CudaDemoTest, AnswersAsTheCpu) {
  ModelRunner cpu = ModelRunner::Load(kDemoDirectory, DType::kBF16);
  const std::vector<int32_t>& ends = cpu.model().config().eos_token_ids;
  std::vector<int32_t> said[2];
  for (ModelRunner* runner : {&cpu, &runner_}) {
    ModelRunner::Sequence sequence =
        runner->NewSequence(static_cast<int64_t>(golden_.ids().size()) + 64);
    std::vector<int32_t>& tokens = said[runner == &runner_];
    int32_t token = runner->GreedyStep(sequence, golden_.ids());
    do {
      tokens.push_back(token);
      token = runner->GreedyStep(sequence, std::span(tokens).last(1));
    } while (tokens.size() < 64 &&
             std::find(ends.begin(), ends.end(), tokens.back()) == ends.end());
  }
  EXPECT_EQ(said[0], said[1]);
  EXPECT_GT(said[0].size(), 8u);
  EXPECT_LT(said[0].size(), 64u);
}

TEST_P(CudaDemoTest, LayersAreAnnouncedInOrderWhenTheyAreFinal) {
  const kv_cache::KvLayout& layout = runner_.model().layout();
  ModelRunner::Sequence sequence = runner_.NewSequence(static_cast<int64_t>(golden_.ids().size()));
  StepInput input;
  input.sequences.push_back(
      ModelRunner::Rows(sequence, golden_.ids(), SequenceRows::Logits::kLast));
  std::vector<int> slots;
  std::vector<std::vector<char>> seen;
  const auto slice = [&](int slot) {
    std::vector<char> bytes(layout.slice_bytes());
    EXPECT_TRUE(runner_.device()
                    .CopyToHost(bytes.data(), runner_.pool().Slice(slot, sequence.blocks[0]),
                                bytes.size())
                    .ok());
    return bytes;
  };
  input.on_layer_kv_ready = [&](int slot) {
    slots.push_back(slot);
    seen.push_back(slice(slot));
  };
  runner_.Forward(input);
  ASSERT_EQ(slots.size(), layout.full_layers.size());
  for (size_t i = 0; i < slots.size(); ++i) {
    EXPECT_EQ(slots[i], static_cast<int>(i));
    EXPECT_EQ(seen[i], slice(slots[i]));
    EXPECT_NE(seen[i], std::vector<char>(seen[i].size(), 0));
  }
}

INSTANTIATE_TEST_SUITE_P(Prompts, CudaDemoTest, ::testing::Values("short", "long"),
                         [](const auto& info) { return std::string(info.param); });

// Every kind of layer, MoE, gates, sinks and rotary that the reference knows, in nets so small that
// bf16 alone moves their logits by several percent. `error` is that of the PyTorch reference in
// bf16 (tools/reference/model.py, dtype bfloat16) on the same ids.
struct GoldenNet {
  const char* name;
  double error;
};

class CudaGoldenTest : public ::testing::TestWithParam<GoldenNet> {};

TEST_P(CudaGoldenTest, LogitsAreAsGoodAsPyTorchsInBf16) {
  const std::string directory = absl::StrCat(kGoldenDirectory, "/", GetParam().name);
  const GoldenFile golden(directory + "/golden.safetensors");
  const std::vector<int32_t> ids = golden.Ints("input_ids");
  ModelRunner runner = ModelRunner::LoadOnCuda(directory);
  ModelRunner::Sequence sequence = runner.NewSequence(static_cast<int64_t>(ids.size()));
  const StepOutput output = runner.Step(sequence, ids);
  const double error = RelativeError(output.logits, golden.Floats("logits"));
  std::printf("%s: logits within %.3f, PyTorch %.3f\n", GetParam().name, error, GetParam().error);
  // Which roundings fall together is chance: not to be told from equal below this.
  EXPECT_LE(error, 1.5 * GetParam().error);
}

INSTANTIATE_TEST_SUITE_P(
    Nets, CudaGoldenTest,
    ::testing::Values(GoldenNet{"budget_covers", 0.031}, GoldenNet{"element_gates", 0.057},
                      GoldenNet{"gqa", 0.062}, GoldenNet{"moe", 0.149},
                      GoldenNet{"moe_plain", 0.122}, GoldenNet{"no_sinks_no_gates", 0.052},
                      GoldenNet{"partial_rotary", 0.032}, GoldenNet{"sliding_first", 0.053},
                      GoldenNet{"tied_sparse_last", 0.054}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace hyserve::model
