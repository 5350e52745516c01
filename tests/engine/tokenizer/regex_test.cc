// The pattern dialect where it differs from PCRE2's own, and what happens at the engine's limits.
#include "engine/tokenizer/regex.h"

#include <gtest/gtest.h>

#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/regex_dialect.h"

namespace hyserve::tokenizer {
namespace {

using Words = std::vector<std::string>;

std::unique_ptr<const Regex> Make(std::string_view pattern) {
  auto regex = Regex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << pattern << ": " << regex.status();
  return regex.ok() ? *std::move(regex) : nullptr;
}

std::string FirstMatch(std::string_view pattern, std::string_view text) {
  const auto regex = Make(pattern);
  Regex::Scratch scratch;
  const auto match = regex->Find(text, 0, &scratch);
  return match ? std::string(match->Of(text)) : "none";
}

Words Split(std::string_view pattern, std::string_view text) {
  std::vector<SplitStep> steps(1);
  steps[0].regex = Make(pattern);
  const PreTokenizer pre_tokenizer(std::move(steps));
  Words words;
  Regex::Scratch scratch;
  pre_tokenizer.ForEachWord(text, &scratch, [&](std::string_view word) {
    words.emplace_back(word);
    return true;
  });
  return words;
}

TEST(RegexTest, SpaceIsTheUnicodePropertyAndNothingElse) {
  for (uint32_t code_point = 0; code_point < 0x11000; ++code_point) {
    if (code_point >= 0xD800 && code_point <= 0xDFFF) continue;
    static const auto kSpace = Make("\\s");
    static const auto kInClass = Make("[\\s]");
    static const auto kNotInClass = Make("[^\\S]");
    std::string text;
    AppendUtf8(code_point, &text);
    Regex::Scratch scratch;
    for (const auto* regex : {&kSpace, &kInClass, &kNotInClass}) {
      ASSERT_EQ((*regex)->Find(text, 0, &scratch).has_value(), IsWhiteSpace(code_point))
          << code_point;
    }
  }
}

TEST(RegexTest, NamesMeanWhatTheyMeanInOniguruma) {
  EXPECT_EQ(FirstMatch("\\p{Han}+", "a\u3001\u4e2d\u6587b"), "\u4e2d\u6587");  // not U+3001
  EXPECT_EQ(FirstMatch("\\v", "\n\x0B"), "\x0B");
  EXPECT_EQ(FirstMatch("\\d", "x\u00b2\u0663"), "\u0663");
  EXPECT_EQ(FirstMatch("\\p{^L}", "ab1"), "1");
  EXPECT_EQ(FirstMatch("[^\\P{L}]", "1a"), "a");
  EXPECT_EQ(FirstMatch("(?i:'s)", "x'\u017f"), "'\u017f");  // long s folds to s
  EXPECT_EQ(FirstMatch("[a^]", "^"), "^");
  EXPECT_EQ(FirstMatch("a]}", "a]}"), "a]}");
}

TEST(RegexTest, TranslationLeavesCommonPatternsAlone) {
  EXPECT_EQ(*TranslateRegex("(?i:'s|'t)| ?\\p{L}+|[\\r\\n]{1,3}?"),
            "(?i:'s|'t)| ?\\p{L}+|[\\r\\n]{1,3}?");
  EXPECT_EQ(*TranslateRegex("(a|b)++"), "(?:a|b)++");
}

TEST(RegexTest, LiteralsHaveNoOperators) {
  const auto regex = Regex::CompileLiteral("a.b*");
  ASSERT_TRUE(regex.ok());
  Regex::Scratch scratch;
  EXPECT_EQ((*regex)->Find("aXb* a.b*", 0, &scratch), (ByteRange{5, 9}));
}

TEST(RegexTest, WhenTheJitStackEndsTheInterpreterGoesOn) {
  std::string text;
  for (int i = 0; i < 20'000; ++i) text += "ab";
  EXPECT_EQ(Split("(?:ab?)+", text + "zab"), (Words{text, "z", "ab"}));
}

TEST(RegexTest, WhenTheEngineGivesUpTheRestIsOneWord) {
  std::string text = "x";
  for (int i = 0; i < 1'000'000; ++i) text += "ab";
  const auto regex = Make("(?:ab?)+");
  Regex::Scratch scratch;
  EXPECT_FALSE(regex->Find(text, 0, &scratch).has_value());
  EXPECT_EQ(Split("(?:ab?)+", text).size(), 1u);
  EXPECT_EQ(Split("(?:ab?)+", "xabx"), (Words{"x", "ab", "x"}));
}

TEST(PreTokenizerTest, StopsWhenTheCallerHasEnough) {
  std::vector<SplitStep> steps(1);
  steps[0].regex = Make(kGpt2Pattern);
  const PreTokenizer pre_tokenizer(std::move(steps));
  Regex::Scratch scratch;
  int words = 0;
  EXPECT_FALSE(pre_tokenizer.ForEachWord("one two three", &scratch,
                                         [&](std::string_view) { return ++words < 2; }));
  EXPECT_EQ(words, 2);
}

}  // namespace
}  // namespace hyserve::tokenizer
