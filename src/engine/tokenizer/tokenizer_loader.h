// Strict reading of tokenizer.json into the parts of a Tokenizer.
#ifndef HYSERVE_ENGINE_TOKENIZER_TOKENIZER_LOADER_H_
#define HYSERVE_ENGINE_TOKENIZER_TOKENIZER_LOADER_H_

#include <string_view>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "engine/tokenizer/json_fields.h"
#include "engine/tokenizer/tokenizer.h"

namespace hyserve::tokenizer {

// InvalidArgument with one line "<JSON path>: <reason>" for the first thing that is wrong.
// Pure and thread-safe.
absl::StatusOr<TokenizerParts> ParseTokenizerParts(std::string_view json);

// The four parts below read their member of the document and fill in `parts`, whose vocabulary
// (token_bytes, token_text, added_tokens) is complete by then.
absl::Status LoadNormalizer(const JsonFields& document, TokenizerParts* parts);
absl::Status LoadPreTokenizer(const JsonFields& document, TokenizerParts* parts);
absl::Status LoadPostProcessor(const JsonFields& document, TokenizerParts* parts);
absl::Status CheckDecoder(const JsonFields& document);

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_TOKENIZER_LOADER_H_
