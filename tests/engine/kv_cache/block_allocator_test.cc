#include "engine/kv_cache/block_allocator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace hyserve::kv_cache {
namespace {

using testing::ElementsAre;

std::vector<int> Indices(const std::vector<BlockId>& blocks) {
  std::vector<int> indices;
  for (const BlockId block : blocks) indices.push_back(Index(block));
  return indices;
}

std::vector<BlockId> Take(BlockAllocator& allocator, int64_t count) {
  std::vector<BlockId> blocks;
  EXPECT_TRUE(allocator.Allocate(count, &blocks));
  return blocks;
}

TEST(BlockAllocatorTest, GivesOneRunFromAFreshPool) {
  BlockAllocator allocator(8);
  EXPECT_THAT(Indices(Take(allocator, 3)), ElementsAre(0, 1, 2));
  EXPECT_THAT(Indices(Take(allocator, 2)), ElementsAre(3, 4));
  EXPECT_EQ(allocator.free(), 3);
  EXPECT_EQ(allocator.used(), 5);
}

TEST(BlockAllocatorTest, GivesAllOrNothing) {
  BlockAllocator allocator(4);
  std::vector<BlockId> blocks;
  EXPECT_FALSE(allocator.Allocate(5, &blocks));
  EXPECT_TRUE(blocks.empty());
  EXPECT_EQ(allocator.free(), 4);
  EXPECT_TRUE(allocator.Allocate(0, &blocks));
  EXPECT_TRUE(blocks.empty());
}

TEST(BlockAllocatorTest, PrefersTheLongestRunAmongTheOldest) {
  BlockAllocator allocator(12);
  const std::vector<BlockId> all = Take(allocator, 12);
  for (const int index : {1, 5, 7, 8, 9}) allocator.DropReference(all[index]);
  EXPECT_THAT(Indices(Take(allocator, 3)), ElementsAre(7, 8, 9));
  EXPECT_THAT(Indices(Take(allocator, 2)), ElementsAre(1, 5));
}

TEST(BlockAllocatorTest, RunsAreFoundInBothDirectionsFromTheOldest) {
  BlockAllocator allocator(8);
  const std::vector<BlockId> all = Take(allocator, 8);
  for (const int index : {4, 3, 2}) allocator.DropReference(all[index]);
  EXPECT_THAT(Indices(Take(allocator, 3)), ElementsAre(2, 3, 4));
}

TEST(BlockAllocatorTest, FifoReusesTheOldestAndLifoTheNewest) {
  for (const ReuseOrder order : {ReuseOrder::kFifo, ReuseOrder::kLifo}) {
    BlockAllocator allocator(6, order);
    const std::vector<BlockId> all = Take(allocator, 6);
    ASSERT_EQ(all.size(), 6u);
    auto block = [](int index) { return BlockId{index}; };
    allocator.DropReference(block(0));
    allocator.DropReference(block(2));
    allocator.DropReference(block(4));
    EXPECT_THAT(Indices(Take(allocator, 1)), ElementsAre(order == ReuseOrder::kFifo ? 0 : 4));
  }
}

TEST(BlockAllocatorTest, SharedBlockIsFreeOnlyAfterTheLastReference) {
  BlockAllocator allocator(2);
  const BlockId block = Take(allocator, 1)[0];
  allocator.AddReference(block);
  EXPECT_EQ(allocator.DropReference(block), MemoryState::kUsed);
  EXPECT_EQ(allocator.free(), 1);
  EXPECT_EQ(allocator.DropReference(block), MemoryState::kFree);
  EXPECT_EQ(allocator.free(), 2);
}

TEST(BlockAllocatorTest, CachedBlockIsKeptAndCanBeUsedAgain) {
  BlockAllocator allocator(1);
  const BlockId block = Take(allocator, 1)[0];
  allocator.SetCached(block, true);
  EXPECT_EQ(allocator.DropReference(block), MemoryState::kCached);
  EXPECT_EQ(allocator.cached(), 1);
  std::vector<BlockId> none;
  EXPECT_FALSE(allocator.Allocate(1, &none));
  allocator.AddReference(block);
  EXPECT_EQ(allocator.state(block), MemoryState::kUsed);
  EXPECT_EQ(allocator.DropReference(block), MemoryState::kCached);
  allocator.SetCached(block, false);
  EXPECT_EQ(allocator.free(), 1);
}

TEST(BlockAllocatorDeathTest, DroppingAFreeBlockIsOurOwnDefect) {
  BlockAllocator allocator(1);
  EXPECT_DEATH(allocator.DropReference(BlockId{0}), "broken invariant");
}

TEST(BlockAllocatorTest, InvariantsHoldUnderRandomUse) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    BlockAllocator allocator(37, seed % 2 ? ReuseOrder::kLifo : ReuseOrder::kFifo);
    std::vector<BlockId> held;  // one entry per reference
    std::vector<BlockId> cached;
    for (int step = 0; step < 400; ++step) {
      switch (random() % 4) {
        case 0: {
          std::vector<BlockId> fresh;
          if (allocator.Allocate(random() % 6, &fresh)) {
            for (const BlockId block : fresh) {
              ASSERT_EQ(std::count(held.begin(), held.end(), block), 0) << "given twice";
            }
            held.insert(held.end(), fresh.begin(), fresh.end());
          }
          break;
        }
        case 1:
          if (!held.empty()) {
            held.push_back(held[random() % held.size()]);
            allocator.AddReference(held.back());
          }
          break;
        case 2:
          if (!held.empty()) {
            const size_t at = random() % held.size();
            if (allocator.DropReference(held[at]) == MemoryState::kCached) {
              cached.push_back(held[at]);
            }
            held.erase(held.begin() + at);
          }
          break;
        case 3:
          if (!cached.empty()) {
            allocator.SetCached(cached.back(), false);
            cached.pop_back();
          } else if (!held.empty()) {
            allocator.SetCached(held[random() % held.size()], random() % 2 == 0);
          }
          break;
      }
      ASSERT_TRUE(allocator.CheckInvariants().ok()) << allocator.CheckInvariants();
    }
  }
}

}  // namespace
}  // namespace hyserve::kv_cache
