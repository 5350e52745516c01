// The shapes that WindowSparseAttention's fast kernels take on a GPU (aligned rows): parity with
// the formula, and rows that do not depend on their company.
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "engine/kernels/ops.h"
#include "tests/engine/kernels/attention_case.h"
#include "tests/engine/kernels/window_sparse_case.h"

namespace hyserve::kernels::testing {
namespace {

constexpr int kAlignedStride = 8;  // elements

class WindowSparseCuda : public ::testing::Test {
 protected:
  WindowSparseCuda() : device_({"cuda", 1, "auto"}), case_(device_) {
    device_.set_extra_stride(kAlignedStride);
  }

  // Rows of the step at the given selection of its world: one call.
  std::vector<float> Attend(const AttentionWorld& world, std::vector<StepRows> rows,
                            const Variant& variant, uint64_t page_seed,
                            const std::vector<int32_t>& selection) {
    AttentionStep step(device_, world, std::move(rows), page_seed);
    return case_.Run(world, step, variant, selection);
  }

  TestDevice device_;
  WindowSparseCase case_;
};

TEST_F(WindowSparseCuda, PromptsDecodeRowsAndShortChunksMatchTheFormula) {
  for (const AttentionShape& shape :
       {Bf16Shape(8, 2, 64, 64), Bf16Shape(32, 8, 128, 128), Bf16Shape(32, 2, 192, 128),
        Bf16Shape(6, 2, 64, 64, 100), Bf16Shape(12, 1, 128, 128), Bf16Shape(2, 2, 192, 128, 33),
        Bf16Shape(64, 1, 64, 64, 200)}) {
    const AttentionWorld world(shape, {200, 1000, 400, 70, 2100}, 71);
    // A whole prompt, a decode row, a chunk that begins inside a block, rows to verify, a far row.
    AttentionStep step(device_, world,
                       {{0, 0, 200}, {1, 999, 1}, {2, 190, 150}, {3, 60, 8}, {4, 2095, 5}});
    for (const Variant& variant :
         {Variant{true, true, Gate::kHead, 16}, Variant{true, false, Gate::kElement, 5},
          Variant{true, true, Gate::kNone, 20}, Variant{false, true, Gate::kHead, 1}}) {
      SCOPED_TRACE(::testing::Message()
                   << shape.Name() << " sparse " << variant.sparse << " gate "
                   << static_cast<int>(variant.gate) << " blocks " << variant.selected_blocks);
      const std::vector<int32_t> selection =
          WindowSparseCase::RandomSelection(world, step, variant.selected_blocks);
      case_.CheckRows(world, step, variant, selection,
                      case_.Run(world, step, variant, selection), 61);
    }
  }
}

TEST_F(WindowSparseCuda, ALongPromptMatchesTheFormula) {
  const AttentionShape shape = Bf16Shape(64, 4, 192, 128);
  const AttentionWorld world(shape, {6000}, 72);
  AttentionStep step(device_, world, {{0, 4600, 1400}});
  const Variant variant = {true, true, Gate::kHead, 16};
  const std::vector<int32_t> selection = WindowSparseCase::RandomSelection(world, step, 16);
  case_.CheckRows(world, step, variant, selection, case_.Run(world, step, variant, selection),
                  311);
}

TEST_F(WindowSparseCuda, ARowHasTheSameBitsInEveryChunkAndBatchOfItsKernel) {
  const AttentionShape shape = Bf16Shape(16, 2, 128, 128);
  const AttentionWorld world(shape, {900, 500}, 73);
  const Variant variant = {true, true, Gate::kHead, 4};
  std::vector<int32_t> selection;
  std::vector<float> whole;
  {
    AttentionStep step(device_, world, {{0, 0, 900}});
    selection = WindowSparseCase::RandomSelection(world, step, variant.selected_blocks);
    whole = case_.Run(world, step, variant, selection);
  }
  const int64_t per_row = int64_t{shape.num_kv_heads} * variant.selected_blocks;
  const auto rows_of = [&](int begin, int count) {
    return std::vector<int32_t>(selection.begin() + begin * per_row,
                                selection.begin() + (begin + count) * per_row);
  };
  std::vector<float> pieces;
  int begin = 0;
  for (int count : {64, 9, 127, 300, 11, 389}) {
    // The other sequence's rows come first, so that tiles, rows and pages lie elsewhere.
    std::vector<int32_t> chosen(17 * per_row, 0);
    const std::vector<int32_t> own = rows_of(begin, count);
    chosen.insert(chosen.end(), own.begin(), own.end());
    const std::vector<float> out =
        Attend(world, {{1, 0, 17}, {0, begin, count}}, variant, 9 + begin, chosen);
    pieces.insert(pieces.end(), out.begin() + 17 * world.out_cols(), out.end());
    begin += count;
  }
  EXPECT_TRUE(SameBits(whole, pieces));

  // Rows of short steps, one by one and together.
  const std::vector<float> together = Attend(world, {{0, 700, 6}}, variant, 3, rows_of(700, 6));
  std::vector<float> alone;
  for (int i = 0; i < 6; ++i) {
    const std::vector<float> row =
        Attend(world, {{0, 700 + i, 1}}, variant, 4, rows_of(700 + i, 1));
    alone.insert(alone.end(), row.begin(), row.end());
  }
  EXPECT_TRUE(SameBits(together, alone));
}

}  // namespace
}  // namespace hyserve::kernels::testing
