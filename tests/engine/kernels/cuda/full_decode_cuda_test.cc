// The shapes that FullAttention's decode kernel takes on a GPU: parity with the formula over long
// ragged batches, and rows that do not depend on their company.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engine/kernels/cuda/split_attention.h"
#include "tests/engine/kernels/full_attention_case.h"

namespace hyserve::kernels::testing {
namespace {

class FullDecodeCuda : public ::testing::TestWithParam<int> {
 protected:
  FullDecodeCuda() : device_({"cuda", 1, "auto"}), case_(device_) {
    device_.set_extra_stride(GetParam());
  }

  TestDevice device_;
  FullAttentionCase case_;
};

TEST_P(FullDecodeCuda, RaggedBatchesMatchTheFormula) {
  for (const AttentionShape& shape :
       {Bf16Shape(8, 2, 64, 64), Bf16Shape(8, 2, 128, 128), Bf16Shape(32, 2, 192, 128),
        Bf16Shape(16, 1, 256, 256), Bf16Shape(5, 1, 128, 128), Bf16Shape(72, 1, 64, 64)}) {
    SCOPED_TRACE(shape.Name());
    const AttentionWorld world(shape, {1, 64, 65, 900, 2600, 700}, 81);
    // First token, whole pages, several rows over a page's edge, a far row, a chunk of many rows.
    AttentionStep step(device_, world,
                       {{0, 0, 1}, {1, 63, 1}, {2, 62, 3}, {3, 893, 7}, {4, 2599, 1},
                        {5, 630, 40}});
    const FullAttentionResult result = case_.Run(world, step, 16);
    case_.CheckRow(world, result, 0, 0, 0);
    case_.CheckRow(world, result, 1, 1, 63);
    for (int i = 0; i < 3; ++i) case_.CheckRow(world, result, 2 + i, 2, 62 + i);
    for (int i = 0; i < 7; i += 2) case_.CheckRow(world, result, 5 + i, 3, 893 + i);
    case_.CheckRow(world, result, 12, 4, 2599);
    for (int i : {0, 8, 9, 10, 39}) case_.CheckRow(world, result, 13 + i, 5, 630 + i);
    EXPECT_TRUE(SameBits(case_.RunWithoutOracle(world, step), result.out));
  }
}

TEST_P(FullDecodeCuda, LongContextsOfManySplitsMatchTheFormula) {
  for (const AttentionShape& shape : {Bf16Shape(4, 1, 128, 128), Bf16Shape(4, 1, 192, 128)}) {
    SCOPED_TRACE(shape.Name());
    const AttentionWorld world(shape, {20000, 9001}, 82);
    AttentionStep step(device_, world, {{0, 19999, 1}, {1, 8999, 2}});
    const FullAttentionResult result = case_.Run(world, step, 16);
    case_.CheckRow(world, result, 0, 0, 19999);
    case_.CheckRow(world, result, 1, 1, 8999);
    case_.CheckRow(world, result, 2, 1, 9000);
  }
}

TEST_P(FullDecodeCuda, ARowHasTheSameBitsAloneAndInABatch) {
  for (const AttentionShape& shape : {Bf16Shape(8, 2, 64, 64), Bf16Shape(16, 1, 192, 128)}) {
    const AttentionWorld world(shape, {3000, 70, 5000, 500}, 83);
    const std::vector<StepRows> rows = {{0, 2999, 1}, {1, 69, 1}, {2, 4998, 2}, {3, 499, 1}};
    AttentionStep step(device_, world, rows, 11);
    const FullAttentionResult together = case_.Run(world, step, 8);
    std::vector<float> alone;
    std::vector<int32_t> selection;
    for (const StepRows& seq : rows) {
      AttentionStep single(device_, world, {seq}, 12);
      const FullAttentionResult result = case_.Run(world, single, 8);
      alone.insert(alone.end(), result.out.begin(), result.out.end());
      selection.insert(selection.end(), result.selection.begin(), result.selection.end());
    }
    EXPECT_TRUE(SameBits(together.out, alone));
    EXPECT_EQ(together.selection, selection);
  }
}

// What a step is given room for when only a bound on its contexts is known.
TEST(SplitBound, HoldsForEveryShorterContext) {
  for (const int kv_heads : {1, 2, 4, 8, 16, 32}) {
    for (const int group_heads : {1, 8, 16, 32}) {
      for (const int head_dim : {64, 128, 192, 256}) {
        int most = 0;
        for (int pages = 1; pages <= 20000; ++pages) {
          most = std::max(most, cuda::CeilDivide(pages, cuda::SplitPages(pages, true, kv_heads,
                                                                         group_heads, head_dim)));
          ASSERT_LE(most, cuda::MostSplits(pages, kv_heads, group_heads, head_dim))
              << pages << " pages, " << kv_heads << " KV heads of " << group_heads << " x "
              << head_dim;
        }
      }
    }
  }
}

// Rows that begin at a multiple of 16 bytes, and rows that do not.
INSTANTIATE_TEST_SUITE_P(ExtraStride, FullDecodeCuda, ::testing::Values(8, 3),
                         [](const auto& info) { return std::to_string(info.param); });

}  // namespace
}  // namespace hyserve::kernels::testing
