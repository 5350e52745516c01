// Tokens of a chat template, with Jinja's white-space control applied (trim_blocks and
// lstrip_blocks on, as chat templates expect).
#ifndef HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_LEXER_H_
#define HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_LEXER_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hyserve::tokenizer {

struct TemplateToken {
  enum class Kind {
    kText,           // literal output
    kOutputBegin,    // {{
    kOutputEnd,      // }}
    kBlockBegin,     // {%
    kBlockEnd,       // %}
    kName,
    kString,         // text = the value, escapes resolved
    kInteger,
    kOperator,       // text = the operator
    kEnd,
  };
  Kind kind = Kind::kEnd;
  std::string text;
  int64_t integer = 0;
  int line = 1;
};

// InvalidArgument "line N: reason".
absl::Status TemplateError(int line, std::string_view reason);

// Ends with one kEnd token. InvalidArgument for anything that is not in the language of
// chat_template.h. Pure and thread-safe. REQUIRES: `source` is valid UTF-8.
absl::StatusOr<std::vector<TemplateToken>> LexTemplate(std::string_view source);

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_LEXER_H_
