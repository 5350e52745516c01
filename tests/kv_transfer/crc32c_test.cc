#include "kv_transfer/crc32c.h"

#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace hyserve::kv_transfer {
namespace {

TEST(Crc32cTest, KnownAnswers) {
  EXPECT_EQ(Crc32c("", 0), 0u);
  EXPECT_EQ(Crc32c("123456789", 9), 0xE3069283u);       // the check value of the polynomial
  EXPECT_EQ(Crc32c(std::string(32, '\0').data(), 32), 0x8A9136AAu);   // RFC 3720 B.4
  EXPECT_EQ(Crc32c(std::string(32, '\xFF').data(), 32), 0x62A8AB43u);  // RFC 3720 B.4
}

TEST(Crc32cTest, HardwareAndPortableAgreeAtEveryLengthAndSplit) {
  if (!Crc32cHasHardware()) GTEST_SKIP() << "no SSE4.2 on this machine";
  std::mt19937 random(7);
  std::vector<unsigned char> data(100'000);
  for (unsigned char& byte : data) byte = static_cast<unsigned char>(random());
  for (size_t length = 0; length < 2000; ++length) {
    ASSERT_EQ(Crc32cHardware(data.data() + length % 8, length, 1),
              Crc32cPortable(data.data() + length % 8, length, 1))
        << length;
  }
  for (int i = 0; i < 50; ++i) {
    const size_t length = random() % data.size();
    const size_t split = length == 0 ? 0 : random() % length;
    const uint32_t whole = Crc32cPortable(data.data(), length, 0);
    ASSERT_EQ(Crc32cHardware(data.data(), length, 0), whole) << length;
    const uint32_t head = Crc32c(data.data(), split);
    ASSERT_EQ(Crc32c(data.data() + split, length - split, head), whole) << length << " " << split;
  }
}

TEST(Crc32cTest, AMessagesChecksumFromItsParts) {
  std::string text(10'000, 'x');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * i >> 3);
  for (const size_t cut : {1, 3, 4096, 9'999}) {
    const Crc32cAppend append(text.size() - cut);
    EXPECT_EQ(append(Crc32c(text.data(), cut), Crc32c(text.data() + cut, text.size() - cut)),
              Crc32c(text.data(), text.size()));
  }
}

}  // namespace
}  // namespace hyserve::kv_transfer
