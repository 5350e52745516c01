#include "engine/model/json_reader.h"

#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "base/strings.h"
#include "engine/model/file.h"

namespace hyserve::model {
namespace {

using nlohmann::json;

// Walks a document without building it, and stops at the first thing that is refused.
class Checker : public json::json_sax_t {
 public:
  explicit Checker(int max_depth) : max_depth_(max_depth) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return Open(true); }
  bool end_object() override { return Close(); }
  bool start_array(std::size_t) override { return Open(false); }
  bool end_array() override { return Close(); }
  bool key(string_t& key) override {
    if (keys_.back().insert(key).second) return true;
    error_ = StrCat("key \"", Printable(key), "\" appears twice");
    return false;
  }
  bool parse_error(std::size_t position, const std::string&, const json::exception&) override {
    error_ = StrCat("not valid JSON at byte ", position);
    return false;
  }

  const std::string& error() const { return error_; }

 private:
  bool Open(bool object) {
    if (keys_.empty() && !object) {
      error_ = "must be a JSON object";
      return false;
    }
    if (static_cast<int>(keys_.size()) >= max_depth_) {
      error_ = StrCat("nested deeper than ", max_depth_, " levels");
      return false;
    }
    keys_.emplace_back();
    return true;
  }
  bool Close() {
    keys_.pop_back();
    return true;
  }

  const int max_depth_;
  std::vector<std::set<std::string>> keys_;
  std::string error_;
};

}  // namespace

absl::StatusOr<json> ParseJsonObject(std::string_view text, std::string_view name,
                                     const JsonLimits& limits) {
  const auto refuse = [&](std::string_view reason) {
    return absl::InvalidArgumentError(StrCat(name, ": ", reason));
  };
  if (text.size() > limits.max_bytes) {
    return refuse(StrCat("larger than ", limits.max_bytes, " bytes"));
  }
  if (text.starts_with("\xef\xbb\xbf")) return refuse("starts with a byte order mark");
  // The parser takes a NUL byte for the end of the text.
  if (text.find('\0') != std::string_view::npos) return refuse("contains a NUL byte");
  Checker checker(limits.max_depth);
  if (!json::sax_parse(text, &checker)) return refuse(checker.error());
  json document = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) return refuse("must be a JSON object");
  return document;
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, std::string_view name,
                                          size_t max_bytes) {
  absl::StatusOr<InputFile> file = InputFile::Open(path, std::string(name));
  if (!file.ok()) return file.status();
  if (file->size_bytes() > max_bytes) {
    return absl::InvalidArgumentError(StrCat(name, ": ", file->size_bytes(),
                                             " bytes, more than the limit of ", max_bytes));
  }
  std::string contents(file->size_bytes(), '\0');
  if (absl::Status status = file->Read(0, contents.data(), contents.size()); !status.ok()) {
    return status;
  }
  if (absl::Status status = file->CheckUnchanged(); !status.ok()) return status;
  return contents;
}

std::string Printable(std::string_view text) {
  constexpr size_t kMaxBytes = 120;
  if (text.size() <= kMaxBytes) return absl::CEscape(ToAbsl(text));
  return StrCat(absl::CEscape(ToAbsl(text.substr(0, kMaxBytes))), "...");
}

}  // namespace hyserve::model
