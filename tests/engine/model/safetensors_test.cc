// safetensors files from anyone: refused with one line that says what is wrong, or read.
#include "engine/model/safetensors.h"

#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/test_files.h"

namespace hyserve::model {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Pads with spaces, so that offsets are aligned as written.
std::string Padded(std::string header) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return header;
}

const std::string kValid = Padded(
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]},)"
    R"("a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}})");

TEST(SafetensorsTest, ValidFileIsRead) {
  TempDir dir;
  std::string data(12, '\0');
  const float values[2] = {1.5f, -2};
  std::memcpy(data.data(), values, sizeof(values));
  WriteFile(dir.File("m"), SafetensorsBytes(kValid, data));
  const auto file = SafetensorsFile::Open(dir.File("m"), "m");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tensors().size(), 2u);
  EXPECT_EQ(file->tensors()[0].name, "a");
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_EQ(file->Find("c"), nullptr);
  float read[2] = {};
  ASSERT_TRUE(file->Read(*file->Find("a"), read).ok());
  EXPECT_EQ(read[0], 1.5f);
  EXPECT_EQ(read[1], -2.0f);
  EXPECT_TRUE(file->CheckUnchanged().ok());
}

TEST(SafetensorsTest, ScalarHasOneElement) {
  const std::string header = Padded(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})");
  EXPECT_TRUE(ParseSafetensorsHeader(header, 4, "m").ok());
}

struct HeaderFault {
  const char* name;
  std::string header;
  uint64_t data_bytes;
  const char* reason;
};

std::string Entry(std::string_view name, std::string_view fields) {
  return "\"" + std::string(name) + "\":{" + std::string(fields) + "}";
}
std::string One(std::string_view fields) { return "{" + Entry("t", fields) + "}"; }

class SafetensorsFaultTest : public ::testing::TestWithParam<HeaderFault> {};

TEST_P(SafetensorsFaultTest, IsRefusedInOneLine) {
  const auto header =
      ParseSafetensorsHeader(Padded(GetParam().header), GetParam().data_bytes, "m.safetensors");
  ASSERT_FALSE(header.ok());
  EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(header.status().message());
  EXPECT_THAT(message, HasSubstr(GetParam().reason));
  EXPECT_TRUE(message.starts_with("m.safetensors: ")) << message;
  EXPECT_THAT(message, Not(HasSubstr("\n")));
}

const HeaderFault kFaults[] = {
    {"NotAnObject", "[1]", 0, "does not start with '{'"},
    {"LeadingSpace", " {}", 0, "does not start with '{'"},
    {"Nul", std::string("{}\0 ", 4), 0, "NUL byte"},
    {"BadJson", "{\"t\"", 0, "not valid JSON"},
    {"TrailingJson", "{} {}", 0, "not valid JSON"},
    {"BadUtf8", "{\"\xc3\x28\":{}}", 0, "not valid JSON"},
    {"Deep", "{\"t\":{\"shape\":[[[[[[[[[[1]]]]]]]]]]}}", 0, "tensor \"t\": unexpected a list"},
    {"DeepObject", "{\"t\":{\"dtype\":{\"a\":{}}}}", 0, "tensor \"t\": unexpected an object"},
    {"DuplicateName",
     "{" + Entry("t", R"("dtype":"U8","shape":[1],"data_offsets":[0,1])") + "," +
         Entry("t", R"("dtype":"U8","shape":[1],"data_offsets":[1,2])") + "}",
     2, "tensor \"t\" appears twice"},
    {"DuplicateEscaped",
     "{" + Entry("t", R"("dtype":"U8","shape":[1],"data_offsets":[0,1])") + "," +
         Entry("\\u0074", R"("dtype":"U8","shape":[1],"data_offsets":[1,2])") + "}",
     2, "tensor \"t\" appears twice"},
    {"DuplicateKey", One(R"("dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1])"), 1,
     "key \"dtype\" appears twice"},
    {"MetadataNumber", R"({"__metadata__":{"a":1}})", 0, "must map strings to strings"},
    {"MetadataList", R"({"__metadata__":[]})", 0, "must be an object"},
    {"MetadataTwice", R"({"__metadata__":{},"__metadata__":{}})", 0, "appears twice"},
    {"DTypeUnknown", One(R"("dtype":"F23","shape":[1],"data_offsets":[0,1])"), 1,
     "tensor \"t\": unknown dtype \"F23\""},
    {"DTypeSubByte", One(R"("dtype":"F4","shape":[2],"data_offsets":[0,1])"), 1,
     "smaller than a byte"},
    {"DTypeMissing", One(R"("shape":[1],"data_offsets":[0,1])"), 1, "dtype is missing"},
    {"DTypeNumber", One(R"("dtype":7,"shape":[1],"data_offsets":[0,1])"), 1, "unexpected a number"},
    {"ShapeMissing", One(R"("dtype":"U8","data_offsets":[0,1])"), 1, "shape is missing"},
    {"ShapeRank", One(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1])"), 1,
     "more than 8 dimensions"},
    {"ShapeDim", One(R"("dtype":"U8","shape":[1099511627777],"data_offsets":[0,1])"), 1,
     "exceeds 2^40"},
    {"ShapeOverflow",
     One(R"("dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,1])"), 1,
     "overflows 64 bits"},
    {"ShapeZero", One(R"("dtype":"U8","shape":[0],"data_offsets":[0,0])"), 0, "has no elements"},
    {"ShapeText", One(R"("dtype":"U8","shape":["1"],"data_offsets":[0,1])"), 1,
     "unexpected a string"},
    {"OffsetsMissing", One(R"("dtype":"U8","shape":[1])"), 1, "data_offsets must be two numbers"},
    {"OffsetsOne", One(R"("dtype":"U8","shape":[1],"data_offsets":[0])"), 1, "two numbers"},
    {"OffsetsThree", One(R"("dtype":"U8","shape":[1],"data_offsets":[0,1,2])"), 1, "two numbers"},
    {"OffsetsReversed", One(R"("dtype":"U8","shape":[1],"data_offsets":[1,0])"), 1,
     "end before they begin"},
    {"OffsetsBeyond", One(R"("dtype":"U8","shape":[2],"data_offsets":[0,2])"), 1,
     "data_offsets [0, 2] exceed the data size 1"},
    {"OffsetsLength", One(R"("dtype":"F32","shape":[1],"data_offsets":[0,8])"), 8,
     "span 8 bytes, but the shape needs 4"},
    {"Exponent", One(R"("dtype":"U8","shape":[1e3],"data_offsets":[0,1000])"), 1000,
     "number 1e3 is not a plain integer"},
    {"Fraction", One(R"("dtype":"U8","shape":[1.0],"data_offsets":[0,1])"), 1,
     "not a plain integer"},
    {"MinusZero", One(R"("dtype":"U8","shape":[1],"data_offsets":[-0,1])"), 1, "negative number"},
    {"Minus", One(R"("dtype":"U8","shape":[-1],"data_offsets":[0,1])"), 1, "negative number"},
    {"Beyond64Bits", One(R"("dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551616])"), 1,
     "not a plain integer"},
    {"LeadingZero", One(R"("dtype":"U8","shape":[01],"data_offsets":[0,1])"), 1, "not valid JSON"},
    {"Null", One(R"("dtype":null,"shape":[1],"data_offsets":[0,1])"), 1, "unexpected null"},
    {"UnknownField", One(R"("dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1)"), 1,
     "unknown key \"x\""},
    {"TensorIsNumber", "{\"t\":1}", 0, "tensor \"t\": must be an object"},
    {"Hole",
     "{" + Entry("a", R"("dtype":"U8","shape":[1],"data_offsets":[0,1])") + "," +
         Entry("b", R"("dtype":"U8","shape":[1],"data_offsets":[2,3])") + "}",
     3, "tensor \"b\": a hole of 1 bytes lies before it"},
    {"HoleAtFront", One(R"("dtype":"U8","shape":[1],"data_offsets":[1,2])"), 2,
     "a hole of 1 bytes"},
    {"Overlap",
     "{" + Entry("a", R"("dtype":"U8","shape":[2],"data_offsets":[0,2])") + "," +
         Entry("b", R"("dtype":"U8","shape":[2],"data_offsets":[1,3])") + "}",
     3, "overlaps the tensor before it by 1 bytes"},
    {"Shared",
     "{" + Entry("a", R"("dtype":"U8","shape":[2],"data_offsets":[0,2])") + "," +
         Entry("b", R"("dtype":"U8","shape":[2],"data_offsets":[0,2])") + "}",
     2, "overlaps"},
    {"Trailing", One(R"("dtype":"U8","shape":[1],"data_offsets":[0,1])"), 5,
     "4 trailing bytes after the last tensor"},
    {"Empty", "{}", 5, "5 trailing bytes"},
    {"Unaligned",
     "{" + Entry("a", R"("dtype":"U8","shape":[1],"data_offsets":[0,1])") + "," +
         Entry("b", R"("dtype":"F32","shape":[1],"data_offsets":[1,5])") + "}",
     5, "not aligned"},
    {"ControlCharacters", "{\"a\\nb\":1}", 0, "tensor \"a\\nb\""},
};

INSTANTIATE_TEST_SUITE_P(All, SafetensorsFaultTest, ::testing::ValuesIn(kFaults),
                         [](const auto& info) { return std::string(info.param.name); });

std::string Length(uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i));
  return bytes;
}

TEST(SafetensorsTest, HeaderLengthIsChecked) {
  EXPECT_THAT(std::string(SafetensorsHeaderBytes("abc", 3, "m").status().message()),
              HasSubstr("too few"));
  EXPECT_THAT(std::string(SafetensorsHeaderBytes(Length(0), 100, "m").status().message()),
              HasSubstr("header length is 0"));
  EXPECT_THAT(std::string(SafetensorsHeaderBytes(Length(93), 100, "m").status().message()),
              HasSubstr("exceeds the file"));
  EXPECT_THAT(
      std::string(SafetensorsHeaderBytes(Length(~uint64_t{0}), 100, "m").status().message()),
      HasSubstr("exceeds the limit"));
  EXPECT_THAT(std::string(
                  SafetensorsHeaderBytes(Length(100'000'001), 1u << 31, "m").status().message()),
              HasSubstr("exceeds the limit"));
  EXPECT_EQ(*SafetensorsHeaderBytes(Length(92), 100, "m"), 92u);
}

// What a file of these bytes gives; reads every tensor when it opens.
absl::Status OpenAndRead(const std::string& path, const std::string& bytes) {
  WriteFile(path, bytes);
  const auto file = SafetensorsFile::Open(path, "m");
  if (!file.ok()) return file.status();
  for (const TensorEntry& entry : file->tensors()) {
    std::vector<char> data(entry.end - entry.begin);
    if (absl::Status status = file->Read(entry, data.data()); !status.ok()) return status;
  }
  return absl::OkStatus();
}

TEST(SafetensorsTest, EveryTruncationIsRefused) {
  TempDir dir;
  const std::string whole = SafetensorsBytes(kValid, std::string(12, 'x'));
  ASSERT_TRUE(OpenAndRead(dir.File("m"), whole).ok());
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_FALSE(OpenAndRead(dir.File("m"), whole.substr(0, length)).ok()) << length;
  }
}

TEST(SafetensorsTest, EveryFlippedBitIsReadOrRefused) {
  TempDir dir;
  const std::string whole = SafetensorsBytes(kValid, std::string(12, 'x'));
  int refused = 0;
  for (size_t at = 0; at < 8 + kValid.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = whole;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      const absl::Status status = OpenAndRead(dir.File("m"), flipped);
      refused += status.ok() ? 0 : 1;
      EXPECT_THAT(std::string(status.message()), Not(HasSubstr("\n")));
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(SafetensorsTest, ChangeOfTheFileIsNoticed) {
  TempDir dir;
  WriteFile(dir.File("m"), SafetensorsBytes(kValid, std::string(12, 'x')));
  const auto file = SafetensorsFile::Open(dir.File("m"), "m");
  ASSERT_TRUE(file.ok());
  std::filesystem::resize_file(dir.File("m"), 20);
  EXPECT_EQ(file->CheckUnchanged().code(), absl::StatusCode::kDataLoss);
  char data[8];
  EXPECT_EQ(file->Read(*file->Find("a"), data).code(), absl::StatusCode::kDataLoss);
}

TEST(SafetensorsTest, NotAFileAndMissingFile) {
  TempDir dir;
  EXPECT_EQ(SafetensorsFile::Open(dir.File("none"), "none").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsFile::Open(dir.path(), "dir").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(SafetensorsTest, WhatIsWrittenIsRead) {
  TempDir dir;
  const std::vector<SafetensorsWriter::Tensor> tensors = {{"y", "F32", 4, {2, 3}},
                                                          {"a", "BF16", 2, {5}}};
  auto writer = SafetensorsWriter::Create(dir.File("m"), "m", tensors);
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::string data(24 + 10, 'q');
  ASSERT_TRUE(writer->Append(data.data(), data.size()).ok());
  ASSERT_TRUE(writer->Finish().ok());
  const auto file = SafetensorsFile::Open(dir.File("m"), "m");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors()[0].name, "y");
  EXPECT_EQ(file->Find("a")->begin, 24u);
  EXPECT_EQ(SafetensorsWriter::Create(dir.File("m"), "m", tensors).status().code(),
            absl::StatusCode::kAlreadyExists);
}

}  // namespace
}  // namespace hyserve::model
