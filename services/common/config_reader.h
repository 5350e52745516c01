// Strict reading of YAML configuration.
//
// One walk over the schema both fills in a struct and defines the keys that exist: a schema is a
// function that asks a ConfigTable for every key it knows, and whatever it did not ask for is an
// unknown key. Nothing is guessed: no octal numbers, no `yes` for true, no size or duration without
// a unit, no duplicate keys, no aliases, anchors, tags or second document. All problems of a file
// are reported together, one line each: "config.yaml:14:7: transfer.lease: reason".
#ifndef HYSERVE_SERVICES_COMMON_CONFIG_READER_H_
#define HYSERVE_SERVICES_COMMON_CONFIG_READER_H_

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace hyserve::common {

inline constexpr size_t kMaxConfigFileBytes = size_t{1} << 20;
inline constexpr int kMaxConfigDepth = 32;

namespace internal {
struct YamlNode;
struct ConfigProblems;
}  // namespace internal

// A mapping of the file, or an absent one (every key keeps its default then). Used only inside the
// schema function. Every getter leaves *out as it is when the key is absent or wrong.
class ConfigTable {
 public:
  ConfigTable(const internal::YamlNode* node, std::string path, internal::ConfigProblems* problems);
  ~ConfigTable();  // reports the keys that nobody asked for
  ConfigTable(const ConfigTable&) = delete;
  ConfigTable& operator=(const ConfigTable&) = delete;

  bool Has(std::string_view key) const;

  void String(std::string_view key, std::string* out, size_t max_bytes = 4096);
  void Bool(std::string_view key, bool* out);  // true or false, nothing else
  void Int(std::string_view key, int64_t* out, int64_t min, int64_t max);
  void Int(std::string_view key, int32_t* out, int32_t min, int32_t max);
  void Double(std::string_view key, double* out, double min, double max);  // finite
  // A whole number with B, KiB, MiB, GiB or TiB.
  void Bytes(std::string_view key, int64_t* out, int64_t min, int64_t max);
  // "auto" (the share `automatic`), a share as a percentage (85%), or a size as in Bytes(). Of
  // *bytes and *share the one that was given is set, a size sets *share to 0. True: a share was
  // given.
  bool BytesOrShare(std::string_view key, int64_t* bytes, double* share, double automatic,
                    int64_t min, int64_t max);
  // A number with us, ms, s, min or h.
  void Duration(std::string_view key, absl::Duration* out, absl::Duration min, absl::Duration max);
  // One of the words; a wrong one that resembles one of them is told so.
  void Enum(std::string_view key, std::string* out, std::initializer_list<std::string_view> values);
  // host:port, port in [0, 65535].
  void Address(std::string_view key, std::string* out);
  void StringList(std::string_view key, std::vector<std::string>* out, size_t max_items);

  // Calls `schema` with the mapping at `key` (an absent table when there is none).
  void Table(std::string_view key, absl::FunctionRef<void(ConfigTable&)> schema);
  // Calls `schema` once for each mapping of the sequence at `key`.
  void List(std::string_view key, size_t max_items, absl::FunctionRef<void(ConfigTable&)> schema);
  // True if the value at `key` is a sequence.
  bool IsList(std::string_view key) const;

  // Reports a problem of the caller's own at the place of `key` (of the table when absent).
  void Problem(std::string_view key, std::string_view reason);
  // "missing" unless the key is there.
  void Require(std::string_view key);

 private:
  const internal::YamlNode* Find(std::string_view key);
  const internal::YamlNode* FindScalar(std::string_view key, std::string_view wanted);

  const internal::YamlNode* node_;  // null: absent
  std::string path_;
  internal::ConfigProblems* problems_;
  std::set<std::string, std::less<>> known_keys_;
};

// Parses `text` and walks `schema` over its top-level mapping. INVALID_ARGUMENT with one line per
// problem, in the order of the file; `name` stands for the file.
absl::Status ReadConfigText(std::string_view text, std::string_view name,
                            absl::FunctionRef<void(ConfigTable&)> schema);
// The same from a file. NOT_FOUND, or INVALID_ARGUMENT for a file that is too large or not regular.
absl::Status ReadConfigFile(const std::string& path, absl::FunctionRef<void(ConfigTable&)> schema);

}  // namespace hyserve::common

#endif  // HYSERVE_SERVICES_COMMON_CONFIG_READER_H_
