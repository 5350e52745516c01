// Ids and text are those of Hugging Face `tokenizers` on the committed corpus.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "tests/engine/tokenizer/testdata_reader.h"

namespace hyserve::tokenizer {
namespace {

using Ids = std::vector<int32_t>;

// Compares every row that has ids for `name`; returns how many.
int ExpectSameIds(const Tokenizer& tokenizer, const std::string& name,
                  const std::vector<nlohmann::json>& rows) {
  int compared = 0;
  int wrong = 0;
  for (const nlohmann::json& row : rows) {
    if (!row.contains(name)) continue;
    ++compared;
    EncodeOptions options;
    options.add_special_tokens = row["add_special"] == 1;
    options.parse_special = row["parse_special"] == 1;
    const Ids expected = row[name].get<Ids>();
    const Ids actual = tokenizer.Encode(RowBytes(row), options);
    if (actual == expected) continue;
    if (++wrong <= 10) {
      ADD_FAILURE() << name << ": " << row.dump() << "\n  got " << nlohmann::json(actual).dump();
    }
  }
  EXPECT_EQ(wrong, 0) << name << ": of " << compared;
  return compared;
}

int ExpectSameText(const Tokenizer& tokenizer, const std::string& name,
                   const std::vector<nlohmann::json>& rows) {
  int compared = 0;
  for (const nlohmann::json& row : rows) {
    if (row["tokenizer"] != name) continue;
    ++compared;
    const Ids ids = row["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.Decode(ids, false), row["all"].get<std::string>()) << row.dump();
    EXPECT_EQ(tokenizer.Decode(ids, true), row["without_special"].get<std::string>())
        << row.dump();
  }
  return compared;
}

TEST(ParityTest, IdsAreThoseOfHuggingFace) {
  const auto rows = ReadRows(DataPath("corpus.jsonl"));
  ASSERT_GE(rows.size(), 2000u);
  for (const std::string& name : StyleNames()) {
    const auto tokenizer = LoadOrDie(DataPath(name + ".json"));
    ASSERT_NE(tokenizer, nullptr);
    EXPECT_EQ(ExpectSameIds(*tokenizer, name, rows), static_cast<int>(rows.size()));
  }
}

TEST(ParityTest, TextIsThatOfHuggingFace) {
  const auto rows = ReadRows(DataPath("decode.jsonl"));
  for (const std::string& name : StyleNames()) {
    const auto tokenizer = LoadOrDie(DataPath(name + ".json"));
    ASSERT_NE(tokenizer, nullptr);
    EXPECT_GE(ExpectSameText(*tokenizer, name, rows), 200);
  }
}

TEST(ParityTest, TheDemoModelsTokenizerIsThatOfHuggingFace) {
  const std::string path = SourcePath("models/demo/tokenizer.json");
  if (!std::filesystem::exists(path) || !std::filesystem::exists(DataPath("demo_corpus.jsonl"))) {
    GTEST_SKIP() << "no demo model in this checkout";
  }
  const auto tokenizer = LoadOrDie(path);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_GE(ExpectSameIds(*tokenizer, "demo", ReadRows(DataPath("demo_corpus.jsonl"))), 1000);
  EXPECT_GE(ExpectSameText(*tokenizer, "demo", ReadRows(DataPath("demo_decode.jsonl"))), 200);
}

TEST(ParityTest, WithoutNormalizationDecodingGivesTheTextBack) {
  const auto rows = ReadRows(DataPath("corpus.jsonl"));
  for (const std::string name : {"gpt2_style", "llama3_style"}) {
    const auto tokenizer = LoadOrDie(DataPath(name + ".json"));
    ASSERT_NE(tokenizer, nullptr);
    for (const nlohmann::json& row : rows) {
      if (!row.contains("text")) continue;
      const std::string text = row["text"];
      ASSERT_EQ(tokenizer->Decode(tokenizer->Encode(text), false), text) << row.dump();
    }
  }
}

}  // namespace
}  // namespace hyserve::tokenizer
