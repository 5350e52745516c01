// The bounds that workspaces are reserved by (kernels/reserve.h) against the plans of random calls
// within them. Host arithmetic only: needs no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "engine/kernels/cuda/full_attention_prefill.h"
#include "engine/kernels/cuda/full_attention_prefill_plan.h"
#include "engine/kernels/cuda/moe_forward.h"
#include "engine/kernels/cuda/window_sparse_attention_launch.h"

namespace hyserve::kernels::cuda {
namespace {

class WorkspaceBoundsTest : public ::testing::Test {
 protected:
  // In [low, high], small numbers as often as large ones.
  int64_t Draw(int64_t low, int64_t high) {
    const double ratio = static_cast<double>(high) / static_cast<double>(low);
    const double exponent = std::uniform_real_distribution<double>(0, 1)(random_);
    const auto drawn = static_cast<int64_t>(static_cast<double>(low) * std::pow(ratio, exponent));
    return std::clamp(drawn + std::uniform_int_distribution<int64_t>(-1, 1)(random_), low, high);
  }
  template <typename T>
  T Pick(std::vector<T> values) {
    return values[std::uniform_int_distribution<size_t>(0, values.size() - 1)(random_)];
  }

  std::mt19937_64 random_{7};
};

TEST_F(WorkspaceBoundsTest, ScoresOfFullPrefill) {
  double closest = 0;
  for (int limits = 0; limits < 200; ++limits) {
    const int64_t most_rows = Draw(64, 16384);
    const int64_t most_context = Draw(most_rows, 1 << 20);
    PrefillPlanOptions options = {.num_heads = Pick<int>({8, 32, 64}),
                                  .heads_per_group = 4,
                                  .kv_bytes_per_token = 512,
                                  .num_sms = 132,
                                  .with_scores = true};
    const int64_t bound = MostPrefillElements(most_rows, kPrefillRows, most_context, options);
    for (int call = 0; call < 50; ++call) {
      std::vector<PrefillSequence> sequences;
      const int64_t least = Draw(kPrefillRows, most_rows);
      for (int64_t left = Draw(kPrefillRows, most_rows); left >= least;) {
        const int64_t rows = std::min(left, Draw(least, std::min(2 * least, most_rows)));
        const int64_t context = Pick<int>({0, 1}) != 0 ? most_context : Draw(rows, most_context);
        sequences.push_back({.num_rows = static_cast<int32_t>(rows),
                             .first_position = static_cast<int32_t>(context - rows)});
        left -= rows;
      }
      for (const PrefillStep& step : PlanPrefill(sequences, options)) {
        const int64_t elements = step.score_elements + step.lse_elements;
        ASSERT_LE(elements, bound) << most_rows << " rows, context " << most_context;
        closest = std::max(closest, static_cast<double>(elements) / static_cast<double>(bound));
      }
    }
  }
  EXPECT_GT(closest, 0.9) << "a bound that nothing comes near wastes memory";
}

TEST_F(WorkspaceBoundsTest, ListsOfSparsePrefill) {
  double closest = 0;
  int64_t with_memory = 0;
  const int32_t any = 0;
  for (int limits = 0; limits < 300; ++limits) {
    WindowSparseArgs most;
    most.num_rows = static_cast<int>(Draw(64, 16384));
    most.num_seqs = static_cast<int>(Draw(1, 256));
    most.num_kv_heads = Pick<int>({1, 4, 8});
    most.num_heads = most.num_kv_heads * Pick<int>({1, 4, 8, 16});
    most.head_dim = Pick<int>({64, 128, 192});
    most.v_head_dim = std::min(128, most.head_dim);
    most.selected_blocks = Pick<int>({8, 16, 32});
    const int most_blocks = static_cast<int>(Draw(8, 16384));
    const size_t bound = WindowSparsePrefillMostWorkspaceBytes(most, most_blocks);
    for (int call = 0; call < 100; ++call) {
      WindowSparseArgs args = most;
      args.selection = &any;
      args.num_rows = call % 4 == 0 ? most.num_rows : static_cast<int>(Draw(1, most.num_rows));
      args.num_seqs = static_cast<int>(Draw(1, std::min(most.num_seqs, args.num_rows)));
      SparsePrefillWork work;
      work.num_rows = args.num_rows;
      work.max_blocks = call % 3 == 0 ? most_blocks : static_cast<int>(Draw(1, most_blocks));
      work.num_blocks = static_cast<int>(
          Draw(work.max_blocks, int64_t{work.max_blocks} * args.num_seqs));
      work.num_tiles = args.num_rows;
      const size_t bytes = WindowSparsePrefillWorkspaceBytes(args, work);
      ASSERT_LE(bytes, bound) << most.num_rows << " rows, " << most_blocks << " blocks";
      if (bytes == 0) continue;
      ++with_memory;
      closest = std::max(closest, static_cast<double>(bytes) / static_cast<double>(bound));
    }
  }
  EXPECT_GT(with_memory, 1000);
  EXPECT_GT(closest, 0.9) << "a bound that nothing comes near wastes memory";
}

TEST_F(WorkspaceBoundsTest, IntermediatesOfExperts) {
  for (int limits = 0; limits < 200; ++limits) {
    MoeForwardArgs most;
    most.rows = static_cast<int>(Draw(1, 16384));
    most.num_experts = Pick<int>({8, 16, 128, 512});
    most.per_token = Pick<int>({1, 3, 8});
    most.hidden = Pick<int>({64, 2048});
    most.intermediate = Pick<int>({64, 768});
    const size_t bound = MoeMostWorkspaceBytes(most);
    size_t largest = 0;
    for (MoeForwardArgs args = most; args.rows > 0; --args.rows) {
      largest = std::max(largest, MoeWorkspaceBytes(args));
    }
    EXPECT_EQ(largest, bound) << most.rows << " rows of " << most.num_experts << " experts";
  }
}

}  // namespace
}  // namespace hyserve::kernels::cuda
