// Full attention, its block scores and its selection, against double precision, on every device.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "tests/engine/kernels/attention_case.h"
#include "tests/engine/kernels/full_attention_case.h"

namespace hyserve::kernels::testing {
namespace {

using tensor::DType;

constexpr int kSelected = 4;

std::vector<AttentionShape> Shapes() {
  return {{4, 2, 16, 16, 128, DType::kF32},   {4, 1, 32, 16, 128, DType::kBF16},
          {6, 3, 24, 40, 128, DType::kF32},   {8, 8, 64, 64, 128, DType::kBF16},
          {16, 1, 48, 32, 128, DType::kBF16}, {3, 1, 10, 6, 128, DType::kF32},
          {2, 2, 80, 50, 128, DType::kBF16}};
}

class FullAttentionParity : public ::testing::TestWithParam<tensor::DeviceOptions> {
 protected:
  FullAttentionParity() : device_(GetParam()), case_(device_) {}

  FullAttentionResult Run(const AttentionWorld& world, const AttentionStep& step) {
    return case_.Run(world, step, kSelected);
  }
  void CheckRow(const AttentionWorld& world, const FullAttentionResult& result, int row,
                int sequence, int position) {
    case_.CheckRow(world, result, row, sequence, position);
  }

  TestDevice device_;
  FullAttentionCase case_;
};

TEST_P(FullAttentionParity, EveryRowOfARaggedBatchMatchesTheFormula) {
  for (const AttentionShape& any : Shapes()) {
    const AttentionShape shape = OnDevice(device_, any);
    SCOPED_TRACE(shape.Name());
    const AttentionWorld world(shape, {130, 1100, 64, 300}, 21);
    // A first token, rows around block edges, one decode row far out, a chunk in the middle.
    AttentionStep step(device_, world, {{0, 0, 130}, {1, 1099, 1}, {2, 63, 1}, {3, 190, 67}});
    const FullAttentionResult result = Run(world, step);
    for (int position : {0, 1, 62, 63, 64, 65, 127, 128, 129}) {
      CheckRow(world, result, position, 0, position);
    }
    CheckRow(world, result, 130, 1, 1099);
    CheckRow(world, result, 131, 2, 63);
    for (int i : {0, 1, 2, 65, 66}) CheckRow(world, result, 132 + i, 3, 190 + i);
  }
}

TEST_P(FullAttentionParity, LongContextsSpanSeveralSplits) {
  const AttentionShape shape = OnDevice(device_, {4, 2, 32, 32, 128, DType::kBF16});
  const AttentionWorld world(shape, {4500, 2113}, 22);
  AttentionStep step(device_, world, {{0, 4499, 1}, {1, 2045, 68}});
  const FullAttentionResult result = Run(world, step);
  CheckRow(world, result, 0, 0, 4499);
  for (int i : {0, 2, 3, 4, 66, 67}) CheckRow(world, result, 1 + i, 1, 2045 + i);
}

TEST_P(FullAttentionParity, GroupsSelectTheirOwnBlocks) {
  const AttentionShape shape = OnDevice(device_, {4, 4, 16, 16, 128, DType::kF32});
  const AttentionWorld world(shape, {1500}, 23);
  AttentionStep step(device_, world, {{0, 1490, 10}});
  const FullAttentionResult result = Run(world, step);
  std::set<std::vector<int32_t>> sets;
  for (int g = 0; g < 4; ++g) {
    const auto begin = result.selection.begin() + g * kSelected;
    sets.insert(std::vector<int32_t>(begin, begin + kSelected));
  }
  EXPECT_GT(sets.size(), 1u);
}

TEST_P(FullAttentionParity, TiesGoToTheLowerBlock) {
  const AttentionShape shape = OnDevice(device_, {2, 1, 16, 16, 128, DType::kF32});
  AttentionWorld world(shape, {1000}, 24);
  // Every block repeats the first one, so all whole blocks tie.
  KeyValues& kv = world.mutable_pages(0, 0);
  for (size_t i = 64 * 16; i < kv.keys.size(); ++i) kv.keys[i] = kv.keys[i - 64 * 16];
  AttentionStep step(device_, world, {{0, 767, 1}});
  const FullAttentionResult result = Run(world, step);
  EXPECT_EQ(result.selection, (std::vector<int32_t>{0, 1, 2, 3}));
}

TEST_P(FullAttentionParity, FewerBlocksThanWantedAreAllSelected) {
  const AttentionShape shape = OnDevice(device_, {2, 1, 16, 16, 128, DType::kF32});
  const AttentionWorld world(shape, {200}, 25);
  AttentionStep step(device_, world, {{0, 0, 129}});
  const FullAttentionResult result = Run(world, step);
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
  const AttentionShape shape = OnDevice(device_, {1, 1, 16, 16, 128, DType::kF32});
  AttentionWorld world(shape, {700}, 26);
  // The best key of all for position 645 is 650, which it must not see; 650 itself sees it.
  for (int d = 0; d < 16; ++d) world.mutable_q(0, 650)[d] = world.q(0, 645)[d];
  KeyValues& kv = world.mutable_pages(0, 0);
  for (int d = 0; d < 16; ++d) {
    kv.keys[650 * 16 + d] = 10 * world.q(0, 645)[d];
    for (int t = 640; t <= 645; ++t) kv.keys[t * 16 + d] = -world.q(0, 645)[d];
  }
  AttentionStep step(device_, world, {{0, 640, 20}});
  const FullAttentionResult result = Run(world, step);
  const auto begin = result.selection.begin() + 5 * kSelected;
  for (auto block = begin; block != begin + kSelected; ++block) EXPECT_NE(*block, 10);
  CheckRow(world, result, 5, 0, 645);
  const auto later = result.selection.begin() + 10 * kSelected;
  EXPECT_NE(std::find(later, later + kSelected, 10), later + kSelected);
}

TEST_P(FullAttentionParity, LargeLogitsNeitherOverflowNorTie) {
  const AttentionShape shape = OnDevice(device_, {1, 1, 16, 16, 128, DType::kF32});
  AttentionWorld world(shape, {700}, 27);
  for (int d = 0; d < 16; ++d) world.mutable_q(0, 699)[d] *= 60.0f;
  AttentionStep step(device_, world, {{0, 699, 1}});
  const FullAttentionResult result = Run(world, step);
  for (float x : result.out) EXPECT_TRUE(std::isfinite(x));
  std::set<float> scores(result.scores.begin(), result.scores.begin() + 11);
  EXPECT_EQ(scores.size(), 11u);
}

TEST_P(FullAttentionParity, RunsWithoutOracleOutput) {
  const AttentionShape shape = OnDevice(device_, {4, 2, 16, 24, 128, DType::kBF16});
  const AttentionWorld world(shape, {500}, 28);
  AttentionStep step(device_, world, {{0, 400, 50}});
  const FullAttentionResult with = Run(world, step);
  EXPECT_TRUE(SameBits(case_.RunWithoutOracle(world, step), with.out));
}

INSTANTIATE_TEST_SUITE_P(Devices, FullAttentionParity, ::testing::ValuesIn(TestDevices()),
                         [](const auto& info) { return DeviceName(info.param); });

}  // namespace
}  // namespace hyserve::kernels::testing
