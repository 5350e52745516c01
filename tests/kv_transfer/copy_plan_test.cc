#include "kv_transfer/copy_plan.h"

#include <random>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hyserve::kv_transfer {
namespace {

using testing::ElementsAre;

std::vector<CopyMessage> Drain(CopyPlan& plan) {
  std::vector<CopyMessage> messages;
  while (const std::optional<CopyMessage> message = plan.Next()) messages.push_back(*message);
  return messages;
}

CopyMessage Blocks(int32_t layer, int64_t first, int64_t count, size_t slice) {
  return {.layer_slot = layer, .first_block = first, .num_blocks = count, .offset = 0,
          .length = static_cast<size_t>(count) * slice};
}

TEST(CopyPlanTest, NeighboursTravelTogetherAndBothSidesBreaksCut) {
  CopyPlan plan({.num_layers = 1, .slice_bytes = 10, .slab_bytes = 0, .max_message_bytes = 1000},
                BreakMap({0, 1, 2, 7, 8, 9}), BreakMap({4, 5, 6, 7, 1, 2}));
  plan.LayerReady(0, 6);
  EXPECT_THAT(Drain(plan),
              ElementsAre(Blocks(0, 0, 3, 10), Blocks(0, 3, 1, 10), Blocks(0, 4, 2, 10)));
}

TEST(CopyPlanTest, TheLimitCutsRunsAndTheSlab) {
  CopyPlan plan({.num_layers = 1, .slice_bytes = 10, .slab_bytes = 65, .max_message_bytes = 30},
                BreakMap({0, 1, 2, 3}), BreakMap({0, 1, 2, 3}));
  plan.LayerReady(0, 4);
  plan.SlabReady();
  EXPECT_THAT(Drain(plan),
              ElementsAre(Blocks(0, 0, 3, 10), Blocks(0, 3, 1, 10),
                          CopyMessage{.layer_slot = -1, .offset = 0, .length = 30},
                          CopyMessage{.layer_slot = -1, .offset = 30, .length = 30},
                          CopyMessage{.layer_slot = -1, .offset = 60, .length = 5}));
  EXPECT_TRUE(plan.Done());
}

TEST(CopyPlanTest, ABlockLargerThanTheLimitStillTravels) {
  CopyPlan plan({.num_layers = 1, .slice_bytes = 100, .slab_bytes = 0, .max_message_bytes = 30},
                BreakMap({0, 1}), BreakMap({0, 1}));
  plan.LayerReady(0, 2);
  EXPECT_THAT(Drain(plan), ElementsAre(Blocks(0, 0, 1, 100), Blocks(0, 1, 1, 100)));
}

TEST(CopyPlanTest, NothingIsSentBeforeItIsReadyAndNothingTwice) {
  CopyPlan plan({.num_layers = 2, .slice_bytes = 10, .slab_bytes = 5, .max_message_bytes = 100},
                BreakMap({0, 1, 2}), BreakMap({0, 1, 2}));
  EXPECT_TRUE(Drain(plan).empty());
  plan.LayerReady(1, 2);
  EXPECT_THAT(Drain(plan), ElementsAre(Blocks(1, 0, 2, 10)));
  plan.LayerReady(1, 1);  // an older word changes nothing
  EXPECT_TRUE(Drain(plan).empty());
  plan.LayerReady(0, 99);  // more than there is
  EXPECT_THAT(Drain(plan), ElementsAre(Blocks(0, 0, 3, 10)));
  plan.SlabReady();
  plan.LayerReady(1, 3);
  EXPECT_FALSE(plan.Done());
  EXPECT_THAT(Drain(plan), ElementsAre(Blocks(1, 2, 1, 10),
                                       CopyMessage{.layer_slot = -1, .offset = 0, .length = 5}));
  EXPECT_TRUE(plan.Done());
}

TEST(CopyPlanTest, AnyPlanCoversEveryBlockOnceInContiguousPieces) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    const int64_t count = 1 + static_cast<int64_t>(random() % 40);
    std::vector<int32_t> source;
    std::vector<int32_t> target;
    for (int64_t i = 0; i < count; ++i) {
      const auto next = [&](std::vector<int32_t>& blocks) {
        blocks.push_back(blocks.empty() || random() % 3 == 0 ? static_cast<int32_t>(random() % 1000)
                                                             : blocks.back() + 1);
      };
      next(source);
      next(target);
    }
    const size_t limit = 1 + random() % 100;
    CopyPlan plan({.num_layers = 3, .slice_bytes = 10, .slab_bytes = random() % 90,
                   .max_message_bytes = limit},
                  BreakMap(source), BreakMap(target));
    std::set<std::pair<int32_t, int64_t>> seen;
    for (int step = 0; !plan.Done(); ++step) {
      plan.LayerReady(static_cast<int32_t>(random() % 3), static_cast<int64_t>(random() % 50));
      if (step > 20) {
        plan.SlabReady();
        for (int layer = 0; layer < 3; ++layer) plan.LayerReady(layer, count);
      }
      for (const CopyMessage& message : Drain(plan)) {
        EXPECT_TRUE(message.num_blocks <= 1 || message.length <= limit);
        for (int64_t i = 0; i < message.num_blocks; ++i) {
          const int64_t block = message.first_block + i;
          EXPECT_TRUE(seen.emplace(message.layer_slot, block).second);
          if (i == 0) continue;
          const auto at = static_cast<size_t>(block);
          EXPECT_EQ(source[at], source[at - 1] + 1);
          EXPECT_EQ(target[at], target[at - 1] + 1);
        }
      }
    }
    EXPECT_EQ(seen.size(), static_cast<size_t>(3 * count));
  }
}

}  // namespace
}  // namespace hyserve::kv_transfer
