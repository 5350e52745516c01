#include "tests/support/byte_tokenizer.h"

#include <cstdlib>
#include <iostream>

#include <nlohmann/json.hpp>

#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"

namespace hyserve::test {
namespace {

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::cerr << value.status().ToString() << std::endl;
  std::abort();
}

}  // namespace

std::string ByteTokenizerJson() {
  nlohmann::json vocab = nlohmann::json::object();
  uint32_t next_unprintable = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    // The byte-level alphabet: printable Latin-1 stands for itself, the rest follows from 256 on.
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    std::string key;
    tokenizer::AppendUtf8(printable ? byte : next_unprintable++, &key);
    vocab[key] = byte;
  }
  nlohmann::json added = nlohmann::json::array();
  const char* const kSpecials[] = {"<|end|>", "<|user|>", "<|reply|>"};
  for (int i = 0; i < 3; ++i) {
    added.push_back({{"id", 256 + i},
                     {"content", kSpecials[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const nlohmann::json byte_level = {{"type", "ByteLevel"},
                                     {"add_prefix_space", false},
                                     {"trim_offsets", true},
                                     {"use_regex", false}};
  return nlohmann::json{{"version", "1.0"},
                        {"truncation", nullptr},
                        {"padding", nullptr},
                        {"added_tokens", added},
                        {"normalizer", nullptr},
                        {"pre_tokenizer", byte_level},
                        {"post_processor", nullptr},
                        {"decoder", byte_level},
                        {"model",
                         {{"type", "BPE"},
                          {"dropout", nullptr},
                          {"unk_token", nullptr},
                          {"continuing_subword_prefix", nullptr},
                          {"end_of_word_suffix", nullptr},
                          {"fuse_unk", false},
                          {"byte_fallback", false},
                          {"vocab", vocab},
                          {"merges", nlohmann::json::array()}}}}
      .dump();
}

std::unique_ptr<router::TextModel> MakeByteTextModel() {
  auto tokenizer = OrDie(tokenizer::Tokenizer::Parse(ByteTokenizerJson(), "bytes"));
  auto chat = OrDie(tokenizer::ChatTemplate::Parse(
      "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
      "{% if add_generation_prompt %}<|reply|>{% endif %}",
      "", "<|end|>"));
  return std::make_unique<router::TextModel>(std::move(tokenizer), std::move(chat));
}

}  // namespace hyserve::test
