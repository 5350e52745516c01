#include "services/worker/handoff_trailer.h"

#include <gtest/gtest.h>

#include <vector>

namespace hyserve::worker {
namespace {

const std::vector<int32_t> kPrompt = {5, 6, 7, 1 << 20};

TEST(HandoffTrailer, RoundTrip) {
  for (const int32_t token : {0, 1, 255, 151'642, 0x7fffffff}) {
    const auto decoded = DecodeTrailer(EncodeTrailer(kPrompt, token), kPrompt);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(*decoded, token);
  }
}

TEST(HandoffTrailer, AnotherPromptIsRefused) {
  const std::string trailer = EncodeTrailer(kPrompt, 9);
  for (size_t i = 0; i < kPrompt.size(); ++i) {
    std::vector<int32_t> other = kPrompt;
    ++other[i];
    EXPECT_EQ(DecodeTrailer(trailer, other).status().code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_FALSE(DecodeTrailer(trailer, std::vector<int32_t>{5, 6, 7}).ok());
}

TEST(HandoffTrailer, EveryTruncationAndEveryFlipOfAHeaderBitIsRefused) {
  const std::string trailer = EncodeTrailer(kPrompt, 9);
  for (size_t length = 0; length < trailer.size(); ++length) {
    EXPECT_FALSE(DecodeTrailer(trailer.substr(0, length), kPrompt).ok());
  }
  EXPECT_FALSE(DecodeTrailer(trailer + '\0', kPrompt).ok());
  for (size_t bit = 0; bit < trailer.size() * 8; ++bit) {
    if (bit / 32 == 1) continue;  // the token itself: guarded by the transfer's checksum
    std::string flipped = trailer;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    EXPECT_FALSE(DecodeTrailer(flipped, kPrompt).ok()) << bit;
  }
}

}  // namespace
}  // namespace hyserve::worker
