#include "tests/engine/kernels/full_attention_case.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "engine/kernels/ops.h"

namespace hyserve::kernels::testing {

using tensor::DType;
using tensor::TensorView;

float FullAttentionCase::Scale(const AttentionShape& shape) {
  return 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
}

FullAttentionResult FullAttentionCase::Run(const AttentionWorld& world, const AttentionStep& step,
                                           int selected) {
  const AttentionShape& shape = world.shape();
  FullAttentionResult result;
  result.scores_stride = step.batch().max_context / 64 + 2;
  result.selected = selected;
  const TensorView out = device_.Output(step.num_rows(), world.out_cols(), device_.activation());
  const int64_t sets = int64_t{step.num_rows()} * shape.num_kv_heads;
  int32_t* selection = device_.UploadArray(std::vector<int32_t>(sets * selected, -7));
  float* scores = device_.UploadArray(std::vector<float>(sets * result.scores_stride, 1e9f));
  const absl::Status status = FullAttention(
      device_.get(), {.q = step.q,
                      .out = out,
                      .num_heads = shape.num_heads,
                      .scale = Scale(shape),
                      .batch = &step.batch(),
                      .kv = step.pages,
                      .selection = selection,
                      .selected_blocks = selected,
                      .block_scores = scores,
                      .scores_stride = result.scores_stride});
  EXPECT_TRUE(status.ok()) << status;
  result.out = device_.Download(out);
  result.selection = device_.DownloadArray(selection, sets * selected);
  result.scores = device_.DownloadArray(scores, sets * result.scores_stride);
  return result;
}

std::vector<float> FullAttentionCase::RunWithoutOracle(const AttentionWorld& world,
                                                       const AttentionStep& step) {
  const TensorView out = device_.Output(step.num_rows(), world.out_cols(), device_.activation());
  const absl::Status status = FullAttention(device_.get(), {.q = step.q,
                                                            .out = out,
                                                            .num_heads = world.shape().num_heads,
                                                            .scale = Scale(world.shape()),
                                                            .batch = &step.batch(),
                                                            .kv = step.pages});
  EXPECT_TRUE(status.ok()) << status;
  return device_.Download(out);
}

void FullAttentionCase::CheckRow(const AttentionWorld& world, const FullAttentionResult& result,
                                 int row, int sequence, int position) {
  const AttentionShape& shape = world.shape();
  const bool exact = device_.activation() == DType::kF32;
  const int heads = shape.heads_per_group();
  for (int g = 0; g < shape.num_kv_heads; ++g) {
    Doubles scores(position / 64 + 1, -std::numeric_limits<double>::infinity());
    double magnitude = 0;
    for (int h = g * heads; h < (g + 1) * heads; ++h) {
      const ReferenceRow want =
          ReferenceAttention(world.q(sequence, position) + h * shape.head_dim,
                             world.pages(sequence, g), Scale(shape), Range(0, position + 1),
                             nullptr);
      const auto begin = result.out.begin() + row * world.out_cols() + h * shape.v_head_dim;
      const std::vector<float> got(begin, begin + shape.v_head_dim);
      EXPECT_EQ(exact ? FirstDifference(got, want.out, 1e-5, 1e-5)
                      : FirstRowDifference(got, want.out, shape.v_head_dim, kBf16Tolerance),
                "")
          << "row " << row << " head " << h;
      for (size_t i = 0; i < scores.size(); ++i) {
        scores[i] = std::max(scores[i], want.block_scores[i]);
      }
      magnitude = std::max({magnitude, std::abs(want.lse), want.largest_logit});
    }
    const int64_t place = int64_t{row} * shape.num_kv_heads + g;
    const auto got = result.scores.begin() + place * result.scores_stride;
    EXPECT_EQ(FirstDifference(std::vector<float>(got, got + scores.size()), scores, 0,
                              exact ? 1e-5 : 1e-3),
              "");
    for (int64_t i = scores.size(); i < result.scores_stride; ++i) {
      EXPECT_EQ(got[i], -std::numeric_limits<float>::infinity());
    }
    CheckSelection(scores, magnitude, result, place);
  }
}

// The device's set is the oracle's of its own scores exactly, and the reference's up to blocks
// whose scores cannot be told apart from the last selected one (4 ulp on top of the error of the
// scores themselves).
void FullAttentionCase::CheckSelection(const Doubles& scores, double magnitude,
                                       const FullAttentionResult& result, int64_t place) {
  const int selected = result.selected;
  const auto begin = result.selection.begin() + place * selected;
  const std::vector<int32_t> got(begin, begin + selected);
  const auto device_scores = result.scores.begin() + place * result.scores_stride;
  EXPECT_EQ(got,
            ReferenceSelection(Doubles(device_scores, device_scores + scores.size()), selected));
  const std::vector<int32_t> want = ReferenceSelection(scores, selected);
  double last = std::numeric_limits<double>::infinity();
  for (int32_t block : want) {
    if (block >= 0) last = std::min(last, scores[block]);
  }
  const double allowance = 4 * std::ldexp(magnitude, -23) +
                           (device_.activation() == DType::kF32 ? 4e-6 : 1e-3);
  const std::set<int32_t> got_set(got.begin(), got.end()), want_set(want.begin(), want.end());
  for (int32_t block : got) {
    if (!want_set.contains(block)) {
      ASSERT_GE(block, 0);
      EXPECT_NEAR(scores[block], last, allowance);
    }
  }
  for (int32_t block : want) {
    if (!got_set.contains(block)) {
      ASSERT_GE(block, 0);
      EXPECT_NEAR(scores[block], last, allowance);
    }
  }
}

}  // namespace hyserve::kernels::testing
