// Typed access to the members of a JSON object, with errors that carry the JSON path.
#ifndef HYSERVE_ENGINE_TOKENIZER_JSON_FIELDS_H_
#define HYSERVE_ENGINE_TOKENIZER_JSON_FIELDS_H_

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "base/strings.h"

namespace hyserve::tokenizer {

// InvalidArgument "<path>: <reason>".
inline absl::Status JsonError(std::string_view path, std::string_view reason) {
  return absl::InvalidArgumentError(StrCat(path, ": ", reason));
}

// A JSON value and where it stands. Reads are recorded in the first error; after an error every
// read returns an empty value, so that a loader checks `status` once per block of reads.
// Not thread-safe; the JSON must outlive it.
class JsonFields {
 public:
  JsonFields(const nlohmann::json& object, std::string path);

  const absl::Status& status() const { return status_; }
  const std::string& path() const { return path_; }
  std::string PathOf(std::string_view key) const;

  // The member, or null if it is absent or null.
  const nlohmann::json* Find(std::string_view key) const;

  std::string RequiredString(std::string_view key);
  bool RequiredBool(std::string_view key);
  bool BoolOr(std::string_view key, bool fallback);
  // An integer in [low, high].
  int64_t RequiredInt(std::string_view key, int64_t low, int64_t high);
  const nlohmann::json* RequiredArray(std::string_view key);
  const nlohmann::json* RequiredObject(std::string_view key);

  // An error if the object has a member that is not named here.
  void AllowOnly(std::initializer_list<std::string_view> keys);
  // An error if the member is present and neither null nor false nor "" nor 0.
  void RequireTrivial(std::string_view key);

  void Fail(std::string_view key, std::string_view reason);

 private:
  const nlohmann::json* object_ = nullptr;
  std::string path_;
  absl::Status status_;
};

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_JSON_FIELDS_H_
