#include "kv_transfer/handoff_message.h"

#include <random>

#include "gtest/gtest.h"
#include "kv_transfer/crc32c.h"
#include "kv_transfer/transport.h"
#include "tests/kv_transfer/handoff_pool.h"

namespace hyserve::kv_transfer {
namespace {

Envelope TestEnvelope() {
  return {.id = TestId(77), .epoch = 3, .sender_incarnation = 0x1122334455667788,
          .receiver_incarnation = 9, .generation = 12};
}

std::vector<ControlMessage> AllControlMessages() {
  const Envelope e = TestEnvelope();
  return {{e, PullBody{5, 700, BreakMap({3, 4, 9, 10, 11, 2, 3, 4, 5, 6, 1})}},
          {e, RenewBody{}},
          {e, CommitBody{}},
          {e, CancelBody{true}},
          {e, CancelBody{false}},
          {e, FinalBody{5, 700, {0, 3, -1, 9}, "token 1"}},
          {e, FailedBody{Failure::kLayoutMismatch}},
          {e, RenewAckBody{}},
          {e, CommitAckBody{}}};
}

// Replaces the checksum, so that the check behind it is reached.
std::string Resum(std::string bytes) {
  const uint32_t crc = Crc32c(bytes.data(), bytes.size() - 4);
  for (size_t i = 0; i < 4; ++i) bytes[bytes.size() - 4 + i] = static_cast<char>(crc >> (8 * i));
  return bytes;
}

TEST(HandoffMessageTest, EveryMessageSurvivesTheWire) {
  for (const ControlMessage& message : AllControlMessages()) {
    const auto decoded = DecodeControl(Encode(message));
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(*decoded, message);
  }
  const DataHeader header{.envelope = TestEnvelope(), .kind = MessageKind::kSlab, .layer_slot = 1,
                          .first_block = 2, .num_blocks = 3, .offset = uint64_t{1} << 40,
                          .length = 5, .crc = 6};
  const std::string bytes = Encode(header);
  EXPECT_LE(bytes.size(), kMaxDataHeaderBytes);
  EXPECT_EQ(*DecodeDataHeader(bytes), header);
}

TEST(HandoffMessageTest, EveryCutAndEveryFlippedBitIsRefused) {
  for (const ControlMessage& message : AllControlMessages()) {
    const std::string bytes = Encode(message);
    for (size_t length = 0; length < bytes.size(); ++length) {
      EXPECT_FALSE(DecodeControl(std::string_view(bytes).substr(0, length)).ok()) << length;
    }
    EXPECT_FALSE(DecodeControl(bytes + "x").ok());
    for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
      std::string flipped = bytes;
      flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ 1 << (bit % 8));
      EXPECT_FALSE(DecodeControl(flipped).ok()) << bit;
    }
  }
}

TEST(HandoffMessageTest, CountsThatLieAreRefusedEvenWithAValidChecksum) {
  const std::string pull = Encode(AllControlMessages()[0]);
  const size_t num_blocks_at = 48 + 4 + 16;  // envelope, layout hash, tokens
  for (const uint32_t count : {0u, 12u, 17u, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
    std::string bytes = pull;
    for (size_t i = 0; i < 4; ++i) bytes[num_blocks_at + i] = static_cast<char>(count >> (8 * i));
    EXPECT_FALSE(DecodeControl(Resum(bytes)).ok() && count != 12u) << count;
  }
  const std::string final = Encode(AllControlMessages()[5]);
  for (const size_t at : {num_blocks_at, num_blocks_at + 4}) {
    std::string bytes = final;
    bytes[at] = static_cast<char>(bytes[at] + 1);
    EXPECT_FALSE(DecodeControl(Resum(bytes)).ok());
    bytes[at + 3] = '\x7F';
    EXPECT_FALSE(DecodeControl(Resum(bytes)).ok());
  }
}

TEST(HandoffMessageTest, ControlAndDataAreNotTakenForEachOther) {
  const DataHeader header{.envelope = TestEnvelope(), .length = 5};
  EXPECT_FALSE(DecodeControl(Encode(header)).ok());
  for (const ControlMessage& message : AllControlMessages()) {
    EXPECT_FALSE(DecodeDataHeader(Encode(message)).ok());
  }
}

TEST(HandoffMessageTest, RandomBytesNeverDecode) {
  std::mt19937 random(1);
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes(random() % 200, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    EXPECT_FALSE(DecodeControl(bytes).ok());
    EXPECT_FALSE(DecodeDataHeader(bytes).ok());
  }
}

TEST(BreakMapTest, MarksWhereMemoryIsNotContiguous) {
  const BreakMap map({5, 6, 7, 3, 4, 9, 8, 10, 11});
  const std::vector<bool> expected = {true, false, false, true, false, true, true, true, false};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(map.BreakBefore(static_cast<int64_t>(i)), expected[i]) << i;
  }
}

TEST(LayoutHashTest, DiffersWithTheLayout) {
  EXPECT_EQ(LayoutHash(TestLayout(2, 4, 100)), LayoutHash(TestLayout(2, 4, 100)));
  EXPECT_NE(LayoutHash(TestLayout(2, 4, 100)), LayoutHash(TestLayout(2, 8, 100)));
}

}  // namespace
}  // namespace hyserve::kv_transfer
