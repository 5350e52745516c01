#include "engine/kv_cache/slab_allocator.h"

#include <gtest/gtest.h>

namespace hyserve::kv_cache {
namespace {

TEST(SlabAllocatorTest, CountsByOwnerAndReusesTheOldest) {
  SlabAllocator slabs(3);
  const SlabId first = *slabs.Allocate(MemoryState::kUsed);
  const SlabId second = *slabs.Allocate(MemoryState::kCached);
  EXPECT_NE(first, second);
  EXPECT_EQ(slabs.free(), 1);
  EXPECT_EQ(slabs.used(), 1);
  EXPECT_EQ(slabs.cached(), 1);
  slabs.Free(first);
  EXPECT_NE(*slabs.Allocate(MemoryState::kUsed), first) << "the third has been free for longer";
  EXPECT_EQ(*slabs.Allocate(MemoryState::kUsed), first);
  EXPECT_FALSE(slabs.Allocate(MemoryState::kUsed).has_value());
  EXPECT_TRUE(slabs.CheckInvariants().ok());
}

TEST(SlabAllocatorDeathTest, FreeingTwiceIsOurOwnDefect) {
  SlabAllocator slabs(1);
  const SlabId slab = *slabs.Allocate(MemoryState::kUsed);
  slabs.Free(slab);
  EXPECT_DEATH(slabs.Free(slab), "broken invariant");
}

}  // namespace
}  // namespace hyserve::kv_cache
