#include "engine/sampling/philox.h"

#include <gtest/gtest.h>

#include <array>

namespace hyserve::sampling {
namespace {

using Counter = std::array<uint32_t, 4>;

// Known answers published with the generator (Random123): all zeros, all ones, digits of pi.
TEST(PhiloxTest, MatchesKnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(Philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                       {0xa4093822, 0x299f31d0}),
            (Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, UniformIsInRangeWithTheRightMeanAndDependsOnEveryPart) {
  double sum = 0;
  for (uint64_t index = 0; index < 10000; ++index) {
    const double value = UniformAt(42, 0, index);
    ASSERT_GE(value, 0);
    ASSERT_LT(value, 1);
    sum += value;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 0.01);
  const double base = UniformAt(42, 0, 7);
  EXPECT_EQ(UniformAt(42, 0, 7), base);
  EXPECT_NE(UniformAt(43, 0, 7), base);
  EXPECT_NE(UniformAt(42 + (uint64_t{1} << 32), 0, 7), base);
  EXPECT_NE(UniformAt(42, 1, 7), base);
  EXPECT_NE(UniformAt(42, 0, 8), base);
  EXPECT_NE(UniformAt(42, 0, 7 + (uint64_t{1} << 32)), base);
}

}  // namespace
}  // namespace hyserve::sampling
