// Strict JSON for the files of a checkpoint: what a lenient parser lets through (duplicate keys,
// NUL bytes, deep nesting, invalid UTF-8) is refused.
#ifndef HYSERVE_ENGINE_MODEL_JSON_READER_H_
#define HYSERVE_ENGINE_MODEL_JSON_READER_H_

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace hyserve::model {

struct JsonLimits {
  size_t max_bytes = 1 << 20;
  int max_depth = 16;
};

// The JSON object in `text`. INVALID_ARGUMENT, one line that starts with `name`.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view name,
                                               const JsonLimits& limits);

// The whole of a regular file. NOT_FOUND, INVALID_ARGUMENT (not a regular file, larger than
// max_bytes), PERMISSION_DENIED or DATA_LOSS (changed while it was read); the message starts with
// `name`.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, std::string_view name,
                                          size_t max_bytes);

// A name from a file, fit for one line of a message: control characters escaped, at most 120 bytes.
std::string Printable(std::string_view text);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_JSON_READER_H_
