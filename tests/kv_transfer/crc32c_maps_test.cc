// The arithmetic of the checksum kernel, on the host: the same steps as its threads take.
#include "kv_transfer/cuda/crc32c_maps.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kv_transfer/crc32c.h"

namespace hyserve::kv_transfer::cuda {
namespace {

std::vector<unsigned char> RandomBytes(size_t bytes) {
  std::mt19937 random(5);
  std::vector<unsigned char> data(bytes);
  for (unsigned char& byte : data) byte = static_cast<unsigned char>(random());
  return data;
}

TEST(Crc32cMapsTest, AdvancingIsAppendingZeros) {
  const std::vector<unsigned char> data = RandomBytes(100);
  for (const size_t zeros : {0, 1, 2, 3, 4, 16, 255, 4096, 4097, 65536}) {
    std::vector<unsigned char> longer = data;
    longer.resize(data.size() + zeros, 0);
    const uint32_t before = ~Crc32c(data.data(), data.size());
    const uint32_t after = ~Crc32c(longer.data(), longer.size());
    EXPECT_EQ(AdvanceMap(zeros)(before), after) << zeros;
    EXPECT_EQ(ToTable(AdvanceMap(zeros))(before), after) << zeros;
  }
}

TEST(Crc32cMapsTest, PartsAddUp) {
  const std::vector<unsigned char> data = RandomBytes(5000);
  for (const size_t cut : {1, 4, 2500, 4999}) {
    // The raw checksum of the tail: from 0, without the inversions.
    const uint32_t tail = ~Crc32c(data.data() + cut, data.size() - cut, ~uint32_t{0});
    const uint32_t head = ~Crc32c(data.data(), cut);
    EXPECT_EQ(~(AdvanceMap(data.size() - cut)(head) ^ tail), Crc32c(data.data(), data.size()));
  }
}

TEST(Crc32cMapsTest, LeadingZerosChangeNothingInARawChecksum) {
  std::vector<unsigned char> data = RandomBytes(64);
  const uint32_t raw = ~Crc32c(data.data(), data.size(), ~uint32_t{0});
  data.insert(data.begin(), 33, 0);
  EXPECT_EQ(~Crc32c(data.data(), data.size(), ~uint32_t{0}), raw);
}

TEST(Crc32cMapsTest, TheTreeOfOneTileGivesItsRawChecksum) {
  static constexpr CrcKernelTables kTables = MakeKernelTables();
  const std::vector<unsigned char> data = RandomBytes(kCrcTileBytes);
  std::vector<uint32_t> crc(kCrcThreads);
  for (size_t thread = 0; thread < crc.size(); ++thread) {
    for (size_t word = 0; word < 4; ++word) {
      uint32_t value = 0;
      for (size_t byte = 0; byte < 4; ++byte) {
        value |= static_cast<uint32_t>(data[16 * thread + 4 * word + byte]) << (8 * byte);
      }
      crc[thread] = kTables.word(crc[thread] ^ value);
    }
  }
  for (int level = 0; level < kTreeLevels; ++level) {
    const size_t distance = size_t{1} << level;
    for (size_t thread = 0; thread + distance < crc.size(); thread += 2 * distance) {
      crc[thread] = kTables.level[level](crc[thread]) ^ crc[thread + distance];
    }
  }
  EXPECT_EQ(crc[0], ~Crc32c(data.data(), data.size(), ~uint32_t{0}));
}

}  // namespace
}  // namespace hyserve::kv_transfer::cuda
