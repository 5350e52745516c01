// Full attention, its block scores and its selection, against double precision, on every device.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "engine/kernels/ops.h"
#include "tests/engine/kernels/attention_case.h"

namespace hyserve::kernels::testing {
namespace {

using tensor::DType;
using tensor::TensorView;

constexpr int kSelected = 4;

std::vector<AttentionShape> Shapes() {
  return {{4, 2, 16, 16, 128, DType::kF32},   {4, 1, 32, 16, 128, DType::kBF16},
          {6, 3, 24, 40, 128, DType::kF32},   {8, 8, 64, 64, 128, DType::kBF16},
          {16, 1, 48, 32, 128, DType::kBF16}, {3, 1, 10, 6, 128, DType::kF32},
          {2, 2, 80, 50, 128, DType::kBF16}};
}

class FullAttentionParity : public ::testing::TestWithParam<tensor::DeviceOptions> {
 protected:
  FullAttentionParity() : device_(GetParam()) {}

  struct Result {
    std::vector<float> out;
    std::vector<int32_t> selection;
    std::vector<float> scores;
    int64_t scores_stride = 0;
  };

  Result Run(const AttentionWorld& world, const AttentionStep& step, int selected = kSelected) {
    const AttentionShape& shape = world.shape();
    Result result;
    result.scores_stride = step.batch().max_context / 64 + 2;
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

  static float Scale(const AttentionShape& shape) {
    return 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  }

  // Checks everything of one row.
  void CheckRow(const AttentionWorld& world, const Result& result, int row, int sequence,
                int position) {
    const AttentionShape& shape = world.shape();
    const bool exact = device_.activation() == DType::kF32;
    const double tolerance = exact ? 1e-5 : 3e-2;
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
        EXPECT_EQ(FirstDifference(std::vector<float>(begin, begin + shape.v_head_dim), want.out,
                                  tolerance, tolerance),
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
                                exact ? 1e-5 : 5e-2),
                "");
      for (int64_t i = scores.size(); i < result.scores_stride; ++i) {
        EXPECT_EQ(got[i], -std::numeric_limits<float>::infinity());
      }
      CheckSelection(scores, magnitude, result, place, exact);
    }
  }

  // The device's set is the oracle's of its own scores exactly, and the reference's up to blocks
  // whose scores cannot be told apart from the last selected one (4 ulp, specification 11.2, on top
  // of the error of the scores themselves).
  void CheckSelection(const Doubles& scores, double magnitude, const Result& result, int64_t place,
                      bool exact) {
    const auto begin = result.selection.begin() + place * kSelected;
    const std::vector<int32_t> got(begin, begin + kSelected);
    const auto device_scores = result.scores.begin() + place * result.scores_stride;
    EXPECT_EQ(got, ReferenceSelection(Doubles(device_scores, device_scores + scores.size()),
                                      kSelected));
    const std::vector<int32_t> want = ReferenceSelection(scores, kSelected);
    double last = std::numeric_limits<double>::infinity();
    for (int32_t block : want) {
      if (block >= 0) last = std::min(last, scores[block]);
    }
    const double allowance =
        4 * std::ldexp(magnitude, -23) + (exact ? 4e-6 : 5e-2);
    std::set<int32_t> got_set(got.begin(), got.end()), want_set(want.begin(), want.end());
    for (int32_t block : got) {
      if (!want_set.contains(block)) {
        EXPECT_NEAR(scores[block], last, allowance);
      }
    }
    for (int32_t block : want) {
      if (!got_set.contains(block)) {
        EXPECT_NEAR(scores[block], last, allowance);
      }
    }
  }

  TestDevice device_;
};

TEST_P(FullAttentionParity, EveryRowOfARaggedBatchMatchesTheFormula) {
  for (const AttentionShape& shape : Shapes()) {
    SCOPED_TRACE(shape.Name());
    const AttentionWorld world(shape, {130, 1100, 64, 300}, 21);
    // A first token, rows around block edges, one decode row far out, a chunk in the middle.
    AttentionStep step(device_, world, {{0, 0, 130}, {1, 1099, 1}, {2, 63, 1}, {3, 190, 67}});
    const Result result = Run(world, step);
    for (int position : {0, 1, 62, 63, 64, 65, 127, 128, 129}) {
      CheckRow(world, result, position, 0, position);
    }
    CheckRow(world, result, 130, 1, 1099);
    CheckRow(world, result, 131, 2, 63);
    for (int i : {0, 1, 2, 65, 66}) CheckRow(world, result, 132 + i, 3, 190 + i);
  }
}

TEST_P(FullAttentionParity, LongContextsSpanSeveralSplits) {
  const AttentionShape shape = {4, 2, 32, 32, 128, DType::kBF16};
  const AttentionWorld world(shape, {4500, 2113}, 22);
  AttentionStep step(device_, world, {{0, 4499, 1}, {1, 2045, 68}});
  const Result result = Run(world, step);
  CheckRow(world, result, 0, 0, 4499);
  for (int i : {0, 2, 3, 4, 66, 67}) CheckRow(world, result, 1 + i, 1, 2045 + i);
}

TEST_P(FullAttentionParity, GroupsSelectTheirOwnBlocks) {
  const AttentionShape shape = {4, 4, 16, 16, 128, DType::kF32};
  const AttentionWorld world(shape, {1500}, 23);
  AttentionStep step(device_, world, {{0, 1490, 10}});
  const Result result = Run(world, step);
  std::set<std::vector<int32_t>> sets;
  for (int g = 0; g < 4; ++g) {
    const auto begin = result.selection.begin() + g * kSelected;
    sets.insert(std::vector<int32_t>(begin, begin + kSelected));
  }
  EXPECT_GT(sets.size(), 1u);
}

TEST_P(FullAttentionParity, TiesGoToTheLowerBlock) {
  const AttentionShape shape = {2, 1, 16, 16, 128, DType::kF32};
  AttentionWorld world(shape, {1000}, 24);
  // Every block repeats the first one, so all whole blocks tie.
  KeyValues& kv = world.mutable_pages(0, 0);
  for (size_t i = 64 * 16; i < kv.keys.size(); ++i) kv.keys[i] = kv.keys[i - 64 * 16];
  AttentionStep step(device_, world, {{0, 767, 1}});
  const Result result = Run(world, step);
  EXPECT_EQ(result.selection, (std::vector<int32_t>{0, 1, 2, 3}));
}

TEST_P(FullAttentionParity, FewerBlocksThanWantedAreAllSelected) {
  const AttentionShape shape = {2, 1, 16, 16, 128, DType::kF32};
  const AttentionWorld world(shape, {200}, 25);
  AttentionStep step(device_, world, {{0, 0, 129}});
  const Result result = Run(world, step);
  const auto set = [&](int row) {
    const auto begin = result.selection.begin() + row * kSelected;
    return std::vector<int32_t>(begin, begin + kSelected);
  };
  EXPECT_EQ(set(0), (std::vector<int32_t>{0, -1, -1, -1}));
  EXPECT_EQ(set(63), (std::vector<int32_t>{0, -1, -1, -1}));
  EXPECT_EQ(set(64), (std::vector<int32_t>{0, 1, -1, -1}));
  EXPECT_EQ(set(128), (std::vector<int32_t>{0, 1, 2, -1}));
}

TEST_P(FullAttentionParity, TheDiagonalBlockCompetesWithItsVisibleKeysOnly) {
  const AttentionShape shape = {1, 1, 16, 16, 128, DType::kF32};
  AttentionWorld world(shape, {700}, 26);
  // The best key of all for position 645 is 650, which it must not see; 650 itself sees it.
  for (int d = 0; d < 16; ++d) world.mutable_q(0, 650)[d] = world.q(0, 645)[d];
  KeyValues& kv = world.mutable_pages(0, 0);
  for (int d = 0; d < 16; ++d) {
    kv.keys[650 * 16 + d] = 10 * world.q(0, 645)[d];
    for (int t = 640; t <= 645; ++t) kv.keys[t * 16 + d] = -world.q(0, 645)[d];
  }
  AttentionStep step(device_, world, {{0, 640, 20}});
  const Result result = Run(world, step);
  const auto begin = result.selection.begin() + 5 * kSelected;
  for (auto block = begin; block != begin + kSelected; ++block) EXPECT_NE(*block, 10);
  CheckRow(world, result, 5, 0, 645);
  const auto later = result.selection.begin() + 10 * kSelected;
  EXPECT_NE(std::find(later, later + kSelected, 10), later + kSelected);
}

TEST_P(FullAttentionParity, LargeLogitsNeitherOverflowNorTie) {
  const AttentionShape shape = {1, 1, 16, 16, 128, DType::kF32};
  AttentionWorld world(shape, {700}, 27);
  for (int d = 0; d < 16; ++d) world.mutable_q(0, 699)[d] *= 60.0f;
  AttentionStep step(device_, world, {{0, 699, 1}});
  const Result result = Run(world, step, kSelected);
  for (float x : result.out) EXPECT_TRUE(std::isfinite(x));
  std::set<float> scores(result.scores.begin(), result.scores.begin() + 11);
  EXPECT_EQ(scores.size(), 11u);
}

TEST_P(FullAttentionParity, RunsWithoutOracleOutput) {
  const AttentionShape shape = {4, 2, 16, 24, 128, DType::kBF16};
  const AttentionWorld world(shape, {500}, 28);
  AttentionStep step(device_, world, {{0, 400, 50}});
  const Result with = Run(world, step);
  const TensorView out = device_.Output(50, world.out_cols(), device_.activation());
  ASSERT_TRUE(FullAttention(device_.get(), {.q = step.q,
                                            .out = out,
                                            .num_heads = 4,
                                            .scale = Scale(shape),
                                            .batch = &step.batch(),
                                            .kv = step.pages})
                  .ok());
  EXPECT_TRUE(SameBits(device_.Download(out), with.out));
}

INSTANTIATE_TEST_SUITE_P(Devices, FullAttentionParity, ::testing::ValuesIn(TestDevices()),
                         [](const auto& info) { return DeviceName(info.param); });

}  // namespace
}  // namespace hyserve::kernels::testing
