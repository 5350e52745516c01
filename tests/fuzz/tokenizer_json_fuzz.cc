// tokenizer.json from anyone: refused with one line, or loaded and then right about any text.
//
// Input: the JSON, and after the first NUL byte (JSON has none) the text to encode.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tokenizer/incremental_detokenizer.h"
#include "engine/tokenizer/tokenizer.h"

namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using hyserve::tokenizer::IncrementalDetokenizer;
  using hyserve::tokenizer::Tokenizer;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t nul = input.find('\0');
  const std::string_view json = input.substr(0, nul);
  const std::string_view text = nul == std::string_view::npos ? input : input.substr(nul + 1);
  const auto tokenizer = Tokenizer::Parse(json, "fuzz");
  if (!tokenizer.ok()) {
    Require(tokenizer.status().message().find('\n') == absl::string_view::npos);
    return 0;
  }
  for (const bool flag : {false, true}) {
    const std::vector<int32_t> ids =
        (*tokenizer)->Encode(text, {.add_special_tokens = flag, .parse_special = !flag});
    const auto limited = (*tokenizer)->Encode(
        text, {.add_special_tokens = flag, .parse_special = !flag, .max_tokens = ids.size() / 2});
    Require(limited.size() <= ids.size() / 2 + 1);
    IncrementalDetokenizer detokenizer(tokenizer->get(), flag);
    std::string streamed;
    for (const int32_t id : ids) {
      Require(id >= 0 && id < (*tokenizer)->vocab_size());
      streamed += detokenizer.Push(id);
    }
    streamed += detokenizer.Flush();
    Require(streamed == (*tokenizer)->Decode(ids, flag));
    Require(hyserve::tokenizer::IsValidUtf8(streamed));
  }
  return 0;
}
