#include "services/router/prefix_index.h"

#include <gtest/gtest.h>

#include <numeric>

namespace hyserve::router {
namespace {

std::vector<int32_t> Tokens(int n, int first = 0) {
  std::vector<int32_t> tokens(n);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

TEST(HashBlocks, OnlyWholeBlocksCountAndEachCoversItsPrefix) {
  EXPECT_TRUE(HashBlocks(Tokens(63), "", 1).empty());
  const auto a = HashBlocks(Tokens(200), "", 1);
  EXPECT_EQ(a.size(), 3u);
  std::vector<int32_t> changed = Tokens(200);
  changed[70] = -5;
  const auto b = HashBlocks(changed, "", 1);
  EXPECT_EQ(a[0], b[0]);
  EXPECT_NE(a[1], b[1]);
  EXPECT_NE(a[2], b[2]);
}

TEST(HashBlocks, ScopeAndSaltSeparate) {
  const auto a = HashBlocks(Tokens(64), "tenant", 1);
  EXPECT_NE(a, HashBlocks(Tokens(64), "other", 1));
  EXPECT_NE(a, HashBlocks(Tokens(64), "tenant", 2));
  EXPECT_EQ(a, HashBlocks(Tokens(64), "tenant", 1));
}

TEST(PrefixIndex, FindsTheLongestKnownPrefixPerWorker) {
  PrefixIndex index(100);
  const auto hashes = HashBlocks(Tokens(256), "", 1);
  index.Insert(1, hashes);
  index.Insert(2, std::span(hashes).first(2));
  EXPECT_EQ(index.MatchedBlocks(1, hashes), 4);
  EXPECT_EQ(index.MatchedBlocks(2, hashes), 2);
  EXPECT_EQ(index.MatchedBlocks(3, hashes), 0);
  index.RemoveWorker(1);
  EXPECT_EQ(index.MatchedBlocks(1, hashes), 0);
  EXPECT_EQ(index.size(), 2);
}

TEST(PrefixIndex, StaysBoundedAndDropsTheOldestLeavesFirst) {
  PrefixIndex index(4);
  const auto old = HashBlocks(Tokens(192), "", 1);       // 3 blocks
  const auto recent = HashBlocks(Tokens(128, 999), "", 1);  // 2 blocks
  index.Insert(1, old);
  index.Insert(1, recent);
  EXPECT_EQ(index.size(), 4);
  EXPECT_EQ(index.MatchedBlocks(1, recent), 2);
  EXPECT_EQ(index.MatchedBlocks(1, old), 2);
  PrefixIndex off(0);
  off.Insert(1, old);
  EXPECT_EQ(off.size(), 0);
}

}  // namespace
}  // namespace hyserve::router
