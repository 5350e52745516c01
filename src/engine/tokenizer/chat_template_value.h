// Values of the chat-template interpreter: plain data, no behaviour that a template could misuse.
#ifndef HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_VALUE_H_
#define HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_VALUE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/tokenizer/utf8.h"

namespace hyserve::tokenizer {

// A string that remembers which of its bytes the client wrote.
struct TemplateText {
  std::string bytes;
  std::vector<ByteRange> client_ranges;  // sorted, disjoint

  void Append(const TemplateText& other);
  // The bytes of [begin, end).
  TemplateText Slice(size_t begin, size_t end) const;
};
using SharedText = std::shared_ptr<const TemplateText>;

SharedText MakeText(std::string_view bytes);
SharedText MakeClientText(std::string_view bytes);

struct UndefinedValue {
  friend bool operator==(const UndefinedValue&, const UndefinedValue&) = default;
};
struct NoneValue {
  friend bool operator==(const NoneValue&, const NoneValue&) = default;
};
struct MessageValue {  // one message, by its index in the conversation
  size_t index = 0;
};
struct MessageListValue {  // messages [begin, end) of the conversation
  size_t begin = 0;
  size_t end = 0;
};
struct LoopValue {  // the variable `loop`
  size_t index0 = 0;
  size_t length = 0;
};

using TemplateValue = std::variant<UndefinedValue, NoneValue, bool, int64_t, SharedText,
                                   MessageValue, MessageListValue, LoopValue>;

// White space as Python's str.strip() removes it.
bool IsPythonSpace(uint32_t code_point);
// Bounds of `text` (valid UTF-8) without white space at its ends.
ByteRange StripBounds(std::string_view text, bool left, bool right);

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_VALUE_H_
