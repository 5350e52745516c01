// Deltas are valid UTF-8 and add up to Decode() of all ids.
#include "engine/tokenizer/incremental_detokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/engine/tokenizer/testdata_reader.h"

namespace hyserve::tokenizer {
namespace {

using Ids = std::vector<int32_t>;

TEST(IncrementalDetokenizerTest, DeltasAddUpToTheWholeText) {
  std::mt19937 random(17);
  for (const std::string& name : StyleNames()) {
    const auto tokenizer = LoadOrDie(DataPath(name + ".json"));
    ASSERT_NE(tokenizer, nullptr);
    for (int round = 0; round < 400; ++round) {
      Ids ids(random() % 30);
      // Half of them single bytes, so that sequences are cut and broken everywhere.
      for (int32_t& id : ids) {
        const int32_t range = random() % 2 == 0 ? 257 : tokenizer->vocab_size() + 2;
        id = static_cast<int32_t>(random() % static_cast<uint32_t>(range));
      }
      const bool skip = round % 2 == 0;
      IncrementalDetokenizer detokenizer(tokenizer.get(), skip);
      std::string text;
      for (const int32_t id : ids) {
        const std::string delta = detokenizer.Push(id);
        ASSERT_TRUE(IsValidUtf8(delta));
        ASSERT_LE(detokenizer.held_bytes(), 3u);
        text += delta;
      }
      text += detokenizer.Flush();
      ASSERT_EQ(text, tokenizer->Decode(ids, skip)) << name << " " << nlohmann::json(ids).dump();
      ASSERT_EQ(detokenizer.Flush(), "");
    }
  }
}

TEST(IncrementalDetokenizerTest, CorpusTextStreamsAsItself) {
  const auto tokenizer = LoadOrDie(DataPath("llama3_style.json"));
  ASSERT_NE(tokenizer, nullptr);
  for (const nlohmann::json& row : ReadRows(DataPath("corpus.jsonl"))) {
    if (!row.contains("text")) continue;
    IncrementalDetokenizer detokenizer(tokenizer.get(), false);
    std::string text;
    for (const int32_t id : tokenizer->Encode(row["text"].get<std::string>())) {
      text += detokenizer.Push(id);
    }
    EXPECT_EQ(text + detokenizer.Flush(), row["text"].get<std::string>());
  }
}

TEST(IncrementalDetokenizerTest, HoldsBackAnUnfinishedSequenceAndNothingElse) {
  const auto tokenizer = LoadOrDie(DataPath("llama3_style.json"));
  ASSERT_NE(tokenizer, nullptr);
  Ids byte_ids(256, -1);
  for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
    if (tokenizer->TokenBytes(id).size() == 1) {
      byte_ids[static_cast<uint8_t>(tokenizer->TokenBytes(id)[0])] = id;
    }
  }
  IncrementalDetokenizer detokenizer(tokenizer.get(), true);
  const auto push = [&](int byte) { return detokenizer.Push(byte_ids[byte]); };
  EXPECT_EQ(push(0xF0), "");
  EXPECT_EQ(push(0x9F), "");
  EXPECT_EQ(push(0x98), "");
  EXPECT_EQ(push(0x80), "\U0001F600");
  EXPECT_EQ(push(0xE2), "");
  EXPECT_EQ(push('A'), "\uFFFD" "A");
  EXPECT_EQ(push(0x80), "\uFFFD");
  EXPECT_EQ(push(0xED), "");
  EXPECT_EQ(push(0xA0), "\uFFFD\uFFFD");  // a surrogate can never be completed
  EXPECT_EQ(push(0xC3), "");
  // A special token that is skipped does not break the sequence, as in Decode.
  EXPECT_EQ(detokenizer.Push(*tokenizer->TokenToId("<|eot_id|>")), "");
  EXPECT_EQ(push(0xA9), "\u00E9");
  EXPECT_EQ(push(0xE2), "");
  EXPECT_EQ(push(0x82), "");
  EXPECT_EQ(detokenizer.Flush(), "\uFFFD");
  EXPECT_EQ(push('z'), "z");
}

}  // namespace
}  // namespace hyserve::tokenizer
