// The shapes that FullAttention's prefill kernel takes on a GPU: parity with the formula over
// prompts and chunks at odd positions, and rows that depend neither on their company nor on how
// their prompt is cut.
#include <gtest/gtest.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "tests/engine/kernels/full_attention_case.h"

namespace hyserve::kernels::testing {
namespace {

class FullPrefillCuda : public ::testing::Test {
 protected:
  FullPrefillCuda() : device_({"cuda", 1, "auto"}), case_(device_) {
    device_.set_extra_stride(8);  // rows at multiples of 16 bytes, as the kernel needs
  }

  // Sampled rows of every sequence: its first and last, both sides of tile edges, some between.
  void CheckSamples(const AttentionWorld& world, const AttentionStep& step,
                    const FullAttentionResult& result) {
    int first = 0;
    for (const StepRows& seq : step.rows()) {
      for (int i : {0, 1, 63, 64, 127, 128, 129, seq.num_rows / 2, seq.num_rows - 1}) {
        if (i >= seq.num_rows) continue;
        SCOPED_TRACE(::testing::Message() << "sequence " << seq.sequence << " row " << i);
        case_.CheckRow(world, result, first + i, seq.sequence, seq.first_position + i);
      }
      first += seq.num_rows;
    }
  }

  TestDevice device_;
  FullAttentionCase case_;
};

TEST_F(FullPrefillCuda, PromptsAndChunksMatchTheFormula) {
  for (const AttentionShape& shape :
       {Bf16Shape(8, 2, 64, 64), Bf16Shape(8, 2, 128, 128), Bf16Shape(16, 1, 192, 128),
        Bf16Shape(8, 1, 256, 256), Bf16Shape(10, 2, 128, 128), Bf16Shape(2, 2, 64, 64)}) {
    SCOPED_TRACE(shape.Name());
    const AttentionWorld world(shape, {300, 64, 1100, 2100, 1157}, 91);
    AttentionStep step(
        device_, world,
        {{0, 0, 300}, {1, 0, 64}, {2, 1, 1099}, {3, 1900, 200}, {4, 1024, 133}});
    const FullAttentionResult result = case_.Run(world, step, 16);
    CheckSamples(world, step, result);
    EXPECT_TRUE(SameBits(case_.RunWithoutOracle(world, step), result.out));
  }
}

TEST_F(FullPrefillCuda, LongContextsMatchTheFormula) {
  for (const AttentionShape& shape : {Bf16Shape(16, 1, 192, 128), Bf16Shape(8, 2, 128, 128)}) {
    SCOPED_TRACE(shape.Name());
    const AttentionWorld world(shape, {9001}, 92);
    AttentionStep step(device_, world, {{0, 8700, 301}});
    CheckSamples(world, step, case_.Run(world, step, 16));
  }
}

TEST_F(FullPrefillCuda, ManySelectedBlocksMatchTheFormula) {
  for (int selected : {1, 17, 64}) {
    const AttentionWorld world(Bf16Shape(4, 2, 128, 128), {5000}, 93);
    AttentionStep step(device_, world, {{0, 4900, 100}});
    CheckSamples(world, step, case_.Run(world, step, selected));
  }
}

TEST_F(FullPrefillCuda, MoreSequencesThanOneLaunchHolds) {
  const AttentionWorld world(Bf16Shape(4, 1, 128, 128), {200, 330, 70}, 94);
  std::vector<StepRows> rows;
  for (int i = 0; i < 40; ++i) rows.push_back({i % 3, i % 4, 64 + i % 3});
  AttentionStep step(device_, world, rows);
  CheckSamples(world, step, case_.Run(world, step, 4));
}

TEST_F(FullPrefillCuda, ChunksHaveTheBitsOfTheWholePrompt) {
  for (const AttentionShape& shape : {Bf16Shape(8, 2, 64, 64), Bf16Shape(8, 2, 128, 128),
                                      Bf16Shape(16, 1, 192, 128), Bf16Shape(8, 1, 256, 256)}) {
    SCOPED_TRACE(shape.Name());
    const AttentionWorld world(shape, {1500, 400}, 95);
    AttentionStep whole(device_, world, {{0, 0, 1500}}, 11);
    const FullAttentionResult expected = case_.Run(world, whole, 8);
    FullAttentionResult pieces;
    for (const auto& [begin, end] : std::vector<std::pair<int, int>>{
             {0, 701}, {701, 765}, {765, 1152}, {1152, 1500}}) {
      // With another sequence in front, so that rows stand elsewhere too.
      AttentionStep step(device_, world, {{1, 100, 77}, {0, begin, end - begin}}, 12 + begin);
      const FullAttentionResult part = case_.Run(world, step, 8);
      pieces.out.insert(pieces.out.end(), part.out.begin() + 77 * world.out_cols(),
                        part.out.end());
      pieces.selection.insert(pieces.selection.end(),
                              part.selection.begin() + 77 * shape.num_kv_heads * 8,
                              part.selection.end());
    }
    EXPECT_TRUE(SameBits(expected.out, pieces.out));
    EXPECT_EQ(expected.selection, pieces.selection);
  }
}

TEST_F(FullPrefillCuda, TiesGoToTheLowerBlock) {
  AttentionWorld world(Bf16Shape(2, 1, 64, 64), {1000}, 96);
  // Every block repeats the first one, so all whole blocks tie.
  KeyValues& kv = world.mutable_pages(0, 0);
  for (size_t i = 64 * 64; i < kv.keys.size(); ++i) kv.keys[i] = kv.keys[i - 64 * 64];
  AttentionStep step(device_, world, {{0, 600, 168}});
  const FullAttentionResult result = case_.Run(world, step, 4);
  const std::vector<int32_t> last(result.selection.end() - 4, result.selection.end());
  EXPECT_EQ(last, (std::vector<int32_t>{0, 1, 2, 3}));
}

}  // namespace
}  // namespace hyserve::kernels::testing
