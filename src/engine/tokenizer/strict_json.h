// JSON from files that nobody vouches for: bounded depth, bounded number of values, no duplicate
// keys, valid UTF-8, errors that say where.
#ifndef HYSERVE_ENGINE_TOKENIZER_STRICT_JSON_H_
#define HYSERVE_ENGINE_TOKENIZER_STRICT_JSON_H_

#include <cstddef>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"

namespace hyserve::tokenizer {

struct StrictJsonLimits {
  size_t max_bytes = size_t{64} << 20;
  size_t max_depth = 64;            // arrays and objects inside one another
  size_t max_values = size_t{4} << 20;
};

// InvalidArgument: one line, with the JSON path ("model.vocab") or the byte offset.
// Pure and thread-safe; never recursive in the depth of the input.
absl::StatusOr<nlohmann::json> ParseStrictJson(std::string_view text,
                                               const StrictJsonLimits& limits = {});

// Reads a regular file of at most `max_bytes`. NotFound, PermissionDenied, InvalidArgument (not a
// regular file, too large, changed while it was read) or Internal, with the path in the message.
absl::StatusOr<std::string> ReadBoundedFile(const std::string& path, size_t max_bytes);

// `text` for an error message: at most 64 bytes, control characters and invalid UTF-8 escaped, in
// double quotes.
std::string QuoteForMessage(std::string_view text);

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_STRICT_JSON_H_
