// Parser of the chat-template language described in chat_template.h.
#ifndef HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_PARSER_H_
#define HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_PARSER_H_

#include <string_view>

#include "absl/status/statusor.h"
#include "engine/tokenizer/chat_template_ast.h"

namespace hyserve::tokenizer {

// InvalidArgument "line N: reason" for anything outside the language, nesting above 64 included.
// Pure and thread-safe. REQUIRES: `source` is valid UTF-8.
absl::StatusOr<TemplateBody> ParseTemplate(std::string_view source);

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_PARSER_H_
