// What Encode promises beyond equal ids: limits, options, literal ranges, any bytes, threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "engine/tokenizer/normalizer.h"
#include "tests/engine/tokenizer/testdata_reader.h"

namespace hyserve::tokenizer {
namespace {

using Ids = std::vector<int32_t>;

class TokenizerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    llama_ = LoadOrDie(DataPath("llama3_style.json"));
    qwen_ = LoadOrDie(DataPath("qwen2_style.json"));
    o200k_ = LoadOrDie(DataPath("o200k_style.json"));
    ASSERT_TRUE(llama_ && qwen_ && o200k_);
  }
  std::unique_ptr<Tokenizer> llama_, qwen_, o200k_;
};

TEST_F(TokenizerTest, StopsAtOneTokenAboveTheLimit) {
  const std::string text = "one two three <|eot_id|> four five six";
  const Ids all = llama_->Encode(text, {.add_special_tokens = true});
  for (size_t limit = 0; limit <= all.size() + 1; ++limit) {
    const Ids ids = llama_->Encode(text, {.add_special_tokens = true, .max_tokens = limit});
    ASSERT_EQ(ids.size(), std::min(all.size(), limit + 1)) << limit;
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), all.begin()));
  }
}

TEST_F(TokenizerTest, AddsWhatTheTemplateSays) {
  const int32_t bos = *o200k_->TokenToId("<s>");
  const int32_t eos = *o200k_->TokenToId("</s>");
  EXPECT_EQ(o200k_->Encode("", {.add_special_tokens = true}), (Ids{bos, eos}));
  EXPECT_TRUE(o200k_->Encode("").empty());
  EXPECT_TRUE(o200k_->IsSpecial(bos));
  EXPECT_FALSE(o200k_->IsSpecial(0));
  EXPECT_EQ(o200k_->Decode(Ids{bos, eos}, true), "");
  EXPECT_EQ(o200k_->Decode(Ids{bos, eos}, false), "<s></s>");
}

TEST_F(TokenizerTest, IdsOutsideTheVocabularyAreHarmless) {
  const int32_t size = llama_->vocab_size();
  for (const int32_t id : {-1, size, size + 1, INT32_MIN, INT32_MAX}) {
    EXPECT_TRUE(llama_->TokenBytes(id).empty());
    EXPECT_FALSE(llama_->IsSpecial(id));
    EXPECT_EQ(llama_->Decode(Ids{id}, false), "");
  }
  EXPECT_FALSE(llama_->TokenToId("no such token").has_value());
  EXPECT_EQ(llama_->TokenBytes(*llama_->TokenToId("\u0120the")), " the");
}

TEST_F(TokenizerTest, SpecialTokensInLiteralRangesAreText) {
  const std::string text = "<|im_start|>a<|im_end|>b<|im_end|>";
  const int32_t start = *qwen_->TokenToId("<|im_start|>");
  const int32_t end = *qwen_->TokenToId("<|im_end|>");
  const auto count = [](const Ids& ids, int32_t id) {
    return std::count(ids.begin(), ids.end(), id);
  };
  EXPECT_EQ(count(qwen_->Encode(text), end), 2);
  const ByteRange client[] = {{12, 24}};  // "a<|im_end|>b"
  const Ids ids = qwen_->Encode(text, {.literal_ranges = client});
  EXPECT_EQ(count(ids, end), 1);
  EXPECT_EQ(count(ids, start), 1);
  EXPECT_EQ(qwen_->Decode(ids, false), text);
  // A token half inside is not the template's token either.
  const ByteRange half[] = {{0, 1}};
  EXPECT_EQ(count(qwen_->Encode(text, {.literal_ranges = half}), start), 0);
  const ByteRange nearby[] = {{12, 13}, {23, 24}};
  EXPECT_EQ(qwen_->Encode(text, {.literal_ranges = nearby}), qwen_->Encode(text));
}

TEST_F(TokenizerTest, LiteralRangesHoldForNormalizedSpecialTokensAndAfterInvalidBytes) {
  const int32_t pad = *qwen_->TokenToId("<pad>");  // looked for in the normalized text
  const auto has_pad = [&](const std::string& text, std::vector<ByteRange> ranges) {
    const Ids ids = qwen_->Encode(text, {.literal_ranges = ranges});
    return std::find(ids.begin(), ids.end(), pad) != ids.end();
  };
  EXPECT_TRUE(has_pad("x<pad>", {}));
  EXPECT_FALSE(has_pad("x<pad>", {{1, 6}}));
  EXPECT_TRUE(has_pad("x<pad>", {{0, 1}}));
  EXPECT_FALSE(has_pad("e\xCC\x81<pad>", {{3, 8}}));
  // Each invalid byte becomes three: the range moves with its text.
  EXPECT_FALSE(has_pad("\xFF\xFF<pad>", {{2, 7}}));
  EXPECT_TRUE(has_pad("\xFF\xFF<pad>", {{0, 2}}));
  EXPECT_TRUE(has_pad("<pad>\xFF", {{5, 6}}));
}

TEST_F(TokenizerTest, AnyBytesAreAcceptedAndReplacedAsUtf8) {
  std::mt19937 random(5);
  for (int i = 0; i < 500; ++i) {
    std::string bytes(random() % 60, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    std::string clean;
    AppendLossyUtf8(bytes, &clean);
    EXPECT_EQ(llama_->Encode(bytes), llama_->Encode(clean));
    EXPECT_EQ(llama_->Decode(llama_->Encode(bytes), false), clean);
    EXPECT_EQ(qwen_->Decode(qwen_->Encode(bytes, {.parse_special = false}), false).size() > 0,
              !bytes.empty());
  }
}

TEST_F(TokenizerTest, ThreadsShareOneTokenizer) {
  const auto rows = ReadRows(DataPath("corpus.jsonl"));
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < 400; ++i) {
        const nlohmann::json& row = rows[(i * 7 + t * 131) % rows.size()];
        const Ids ids = qwen_->Encode(RowBytes(row), {.add_special_tokens = row["add_special"] == 1,
                                                      .parse_special = row["parse_special"] == 1});
        wrong[t] += ids != row["qwen2_style"].get<Ids>();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

// Long runs of one thing end, give the text back, and do so for each pattern family.
TEST_F(TokenizerTest, HostileTextIsEncodedWhole) {
  constexpr size_t kBytes = 200'000;
  for (const std::string unit :
       {"a", " ", "\n", " \n", "1", "'", "\U0001F468\u200d", "\u0301", "\u0323\u0301", "\xFF",
        "<|", "<|im_end|>", "aB", "_", "\u4e00", "\r", " a"}) {
    std::string text;
    while (text.size() < kBytes) text += unit;
    std::string clean;
    AppendLossyUtf8(text, &clean);
    EXPECT_EQ(llama_->Decode(llama_->Encode(text), false), clean) << unit;
    EXPECT_EQ(qwen_->Decode(qwen_->Encode(text), false), NormalizeNfc(clean)) << unit;
    EXPECT_GT(o200k_->Encode(text).size(), 0u) << unit;
  }
}

}  // namespace
}  // namespace hyserve::tokenizer
