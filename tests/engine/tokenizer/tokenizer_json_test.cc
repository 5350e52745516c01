// Every class of invalid tokenizer.json is refused with one line that says where.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "engine/tokenizer/strict_json.h"
#include "tests/engine/tokenizer/testdata_reader.h"

namespace hyserve::tokenizer {
namespace {

using Json = nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// A small valid document: the byte alphabet, "ab", "abc" and a special token.
Json ValidDocument() {
  Json document = Json::parse(ReadText(DataPath("gpt2_style.json")));
  Json vocab = Json::object();
  int id = 0;
  for (const auto& [piece, old_id] : document["model"]["vocab"].items()) {
    const auto starts_scalar = [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; };
    if (std::count_if(piece.begin(), piece.end(), starts_scalar) == 1) vocab[piece] = id++;
  }
  EXPECT_EQ(id, 256);
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  document["model"]["vocab"] = vocab;
  document["model"]["merges"] = {"a b", "ab c"};
  document["added_tokens"][0]["id"] = 258;
  return document;
}

std::string ParseError(const std::string& text) {
  const auto tokenizer = Tokenizer::Parse(text, "t.json");
  if (tokenizer.ok()) return "accepted";
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(tokenizer.status().message());
}

struct InvalidCase {
  const char* name;
  std::function<void(Json&)> edit;
  const char* message;  // a part of the message
};

class InvalidTokenizerTest : public ::testing::TestWithParam<InvalidCase> {};

TEST_P(InvalidTokenizerTest, IsRefusedWithItsPath) {
  Json document = ValidDocument();
  ASSERT_EQ(ParseError(document.dump()), "accepted");
  GetParam().edit(document);
  EXPECT_THAT(ParseError(document.dump()),
              AllOf(StartsWith("t.json: "), HasSubstr(GetParam().message), Not(HasSubstr("\n"))));
}

const InvalidCase kInvalidCases[] = {
    {"NotAnObject", [](Json& d) { d = Json::array(); }, "the document: must be an object"},
    {"UnknownMember", [](Json& d) { d["extra"] = 1; }, "the document: unknown member \"extra\""},
    {"Truncation", [](Json& d) { d["truncation"] = Json::object(); },
     "truncation: is not supported"},
    {"Padding", [](Json& d) { d["padding"] = Json::object(); }, "padding: is not supported"},
    {"NoModel", [](Json& d) { d.erase("model"); }, "model: is missing"},
    {"ModelType", [](Json& d) { d["model"]["type"] = "Unigram"; },
     "model.type: only BPE is supported; got \"Unigram\""},
    {"ModelMember", [](Json& d) { d["model"]["x\ny"] = 1; }, "model: unknown member \"x\\ny\""},
    {"ByteFallback", [](Json& d) { d["model"]["byte_fallback"] = true; },
     "model.byte_fallback: is not supported"},
    {"Dropout", [](Json& d) { d["model"]["dropout"] = 0.1; }, "model.dropout: is not supported"},
    {"Suffix", [](Json& d) { d["model"]["end_of_word_suffix"] = "</w>"; },
     "model.end_of_word_suffix: is not supported"},
    {"Prefix", [](Json& d) { d["model"]["continuing_subword_prefix"] = "##"; },
     "model.continuing_subword_prefix: is not supported"},
    {"IgnoreMergesType", [](Json& d) { d["model"]["ignore_merges"] = 1; },
     "model.ignore_merges: must be true or false"},
    {"NoVocab", [](Json& d) { d["model"].erase("vocab"); }, "model.vocab: is missing"},
    {"VocabList", [](Json& d) { d["model"]["vocab"] = Json::array(); },
     "model.vocab: must be an object"},
    {"EmptyPiece", [](Json& d) { d["model"]["vocab"][""] = 259; }, "model.vocab[\"\"]: an empty"},
    {"NegativeId", [](Json& d) { d["model"]["vocab"]["ab"] = -1; },
     "model.vocab[\"ab\"]: id -1 is outside [0, 2097152)"},
    {"HugeId", [](Json& d) { d["model"]["vocab"]["ab"] = 2097152; },
     "model.vocab[\"ab\"]: id 2097152 is outside"},
    {"IdOf64Bits", [](Json& d) { d["model"]["vocab"]["ab"] = 18446744073709551615ull; },
     "model.vocab[\"ab\"]: id 18446744073709551615 is outside"},
    {"FloatId", [](Json& d) { d["model"]["vocab"]["ab"] = 1.5; },
     "model.vocab[\"ab\"]: the id must be an integer"},
    {"DuplicateId", [](Json& d) { d["model"]["vocab"]["ab"] = 257; },
     "model.vocab[\"abc\"]: id 257 is also that of \"ab\""},
    {"HoleInIds", [](Json& d) { d["added_tokens"][0]["id"] = 259; },
     "model.vocab: ids are not dense: no token has id 258 of 260"},
    {"IncompleteAlphabet",
     [](Json& d) {
       d["model"]["vocab"]["zz"] = d["model"]["vocab"]["\u0120"];
       d["model"]["vocab"].erase("\u0120");
     },
     "model.vocab: the byte alphabet is not complete: byte 32"},
    {"NoMerges", [](Json& d) { d["model"].erase("merges"); }, "model.merges: is missing"},
    {"UnknownLeft", [](Json& d) { d["model"]["merges"][1] = "xy c"; },
     "model.merges[1]: piece \"xy\" is not in model.vocab"},
    {"UnknownRight", [](Json& d) { d["model"]["merges"][1] = {"ab", "xy"}; },
     "model.merges[1]: piece \"xy\" is not in model.vocab"},
    {"NoSpace", [](Json& d) { d["model"]["merges"][0] = "ab"; },
     "model.merges[0]: must be two pieces with one space"},
    {"TwoSpaces", [](Json& d) { d["model"]["merges"][0] = "a b c"; },
     "model.merges[0]: must be two pieces with one space"},
    {"MergeOfThree", [](Json& d) { d["model"]["merges"][0] = {"a", "b", "c"}; },
     "model.merges[0]: must be \"left right\""},
    {"MergeOfNumbers", [](Json& d) { d["model"]["merges"][0] = {1, 2}; },
     "model.merges[0]: must be \"left right\""},
    {"ResultNotInVocab", [](Json& d) { d["model"]["merges"][1] = "a c"; },
     "model.merges[1]: the merged token \"ac\" is not in model.vocab"},
    {"ResultTooLong", [](Json& d) { d["model"]["merges"][1] = "abc abc"; },
     "model.merges[1]: the merged token has 6 bytes, more than any key of model.vocab (3)"},
    {"SamePairTwice", [](Json& d) { d["model"]["merges"].push_back("a b"); },
     "model.merges[2]: the same pair as model.merges[0]"},
    {"MergeOutsideAlphabet",
     [](Json& d) {
       d["model"]["vocab"]["\u4e00"] = 258;
       d["added_tokens"][0]["id"] = 259;
       d["model"]["merges"].push_back("\u4e00 a");
     },
     "is not written in the byte alphabet"},
    {"AddedTokensObject", [](Json& d) { d["added_tokens"] = Json::object(); },
     "added_tokens: must be an array"},
    {"AddedNegativeId", [](Json& d) { d["added_tokens"][0]["id"] = -5; },
     "added_tokens[0].id: must be in [0, 2097151]; got -5"},
    {"AddedHugeId", [](Json& d) { d["added_tokens"][0]["id"] = 1ull << 63; },
     "added_tokens[0].id: must be in [0, 2097151]"},
    {"AddedNoFlag", [](Json& d) { d["added_tokens"][0].erase("special"); },
     "added_tokens[0].special: is missing"},
    {"AddedEmpty", [](Json& d) { d["added_tokens"][0]["content"] = ""; },
     "added_tokens[0].content: is empty"},
    {"AddedLong", [](Json& d) { d["added_tokens"][0]["content"] = std::string(513, 'x'); },
     "added_tokens[0].content: has 513 bytes, more than 512"},
    {"AddedIdOfVocab", [](Json& d) { d["added_tokens"][0]["id"] = 256; },
     "added_tokens[0]: id 256 is that of \"ab\" in model.vocab"},
    {"AddedContentOfVocab", [](Json& d) { d["added_tokens"][0]["content"] = "abc"; },
     "added_tokens[0]: content \"abc\" has id 258 here and 257 in model.vocab"},
    {"AddedSameId",
     [](Json& d) {
       d["added_tokens"].push_back(d["added_tokens"][0]);
       d["added_tokens"][1]["content"] = "<other>";
     },
     "added_tokens[1]: the same id as added_tokens[0]"},
    {"AddedSameContent",
     [](Json& d) {
       d["added_tokens"].push_back(d["added_tokens"][0]);
       d["added_tokens"][1]["id"] = 259;
     },
     "added_tokens[1]: the same content as added_tokens[0]"},
    {"AddedSameWhenNormalized",
     [](Json& d) {
       d["normalizer"] = {{"type", "NFC"}};
       d["added_tokens"][0]["content"] = "<e\u0301>";
       d["added_tokens"][0]["normalized"] = true;
       d["added_tokens"].push_back(d["added_tokens"][0]);
       d["added_tokens"][1]["content"] = "<\u00e9>";
       d["added_tokens"][1]["id"] = 259;
     },
     "added_tokens[1]: the same content as added_tokens[0]"},
    {"Normalizer", [](Json& d) { d["normalizer"] = {{"type", "Lowercase"}}; },
     "normalizer.type: only NFC is supported; got \"Lowercase\""},
    {"NormalizerInSequence",
     [](Json& d) {
       d["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFKC"}}}}};
     },
     "normalizer.normalizers[0].type: only NFC is supported; got \"NFKC\""},
    {"NoPreTokenizer", [](Json& d) { d["pre_tokenizer"] = nullptr; }, "pre_tokenizer: is missing"},
    {"PreTokenizer", [](Json& d) { d["pre_tokenizer"] = {{"type", "Metaspace"}}; },
     "pre_tokenizer.type: only ByteLevel, Split, Digits"},
    {"NoByteLevel",
     [](Json& d) {
       d["pre_tokenizer"] = {{"type", "Sequence"},
                             {"pretokenizers",
                              {{{"type", "Digits"}, {"individual_digits", true}}}}};
     },
     "pre_tokenizer: ByteLevel must be the last step"},
    {"ByteLevelFirst",
     [](Json& d) {
       const Json byte_level = d["pre_tokenizer"];
       d["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {byte_level, byte_level}}};
     },
     "pre_tokenizer.pretokenizers[1]: ByteLevel must be the last step"},
    {"PostProcessor", [](Json& d) { d["post_processor"] = {{"type", "BertProcessing"}}; },
     "post_processor.type: only ByteLevel, TemplateProcessing"},
    {"TemplateWithoutToken",
     [](Json& d) {
       d["post_processor"] = {
           {"type", "TemplateProcessing"},
           {"single", {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
                       {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
           {"pair", Json::array()},
           {"special_tokens", Json::object()}};
     },
     "post_processor.special_tokens[\"<s>\"]: is missing"},
    {"TemplateIdOutside",
     [](Json& d) {
       d["post_processor"] = {
           {"type", "TemplateProcessing"},
           {"single", {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
                       {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
           {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {259}}, {"tokens", {"<s>"}}}}}}};
     },
     "post_processor.special_tokens[\"<s>\"].ids: id \"259\" is not in the vocabulary of 259"},
    {"TemplateWithoutText",
     [](Json& d) {
       d["post_processor"] = {{"type", "TemplateProcessing"},
                              {"single", Json::array()},
                              {"special_tokens", Json::object()}};
     },
     "post_processor.single: must hold sequence A exactly once"},
    {"NoDecoder", [](Json& d) { d.erase("decoder"); }, "decoder: is missing"},
    {"Decoder", [](Json& d) { d["decoder"] = {{"type", "WordPiece"}}; },
     "decoder.type: only ByteLevel is supported; got \"WordPiece\""},
};

INSTANTIATE_TEST_SUITE_P(Cases, InvalidTokenizerTest, ::testing::ValuesIn(kInvalidCases),
                         [](const auto& info) { return std::string(info.param.name); });

std::string SplitError(const Json& pattern, const std::string& behavior = "Isolated") {
  Json document = ValidDocument();
  const Json byte_level = document["pre_tokenizer"];
  const Json split = {
      {"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}, {"invert", false}};
  document["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, byte_level}}};
  return ParseError(document.dump());
}

TEST(SplitTest, RefusesWhatItCannotDoTheSameWay) {
  const std::string prefix = "t.json: pre_tokenizer.pretokenizers[0]";
  EXPECT_EQ(SplitError({{"Regex", "\\s+"}}), "accepted");
  EXPECT_EQ(SplitError({{"String", "."}}), "accepted");
  for (const char* behavior : {"MergedWithPrevious", "MergedWithNext", "Contiguous", "x"}) {
    EXPECT_EQ(SplitError({{"Regex", "\\s+"}}, behavior),
              prefix + ".behavior: only Isolated and Removed are supported; got \"" + behavior +
                  "\"");
  }
  EXPECT_EQ(SplitError({{"String", ""}}), prefix + ".pattern.String: the string is empty");
  const std::pair<const char*, const char*> refused[] = {
      {"", "at byte 0: the pattern is empty"},
      {"a*", "can match the empty string"},
      {"(a", "at byte 2: missing ')'"},
      {"a)", "at byte 1: ')' without '('"},
      {"[a", "at byte 2: missing ']'"},
      {"[z-a]", "does not compile: range out of order in character class"},
      {"*a", "at byte 0: a quantifier without anything to repeat"},
      {"a{2,1}", "at byte 5: the bounds of '{m,n}' are wrong"},
      {"a{1001}", "at byte 5: '{' must be followed by a number of at most 1000"},
      {"a{1,2}+", "at byte 6: a quantifier after a quantifier"},
      {"\\w+", "at byte 0: the escape '\\w' is not supported"},
      {"a\\b", "at byte 1: the escape '\\b' is not supported"},
      {"(a)\\1", "at byte 3: the escape '\\1' is not supported"},
      {"^a", "at byte 0: '^' is not supported"},
      {".", "at byte 0: '.' is not supported"},
      {"(?<=a)b", "at byte 0: this kind of group is not supported"},
      {"(?R)", "at byte 0: this kind of group is not supported"},
      {"(*COMMIT)", "at byte 0: a group may not start with '*'"},
      {"[a[b]]", "at byte 2: nested character classes are not supported"},
      {"[a&&b]", "at byte 2: '&&' in a class is not supported"},
      {"\\p{Klingon}", "at byte 0: the property \\p{Klingon} is not supported"},
      {"(a+)+b", "a repeated group contains an unbounded quantifier"},
      {"(?:(?:a|b*c)x){2,}", "a repeated group contains an unbounded quantifier"},
  };
  for (const auto& [pattern, reason] : refused) {
    const std::string message = SplitError({{"Regex", pattern}});
    EXPECT_THAT(message, StartsWith(prefix + ".pattern")) << pattern;
    EXPECT_THAT(message, HasSubstr(reason)) << pattern;
  }
  // Quadratic or worse on a run of spaces or letters.
  for (const char* pattern : {"\\s*\\s*\\s*\\s*x", "\\s*\\n", "a+b", "\\p{L}+\\d", "\\s+(?=x)"}) {
    EXPECT_THAT(SplitError({{"Regex", pattern}}),
                HasSubstr("backtracks too much on a long run of characters"))
        << pattern;
  }
}

TEST(StrictJsonTest, BoundsWhatTheFileMayHold) {
  const std::string deep = std::string(65, '[') + std::string(65, ']');
  EXPECT_THAT(ParseError(deep), HasSubstr("nested more than 64 deep"));
  EXPECT_THAT(ParseError(std::string(5'000'000, '[')), HasSubstr("nested more than 64 deep"));
  EXPECT_THAT(ParseError("{\"a\":{\"b\":1,\"b\":2}}"), HasSubstr("a.b: duplicate key \"b\""));
  EXPECT_THAT(ParseError("{\"a\":"), HasSubstr("not valid JSON at byte"));
  EXPECT_THAT(ParseError(""), HasSubstr("not valid JSON at byte"));
  EXPECT_THAT(ParseError("{\"a\":\"\xff\"}"), HasSubstr("not valid JSON at byte"));
  EXPECT_THAT(ParseError("{} x"), HasSubstr("not valid JSON at byte"));
  EXPECT_THAT(ParseError(std::string((64u << 20) + 1, ' ')),
              HasSubstr("the file has 67108865 bytes, more than 67108864"));
  StrictJsonLimits limits;
  limits.max_values = 3;
  EXPECT_TRUE(ParseStrictJson("[1,2]", limits).ok());
  EXPECT_THAT(ParseStrictJson("[1,2,3]", limits).status().ToString(),
              HasSubstr("[2]: more than 3 JSON values"));
}

TEST(StrictJsonTest, SixtyFourLevelsAreAllowed) {
  EXPECT_TRUE(ParseStrictJson(std::string(64, '[') + std::string(64, ']')).ok());
}

TEST(LoadTest, NamesTheFileThatItCannotRead) {
  const auto missing = Tokenizer::Load(DataPath("no_such_file.json"));
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.status().ToString(), HasSubstr("no_such_file.json: No such file"));
  const auto directory = Tokenizer::Load(DataPath(""));
  EXPECT_THAT(directory.status().ToString(), HasSubstr("not a regular file"));
  const auto device = Tokenizer::Load("/dev/zero");
  EXPECT_THAT(device.status().ToString(), HasSubstr("/dev/zero: not a regular file"));
}

}  // namespace
}  // namespace hyserve::tokenizer
