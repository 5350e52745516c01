// UTF-8 helpers and NFC against plain definitions.
#include "engine/tokenizer/utf8.h"

#include <gtest/gtest.h>

#include <random>

#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/normalizer.h"

namespace hyserve::tokenizer {
namespace {

std::string Lossy(std::string_view text) {
  std::string out;
  AppendLossyUtf8(text, &out);
  return out;
}

TEST(Utf8Test, EveryScalarRoundTripsAndNothingElseIsValid) {
  for (uint32_t code_point = 0; code_point <= 0x10FFFF; ++code_point) {
    if (code_point >= 0xD800 && code_point <= 0xDFFF) continue;
    std::string text;
    AppendUtf8(code_point, &text);
    const Utf8Scalar scalar = DecodeUtf8(text, 0);
    ASSERT_TRUE(scalar.valid && scalar.code_point == code_point &&
                scalar.length_bytes == text.size());
    ASSERT_EQ(PreviousScalarStart("x" + text, text.size() + 1), 1u);
  }
  for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80",
                          "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5", "\xFF", "\xC3"}) {
    EXPECT_FALSE(IsValidUtf8(bad));
    EXPECT_TRUE(IsValidUtf8(Lossy(bad)));
  }
}

TEST(Utf8Test, EachMaximalSubpartBecomesOneReplacement) {
  EXPECT_EQ(Lossy("a\xF0\x9F\x98z"), "a\uFFFDz");
  EXPECT_EQ(Lossy("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(Lossy("\xE2\x82"), "\uFFFD");
  EXPECT_EQ(Lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF" "A"), "\uFFFD\uFFFD\uFFFD\uFFFD" "A");
}

TEST(Utf8Test, RangesMoveWithTheirText) {
  std::mt19937 random(4);
  const std::string units[] = {"a", "\u00E9", "\xFF", "\xE2\x82", "\U0001F600", "\xF0\x9F\x98"};
  for (int round = 0; round < 500; ++round) {
    std::string text, expected_text;
    std::vector<ByteRange> ranges, expected;
    for (int i = 0; i < 8; ++i) {
      const std::string unit = units[random() % 6] + "-";  // cut at a boundary of both texts
      const ByteRange before{text.size(), text.size() + unit.size()};
      const ByteRange after{expected_text.size(), expected_text.size() + Lossy(unit).size()};
      text += unit;
      expected_text += Lossy(unit);
      if (random() % 2 == 0) {
        ranges.push_back(before);
        expected.push_back(after);
      }
    }
    std::string out = "prefix";
    AppendLossyUtf8(text, &out, ranges);
    ASSERT_EQ(out, "prefix" + expected_text);
    ASSERT_EQ(ranges, expected);
  }
}

TEST(Utf8Test, ARangeThatCutsABrokenSequenceGrows) {
  std::vector<ByteRange> ranges = {{2, 4}};
  std::string out;
  AppendLossyUtf8("a\xF0\x9F\x98z", &out, ranges);  // the range: 9F 98
  EXPECT_EQ(out, "a\uFFFDz");
  EXPECT_EQ(ranges[0], (ByteRange{1, 4}));
  ranges = {{0, 2}};
  out.clear();
  AppendLossyUtf8("a\xF0\x9F\x98z", &out, ranges);
  EXPECT_EQ(ranges[0], (ByteRange{0, 4}));
}

TEST(Utf8Test, CompletePrefixKeepsOnlyAnUnfinishedEnd) {
  EXPECT_EQ(CompleteUtf8Prefix(""), 0u);
  EXPECT_EQ(CompleteUtf8Prefix("ab"), 2u);
  EXPECT_EQ(CompleteUtf8Prefix("a\xE2\x82"), 1u);
  EXPECT_EQ(CompleteUtf8Prefix("\xF0\x9F\x98"), 0u);
  EXPECT_EQ(CompleteUtf8Prefix("\xF0\x9F\x98\x80"), 4u);
  EXPECT_EQ(CompleteUtf8Prefix("\xED\xA0"), 2u);   // never completed
  EXPECT_EQ(CompleteUtf8Prefix("\x80\x80\x80"), 3u);
  EXPECT_EQ(CompleteUtf8Prefix("\xC3\xC3"), 1u);
}

TEST(ByteAlphabetTest, IsOneToOne) {
  for (int byte = 0; byte < 256; ++byte) {
    std::string piece;
    AppendUtf8(ByteToCodePoint(static_cast<uint8_t>(byte)), &piece);
    EXPECT_EQ(PieceToBytes(piece), std::string(1, static_cast<char>(byte)));
  }
  EXPECT_EQ(PieceToBytes("\u0120the"), " the");
  EXPECT_FALSE(PieceToBytes(" ").has_value());
  EXPECT_FALSE(PieceToBytes("\u4e00").has_value());
  EXPECT_FALSE(PieceToBytes("\u0144").has_value());
}

TEST(NormalizerTest, ComposesReordersAndKeepsExclusions) {
  EXPECT_EQ(NormalizeNfc("cafe\u0301"), "caf\u00E9");
  EXPECT_EQ(NormalizeNfc("q\u0307\u0323"), "q\u0323\u0307");
  EXPECT_EQ(NormalizeNfc("a\u0302\u0323"), "\u1EAD");
  EXPECT_EQ(NormalizeNfc("\u1100\u1161\u11A8"), "\uAC01");
  EXPECT_EQ(NormalizeNfc("\uAC00\u11A8"), "\uAC01");
  EXPECT_EQ(NormalizeNfc("\u212B"), "\u00C5");
  EXPECT_EQ(NormalizeNfc("\u0958"), "\u0915\u093C");  // excluded from composition
  EXPECT_EQ(NormalizeNfc("\u0344"), "\u0308\u0301");
  EXPECT_EQ(NormalizeNfc("plain"), "plain");
  EXPECT_FALSE(MayChangeUnderNfc("plain \u00E9"));
}

TEST(NormalizerTest, LongRunsOfMarksAreSortedNotBubbled) {
  std::string text = "a";
  std::string sorted = "a";
  for (int i = 0; i < 100'000; ++i) text += "\u0315\u0327";  // classes 232 and 202
  for (int i = 0; i < 100'000; ++i) sorted += "\u0327";
  for (int i = 0; i < 100'000; ++i) sorted += "\u0315";
  EXPECT_EQ(NormalizeNfc(text), sorted);
}

}  // namespace
}  // namespace hyserve::tokenizer
