#include "engine/tokenizer/strict_json.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "base/strings.h"
#include "engine/tokenizer/utf8.h"

namespace hyserve::tokenizer {
namespace {

using Json = nlohmann::json;

// Builds the document from the parser's events.
class Builder : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(const StrictJsonLimits& limits) : limits_(limits) {}

  const std::string& error() const { return error_; }
  Json& root() { return root_; }

  bool null() override { return Add(Json()); }
  bool boolean(bool value) override { return Add(Json(value)); }
  bool number_integer(number_integer_t value) override { return Add(Json(value)); }
  bool number_unsigned(number_unsigned_t value) override { return Add(Json(value)); }
  bool number_float(number_float_t value, const string_t&) override { return Add(Json(value)); }
  bool string(string_t& value) override { return Add(Json(std::move(value))); }
  bool binary(binary_t&) override { return Fail("binary values are not JSON"); }
  bool start_object(size_t) override { return Open(Json::object()); }
  bool start_array(size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& value) override {
    Json& object = *stack_.back().node;
    const auto [it, inserted] = object.get_ref<Json::object_t&>().emplace(value, Json());
    if (!inserted) return Fail(StrCat("duplicate key ", QuoteForMessage(value)));
    stack_.back().slot = &it->second;
    stack_.back().key = std::move(value);
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    if (!error_.empty()) return false;
    std::string_view what = error.what();
    const size_t colon = what.rfind(": ");
    if (colon != std::string_view::npos) what.remove_prefix(colon + 2);
    error_ = StrCat("not valid JSON at byte ", position);
    // The library's text may quote the file's bytes.
    error_ += StrCat(": ", absl::Utf8SafeCEscape(ToAbsl(what.substr(0, 120))));
    return false;
  }

 private:
  struct Frame {
    Json* node = nullptr;
    Json* slot = nullptr;  // where the next member of an object goes
    std::string key;
  };

  std::string Path() const {
    std::string path;
    for (const Frame& frame : stack_) {
      if (frame.node->is_array()) {
        path += StrCat("[", frame.node->size(), "]");
      } else if (frame.slot != nullptr) {
        path += StrCat(path.empty() ? "" : ".", absl::Utf8SafeCEscape(frame.key));
      }
      if (path.size() > 200) return path.substr(0, 200) + "...";
    }
    return path;
  }

  bool Fail(std::string_view reason) {
    if (error_.empty()) {
      const std::string path = Path();
      error_ = StrCat(path, path.empty() ? "" : ": ", reason);
    }
    return false;
  }

  Json* Place(Json value) {
    if (++num_values_ > limits_.max_values) {
      Fail(StrCat("more than ", limits_.max_values, " JSON values"));
      return nullptr;
    }
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Frame& frame = stack_.back();
    if (frame.node->is_array()) {
      auto& array = frame.node->get_ref<Json::array_t&>();
      array.push_back(std::move(value));
      return &array.back();
    }
    *frame.slot = std::move(value);
    return frame.slot;
  }

  bool Add(Json value) { return Place(std::move(value)) != nullptr; }

  bool Open(Json value) {
    if (stack_.size() >= limits_.max_depth) {
      return Fail(StrCat("nested more than ", limits_.max_depth, " deep"));
    }
    Json* node = Place(std::move(value));
    if (node == nullptr) return false;
    stack_.push_back({node, nullptr, ""});
    return true;
  }

  bool Close() {
    stack_.pop_back();
    return true;
  }

  StrictJsonLimits limits_;
  Json root_;
  std::vector<Frame> stack_;
  size_t num_values_ = 0;
  std::string error_;
};

absl::Status ErrnoStatus(const std::string& path, int error) {
  const std::string message = StrCat(path, ": ", std::strerror(error));
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(message);
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(message);
  return absl::InternalError(message);
}

}  // namespace

absl::StatusOr<Json> ParseStrictJson(std::string_view text, const StrictJsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return absl::InvalidArgumentError(StrCat("the file has ", text.size(),
                                             " bytes, more than ", limits.max_bytes));
  }
  Builder builder(limits);
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
    return absl::InvalidArgumentError(builder.error());
  }
  return std::move(builder.root());
}

absl::StatusOr<std::string> ReadBoundedFile(const std::string& path, size_t max_bytes) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return ErrnoStatus(path, errno);
  absl::Cleanup closer = [fd] { close(fd); };
  struct stat before;
  if (fstat(fd, &before) != 0) return ErrnoStatus(path, errno);
  if (!S_ISREG(before.st_mode)) {
    return absl::InvalidArgumentError(StrCat(path, ": not a regular file"));
  }
  if (static_cast<uint64_t>(before.st_size) > max_bytes) {
    return absl::InvalidArgumentError(StrCat(path, ": the file has ", before.st_size,
                                             " bytes, more than ", max_bytes));
  }
  std::string text(static_cast<size_t>(before.st_size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = read(fd, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus(path, errno);
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  struct stat after;
  if (fstat(fd, &after) != 0) return ErrnoStatus(path, errno);
  if (done != text.size() || after.st_size != before.st_size ||
      after.st_mtim.tv_sec != before.st_mtim.tv_sec ||
      after.st_mtim.tv_nsec != before.st_mtim.tv_nsec) {
    return absl::InvalidArgumentError(StrCat(path, ": changed while it was read"));
  }
  return text;
}

std::string QuoteForMessage(std::string_view text) {
  constexpr size_t kMaxBytes = 64;
  std::string clean;
  AppendLossyUtf8(text.substr(0, kMaxBytes), &clean);
  return StrCat("\"", absl::Utf8SafeCEscape(clean), text.size() > kMaxBytes ? "...\"" : "\"");
}

}  // namespace hyserve::tokenizer
