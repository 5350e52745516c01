// The host's plan of a step and the pool's addresses.
#include "engine/attention/attention_plan.h"

#include <algorithm>
#include <vector>

#include "engine/attention/kv_pool.h"
#include "engine/model/layout.h"
#include "engine/model/presets.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hyserve::attention {
namespace {

using ::testing::ElementsAre;

std::vector<int32_t> Span(const int32_t* data, int count) { return {data, data + count}; }

class AttentionPlanTest : public ::testing::Test {
 protected:
  std::unique_ptr<tensor::Device> device_ = *tensor::Device::Create({});
};

TEST_F(AttentionPlanTest, RowsPositionsAndPages) {
  const std::vector<int32_t> a = {7, 3, 9}, b = {4};
  const PlanSequence sequences[] = {{2, 126, a, 5}, {3, 0, b, 1}};
  AttentionPlan plan;
  for (int repeat = 0; repeat < 2; ++repeat) {  // a plan may be used again
    ASSERT_TRUE(plan.Build(*device_, sequences).ok());
    const kernels::AttentionBatch& batch = plan.batch();
    EXPECT_EQ(batch.num_seqs, 2);
    EXPECT_EQ(batch.num_rows, 5);
    EXPECT_EQ(batch.max_rows_per_seq, 3);
    EXPECT_EQ(batch.max_context, 128);
    EXPECT_THAT(Span(batch.row_begin, 3), ElementsAre(0, 2, 5));
    EXPECT_THAT(Span(batch.device_row_begin, 3), ElementsAre(0, 2, 5));
    EXPECT_THAT(Span(batch.first_position, 2), ElementsAre(126, 0));
    EXPECT_THAT(Span(batch.positions, 5), ElementsAre(126, 127, 0, 1, 2));
    EXPECT_THAT(Span(batch.row_seq, 5), ElementsAre(0, 0, 1, 1, 1));
    EXPECT_THAT(Span(batch.slab_index, 2), ElementsAre(5, 1));
    ASSERT_EQ(batch.page_table_stride, 2);
    EXPECT_THAT(Span(batch.page_table, 3), ElementsAre(7, 3, 4));
  }
}

// Contexts of a repeatable step are rounded up to few values that are at most a quarter larger.
TEST_F(AttentionPlanTest, RepeatableStepsHaveABound) {
  std::vector<int32_t> blocks(20000);
  AttentionPlan plan;
  std::vector<int> bounds;
  for (int pages = 1; pages <= 16384; ++pages) {
    const PlanSequence sequences[] = {{1, 0, blocks, 0}, {1, pages * 64 - 1, blocks, 1}};
    ASSERT_TRUE(plan.Build(*device_, sequences, /*repeatable=*/true).ok());
    const kernels::AttentionBatch& batch = plan.batch();
    ASSERT_EQ(batch.max_context, pages * 64);
    ASSERT_GE(batch.context_bound, batch.max_context);
    ASSERT_LE(batch.context_bound, std::max(1024, pages * 80));
    ASSERT_EQ(batch.page_table_stride, batch.context_bound / 64);
    if (bounds.empty() || bounds.back() != batch.context_bound) {
      bounds.push_back(batch.context_bound);
    }
  }
  EXPECT_TRUE(std::is_sorted(bounds.begin(), bounds.end()));
  EXPECT_LE(bounds.size(), 41u);
  ASSERT_TRUE(plan.Build(*device_, {}).ok());
  EXPECT_EQ(plan.batch().context_bound, 0);
}

TEST_F(AttentionPlanTest, WhatCannotBePlannedIsRefused) {
  const std::vector<int32_t> one = {0};
  AttentionPlan plan;
  const auto refused = [&](const PlanSequence& sequence) {
    return plan.Build(*device_, std::span(&sequence, 1)).code() ==
           absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused({0, 0, one, 0}));
  EXPECT_TRUE(refused({1, -1, one, 0}));
  EXPECT_TRUE(refused({65, 0, one, 0}));
  EXPECT_TRUE(refused({1, 64, one, 0}));
  EXPECT_TRUE(refused({2, 2147483646, one, 0}));
  EXPECT_FALSE(refused({64, 0, one, 0}));
  EXPECT_TRUE(plan.Build(*device_, {}).ok());
  EXPECT_EQ(plan.batch().num_rows, 0);
}

TEST_F(AttentionPlanTest, PoolAddressesFollowTheLayout) {
  const kv_cache::KvLayout layout =
      model::MakeKvLayout(*model::Preset("tiny"), tensor::DType::kBF16, "");
  const auto pool = KvPool::Create(*device_, layout, 10, 3);
  ASSERT_TRUE(pool.ok()) << pool.status();
  EXPECT_EQ((*pool)->block_memory().size_bytes(), 10 * layout.block_bytes());
  EXPECT_EQ((*pool)->slab_memory().size_bytes(), 3 * layout.slab_bytes);
  EXPECT_EQ((*pool)->Slice(0, 3) - (*pool)->Slice(0, 2),
            static_cast<ptrdiff_t>(layout.slice_bytes()));
  EXPECT_EQ((*pool)->Slice(1, 0) - (*pool)->Slice(0, 9),
            static_cast<ptrdiff_t>(layout.slice_bytes()));
  EXPECT_EQ((*pool)->Paged(1).data, (*pool)->Slice(1, 0));
  EXPECT_EQ((*pool)->Paged(1).num_blocks, 10);
  const kernels::WindowKv window = (*pool)->Window(1);
  EXPECT_EQ(window.data, (*pool)->Slab(0));
  EXPECT_EQ(window.slab_stride_bytes, static_cast<int64_t>(layout.slab_bytes));
  EXPECT_EQ(window.k_offset_bytes, static_cast<int64_t>(layout.rings[1].k_offset_bytes));
  EXPECT_EQ(window.window, 64);
}

TEST_F(AttentionPlanTest, PoolThatDoesNotFit) {
  const kv_cache::KvLayout layout =
      model::MakeKvLayout(*model::Preset("80b-a3b"), tensor::DType::kBF16, "");
  EXPECT_EQ(KvPool::Create(*device_, layout, 2147483647, 1).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(KvPool::Create(*device_, layout, int64_t{1} << 40, 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(KvPool::Create(*device_, layout, -1, 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  // A model without window layers has no slabs.
  const auto full = KvPool::Create(
      *device_, model::MakeKvLayout(*model::Preset("tiny-full"), tensor::DType::kBF16, ""), 1, 4);
  ASSERT_TRUE(full.ok());
  EXPECT_TRUE((*full)->slab_memory().empty());
}

}  // namespace
}  // namespace hyserve::attention
