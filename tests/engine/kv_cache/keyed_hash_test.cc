#include "engine/kv_cache/keyed_hash.h"

#include <gtest/gtest.h>

#include <vector>

namespace hyserve::kv_cache {
namespace {

// Key 00 01 .. 0f, input 00 01 .. (n - 1), as in the published vectors of the 128-bit variant.
constexpr Hash128 kKey{0x0706050403020100u, 0x0f0e0d0c0b0a0908u};

Hash128 HashOfCounting(int length) {
  std::vector<uint8_t> input;
  for (int i = 0; i < length; ++i) input.push_back(static_cast<uint8_t>(i));
  return KeyedHash(kKey, input);
}

TEST(KeyedHashTest, MatchesPublishedVectors) {
  EXPECT_EQ(HashOfCounting(0), (Hash128{0xe6a825ba047f81a3u, 0x930255c71472f66du}));
  EXPECT_EQ(HashOfCounting(1), (Hash128{0x44af996bd8c187dau, 0x45fc229b11597634u}));
}

TEST(KeyedHashTest, DependsOnKeyLengthAndEveryByte) {
  const std::vector<uint8_t> input(24, 0);
  const Hash128 base = KeyedHash(kKey, input);
  EXPECT_NE(KeyedHash({kKey.low + 1, kKey.high}, input), base);
  EXPECT_NE(KeyedHash({kKey.low, kKey.high + 1}, input), base);
  EXPECT_NE(KeyedHash(kKey, std::vector<uint8_t>(25, 0)), base);
  for (size_t i = 0; i < input.size(); ++i) {
    std::vector<uint8_t> changed = input;
    changed[i] = 1;
    EXPECT_NE(KeyedHash(kKey, changed), base) << i;
  }
}

TEST(KeyedHashTest, RandomKeysDiffer) { EXPECT_NE(RandomHashKey(), RandomHashKey()); }

}  // namespace
}  // namespace hyserve::kv_cache
