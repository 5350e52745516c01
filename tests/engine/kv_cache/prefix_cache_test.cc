#include "engine/kv_cache/prefix_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

namespace hyserve::kv_cache {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

std::vector<int32_t> Tokens(int count, int32_t first = 0) {
  std::vector<int32_t> tokens(count);
  for (int i = 0; i < count; ++i) tokens[i] = first + i;
  return tokens;
}

class PrefixCacheTest : public testing::Test {
 protected:
  void Make(bool needs_snapshots, int64_t num_blocks = 16, int64_t max_snapshots = 2,
            Hash128 key = {1, 2}) {
    cache_.reset();
    blocks_ = std::make_unique<BlockAllocator>(num_blocks);
    slabs_ = std::make_unique<SlabAllocator>(8);
    cache_ = std::make_unique<PrefixCache>(
        PrefixCacheOptions{needs_snapshots, max_snapshots, "layout", key}, blocks_.get(),
        slabs_.get());
  }
  void TearDown() override {
    if (cache_ == nullptr) return;
    EXPECT_TRUE(cache_->CheckInvariants().ok()) << cache_->CheckInvariants();
  }
  std::vector<Hash128> Keys(const std::vector<int32_t>& tokens, std::string scope = "") {
    std::vector<Hash128> keys;
    cache_->ExtendKeys(scope, tokens, &keys);
    return keys;
  }
  // A sequence that computes `tokens`, takes snapshots behind `snapshots` tokens, and ends.
  std::vector<BlockId> Compute(const std::vector<int32_t>& tokens,
                               const std::vector<int64_t>& snapshots = {}, std::string scope = "") {
    std::vector<BlockId> blocks, held;
    EXPECT_TRUE(cache_->Allocate(KvLayout::NumBlocks(tokens.size()), &blocks));
    const auto keys = Keys(tokens, scope);
    cache_->Publish(keys, tokens, blocks, tokens.size() / 64 * 64, &held);
    for (const int64_t at : snapshots) cache_->AddSnapshot(keys, at);
    cache_->Release(blocks);
    cache_->Release(held);
    return blocks;
  }
  // Length of the hit; gives its blocks back.
  int Look(const std::vector<int32_t>& tokens, std::string scope = "") {
    const auto hit = cache_->Acquire(Keys(tokens, scope), tokens,
                                     static_cast<int64_t>(tokens.size()) - 1);
    EXPECT_EQ(hit.blocks.size() * 64, static_cast<size_t>(hit.num_tokens));
    cache_->Release(hit.blocks);
    return hit.num_tokens;
  }

  std::unique_ptr<BlockAllocator> blocks_;
  std::unique_ptr<SlabAllocator> slabs_;
  std::unique_ptr<PrefixCache> cache_;
};

TEST_F(PrefixCacheTest, WithoutWindowLayersEveryBoundaryIsRestorable) {
  Make(false);
  const auto computed = Compute(Tokens(200));
  EXPECT_EQ(blocks_->cached(), 3);
  for (int length = 1; length <= 260; ++length) {
    EXPECT_EQ(Look(Tokens(length)), std::min(192, (length - 1) / 64 * 64)) << length;
  }
  auto hit = cache_->Acquire(Keys(Tokens(200)), Tokens(200), 199);
  EXPECT_THAT(hit.blocks, ElementsAre(computed[0], computed[1], computed[2]));
  EXPECT_EQ(blocks_->references(computed[0]), 1);
  EXPECT_EQ(hit.snapshot, kNoSlab);
  cache_->Release(hit.blocks);
}

TEST_F(PrefixCacheTest, WhatIsDistrustedIsNeverFoundAgain) {
  for (const bool needs_snapshots : {true, false}) {
    Make(needs_snapshots);
    // 64 tokens in common; the second branch is held by a sequence that restored it.
    std::vector<int32_t> branch = Tokens(64);
    for (const int32_t token : Tokens(136, 1000)) branch.push_back(token);
    Compute(Tokens(200), {64, 192});
    Compute(branch, {192});
    const auto keys = Keys(branch);
    const auto held = cache_->Acquire(keys, branch, 199);
    ASSERT_EQ(held.num_tokens, 192);
    cache_->Distrust(Keys(Tokens(200)), Tokens(200));
    EXPECT_TRUE(cache_->CheckInvariants().ok()) << cache_->CheckInvariants();
    EXPECT_EQ(Look(Tokens(200)), 0);
    EXPECT_EQ(Look(branch), 0) << "it builds on the block that both share";
    EXPECT_EQ(cache_->num_nodes(), 3) << "those that are held";
    EXPECT_EQ(cache_->num_snapshots(), 0);
    // Computed again beside the holder: not known yet, since the name is taken.
    Compute(branch, {192});
    EXPECT_EQ(Look(branch), 0);
    cache_->Release(held.blocks);
    EXPECT_EQ(cache_->num_nodes(), 0);
    EXPECT_EQ(blocks_->free(), blocks_->total());
    Compute(branch, {192});
    EXPECT_EQ(Look(branch), 192);
    cache_->Distrust({}, {});
    cache_->Distrust(Keys(Tokens(100, 5000)), Tokens(100, 5000));
    EXPECT_EQ(Look(branch), 192) << "of what is not there nothing is distrusted";
  }
}

TEST_F(PrefixCacheTest, WithWindowLayersOnlySnapshotsAreRestorable) {
  Make(true);
  Compute(Tokens(400), {128, 320});
  EXPECT_EQ(blocks_->cached(), 5) << "the sixth full block cannot be restored";
  EXPECT_EQ(Look(Tokens(128)), 0);
  EXPECT_EQ(Look(Tokens(129)), 128);
  EXPECT_EQ(Look(Tokens(320)), 128);
  EXPECT_EQ(Look(Tokens(321)), 320);
  EXPECT_EQ(Look(Tokens(1000)), 320);
}

TEST_F(PrefixCacheTest, AHitLeavesAtLeastOneTokenToCompute) {
  Make(false);
  Compute(Tokens(128));
  EXPECT_EQ(Look(Tokens(128)), 64);
  EXPECT_EQ(Look(Tokens(64)), 0);
  EXPECT_EQ(Look(Tokens(1)), 0);
}

TEST_F(PrefixCacheTest, ScopesAndOtherTokensDoNotMatch) {
  Make(false);
  Compute(Tokens(128), {}, "tenant-a");
  EXPECT_EQ(Look(Tokens(129), "tenant-a"), 128);
  EXPECT_EQ(Look(Tokens(129), "tenant-b"), 0);
  EXPECT_EQ(Look(Tokens(129), ""), 0);
  auto changed = Tokens(129);
  changed[64] ^= 1;
  EXPECT_EQ(Look(changed, "tenant-a"), 64);
  changed = Tokens(129);
  changed[0] ^= 1;
  EXPECT_EQ(Look(changed, "tenant-a"), 0);
}

TEST_F(PrefixCacheTest, NamesAreUnpredictableWithoutTheKey) {
  Make(false, 16, 2, {1, 2});
  const auto keys = Keys(Tokens(64));
  Make(false, 16, 2, {1, 3});
  EXPECT_NE(Keys(Tokens(64)), keys);
}

TEST_F(PrefixCacheTest, AnEqualNameWithOtherTokensIsNotBelieved) {
  Make(false);
  Compute(Tokens(64));
  const auto keys = Keys(Tokens(64));
  const auto others = Tokens(65, 1000);
  EXPECT_EQ(cache_->Acquire(keys, others, 64).num_tokens, 0);
}

TEST_F(PrefixCacheTest, SecondComputationKeepsTheFirstBlockAndHoldsIt) {
  Make(false, 16);
  const auto tokens = Tokens(130);
  const auto keys = Keys(tokens);
  std::vector<BlockId> a, b, held_a, held_b;
  ASSERT_TRUE(cache_->Allocate(3, &a));
  ASSERT_TRUE(cache_->Allocate(3, &b));
  cache_->Publish(keys, tokens, a, 64, &held_a);
  cache_->Publish(keys, tokens, b, 128, &held_b);
  EXPECT_THAT(held_a, IsEmpty());
  EXPECT_THAT(held_b, ElementsAre(a[0]));
  cache_->Publish(keys, tokens, b, 128, &held_b);
  EXPECT_THAT(held_b, SizeIs(1)) << "held once, however often it is published";
  cache_->Release(a);
  EXPECT_EQ(blocks_->state(a[0]), MemoryState::kUsed) << "ancestor of a block in use";
  EXPECT_TRUE(cache_->CheckInvariants().ok()) << cache_->CheckInvariants();
  cache_->Release(b);
  cache_->Release(held_b);
  EXPECT_EQ(blocks_->state(b[0]), MemoryState::kFree);
  EXPECT_EQ(blocks_->cached(), 2);
  EXPECT_EQ(Look(tokens), 128);
}

TEST_F(PrefixCacheTest, EvictsLeavesOfTheLeastRecentlyUsedFirst) {
  Make(false, 6);
  Compute(Tokens(192));                // 3 blocks
  Compute(Tokens(128, 1000));          // 2 blocks
  EXPECT_EQ(Look(Tokens(193)), 192);   // the first is the younger one now
  std::vector<BlockId> blocks;
  ASSERT_TRUE(cache_->Allocate(2, &blocks));
  EXPECT_EQ(Look(Tokens(129, 1000)), 64);
  EXPECT_EQ(Look(Tokens(193)), 192);
  ASSERT_TRUE(cache_->Allocate(2, &blocks));
  EXPECT_EQ(Look(Tokens(129, 1000)) + Look(Tokens(193)), 128);
  EXPECT_EQ(cache_->available(), 2);
  EXPECT_FALSE(cache_->Allocate(3, &blocks));
  EXPECT_EQ(blocks_->cached(), 2) << "a request that cannot be met evicts nothing";
  cache_->Release(blocks);
}

TEST_F(PrefixCacheTest, HeldBlocksAreNotEvicted) {
  Make(false, 4);
  Compute(Tokens(128));
  const auto hit = cache_->Acquire(Keys(Tokens(129)), Tokens(129), 128);
  EXPECT_EQ(cache_->available(), 2);
  std::vector<BlockId> blocks;
  EXPECT_FALSE(cache_->Allocate(3, &blocks));
  ASSERT_TRUE(cache_->Allocate(2, &blocks));
  cache_->Release(hit.blocks);
  EXPECT_EQ(Look(Tokens(129)), 128);
  cache_->Release(blocks);
}

TEST_F(PrefixCacheTest, SnapshotsAreBoundedAndTheLeastRecentlyRestoredGoes) {
  Make(true, 16, 2);
  Compute(Tokens(65, 0), {64});
  Compute(Tokens(65, 1000), {64});
  EXPECT_EQ(Look(Tokens(65, 0)), 64);
  Compute(Tokens(65, 2000), {64});
  EXPECT_EQ(cache_->num_snapshots(), 2);
  EXPECT_EQ(slabs_->cached(), 2);
  EXPECT_EQ(Look(Tokens(65, 0)), 64);
  EXPECT_EQ(Look(Tokens(65, 1000)), 0);
  EXPECT_EQ(Look(Tokens(65, 2000)), 64);
  EXPECT_EQ(blocks_->cached(), 2) << "blocks that nothing can restore are not kept";
}

TEST_F(PrefixCacheTest, InnerSnapshotGoesAndTheDeeperStaysRestorable) {
  Make(true, 16, 2);
  Compute(Tokens(300), {64, 256});
  EXPECT_EQ(Look(Tokens(300)), 256);
  Compute(Tokens(65, 1000), {64});  // takes the slab of the inner one
  EXPECT_EQ(Look(Tokens(100)), 0);
  EXPECT_EQ(Look(Tokens(300)), 256);
}

TEST_F(PrefixCacheTest, ASnapshotIsTakenOnceAndAFailedOneIsDropped) {
  Make(true);
  const auto tokens = Tokens(65);
  const auto keys = Keys(tokens);
  std::vector<BlockId> blocks, held;
  ASSERT_TRUE(cache_->Allocate(2, &blocks));
  cache_->Publish(keys, tokens, blocks, 64, &held);
  const auto slab = cache_->AddSnapshot(keys, 64);
  ASSERT_TRUE(slab.has_value());
  EXPECT_TRUE(cache_->HasSnapshot(keys[0]));
  EXPECT_FALSE(cache_->AddSnapshot(keys, 64).has_value());
  cache_->DropSnapshot(*slab);
  EXPECT_FALSE(cache_->HasSnapshot(keys[0]));
  cache_->Release(blocks);
  EXPECT_EQ(blocks_->cached(), 0);
  EXPECT_EQ(slabs_->free(), 8);
}

TEST_F(PrefixCacheTest, ClearForgetsEverythingThatNobodyHolds) {
  for (const bool windows : {false, true}) {
    Make(windows);
    Compute(Tokens(200), {64, 192});
    cache_->Clear();
    EXPECT_EQ(blocks_->free(), blocks_->total());
    EXPECT_EQ(slabs_->free(), slabs_->total());
    EXPECT_EQ(cache_->num_nodes(), 0);
  }
}

// Random sequences over a small alphabet of prompts: the tree never gives a block whose content is
// not that prefix, and every count returns.
TEST_F(PrefixCacheTest, RandomUseKeepsInvariantsAndContents) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const bool windows = seed % 2 == 0;
    Make(windows, 24, 3);
    struct Running {
      std::vector<int32_t> tokens;
      std::vector<Hash128> keys;
      std::vector<BlockId> blocks, held;
    };
    std::vector<Running> running;
    std::vector<std::vector<int32_t>> content(24);  // tokens from the beginning to this block's end
    for (int step = 0; step < 300; ++step) {
      if (running.size() < 4 && random() % 2 == 0) {
        Running sequence;
        const int blocks = 1 + random() % 5;
        for (int b = 0; b < blocks; ++b) {
          const auto part = Tokens(64, random() % 2 * 100);
          sequence.tokens.insert(sequence.tokens.end(), part.begin(), part.end());
        }
        sequence.tokens.push_back(7);
        sequence.keys = Keys(sequence.tokens);
        auto hit = cache_->Acquire(sequence.keys, sequence.tokens, sequence.tokens.size() - 1);
        for (size_t b = 0; b < hit.blocks.size(); ++b) {
          const std::vector<int32_t> expected(sequence.tokens.begin(),
                                              sequence.tokens.begin() + (b + 1) * 64);
          ASSERT_EQ(content[Index(hit.blocks[b])], expected);
        }
        sequence.blocks = hit.blocks;
        if (!cache_->Allocate(blocks + 1 - static_cast<int>(hit.blocks.size()),
                              &sequence.blocks)) {
          cache_->Release(hit.blocks);
        } else {
          for (size_t b = hit.blocks.size(); b < sequence.blocks.size(); ++b) {
            ASSERT_EQ(blocks_->references(sequence.blocks[b]), 1);
            content[Index(sequence.blocks[b])].assign(
                sequence.tokens.begin(),
                sequence.tokens.begin() + std::min((b + 1) * 64, sequence.tokens.size()));
          }
          running.push_back(std::move(sequence));
        }
      } else if (!running.empty()) {
        const size_t at = random() % running.size();
        Running& sequence = running[at];
        if (random() % 2 == 0) {
          const int64_t blocks = 1 + random() % (sequence.blocks.size() - 1);
          cache_->Publish(sequence.keys, sequence.tokens, sequence.blocks, blocks * 64,
                          &sequence.held);
          cache_->AddSnapshot(sequence.keys, blocks * 64);
        } else {
          cache_->Release(sequence.blocks);
          cache_->Release(sequence.held);
          running.erase(running.begin() + at);
        }
      }
      ASSERT_TRUE(cache_->CheckInvariants().ok()) << cache_->CheckInvariants();
    }
    for (Running& sequence : running) {
      cache_->Release(sequence.blocks);
      cache_->Release(sequence.held);
    }
    EXPECT_EQ(blocks_->used(), 0);
    cache_->Clear();
    EXPECT_EQ(blocks_->free(), 24);
    EXPECT_EQ(slabs_->free(), 8);
  }
}

}  // namespace
}  // namespace hyserve::kv_cache
