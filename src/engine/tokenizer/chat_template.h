// Chat templates of tokenizer_config.json, in a small and safe part of Jinja's language.
//
// A template is configuration, the messages are client data, and neither may run code, loop
// without bound or grow without bound. What is not listed here is refused when the template is
// loaded, with its line:
//   {{ expr }}  {# comment #}  {% if %} {% elif %} {% else %} {% endif %}
//   {% for m in list %} {% endfor %}  {% set name = expr %}   "-" and "+" white-space signs;
//   trim_blocks and lstrip_blocks are on
//   'text' "text" 12 true false none, names, ( ), a.b  a['b']  list[0]  list[1:]
//   + ~ - %  == != < <= > >=  in  not in  and or not  x if c else y
//   is [not] defined | undefined | none | string | mapping;   filters trim, length, count
//   text.strip() .lstrip() .rstrip() .startswith(t) .endswith(t);   raise_exception(text)
// Variables: messages (each with role and content), add_generation_prompt, bos_token, eos_token,
// tools and documents (none), loop (first, last, index, index0, revindex, revindex0, length).
// Other names are undefined, as in Jinja.
#ifndef HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_H_
#define HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_H_

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/chat_template_ast.h"
#include "engine/tokenizer/utf8.h"

namespace hyserve::tokenizer {

inline constexpr size_t kMaxChatTemplateBytes = size_t{64} << 10;
inline constexpr size_t kMaxLoopIterations = 10'000;  // of all loops of one rendering together

struct ChatMessage {
  std::string role;
  std::string content;
};

struct RenderedChat {
  std::string text;
  // The bytes that came from a message's role or content, sorted and disjoint. Pass them to
  // EncodeOptions::literal_ranges, so that a client cannot write a special token.
  std::vector<ByteRange> client_ranges;
};

// Immutable and thread-safe.
class ChatTemplate {
 public:
  // InvalidArgument "chat_template: line N: reason".
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string_view source,
                                                             std::string_view bos_token,
                                                             std::string_view eos_token);

  // From the text of a tokenizer_config.json: `chat_template` (a string, or a list with an entry
  // named "default"), `bos_token`, `eos_token` (a string, or an object with `content`). NotFound
  // if there is no chat_template; InvalidArgument "<name>: <JSON path>: <reason>".
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> FromTokenizerConfig(std::string_view json,
                                                                           std::string_view name);

  // InvalidArgument: a role or content is not valid UTF-8, or the template fails on these messages
  // (its own raise_exception included). ResourceExhausted: more than kMaxLoopIterations, or output
  // above 4 times the bytes of the messages + 64 KiB.
  absl::StatusOr<RenderedChat> RenderWithRanges(std::span<const ChatMessage> messages,
                                                bool add_generation_prompt) const;
  absl::StatusOr<std::string> Render(std::span<const ChatMessage> messages,
                                     bool add_generation_prompt) const;

 private:
  ChatTemplate() = default;

  TemplateBody body_;
  SharedText bos_token_;
  SharedText eos_token_;
};

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_H_
