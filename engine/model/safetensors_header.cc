#include "engine/model/safetensors_header.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <unordered_set>
#include <utility>

#include "base/strings.h"
#include "engine/model/json_reader.h"
#include "nlohmann/json.hpp"

namespace hyserve::model {
namespace {

using nlohmann::json;

constexpr size_t kMaxRank = 8;
constexpr uint64_t kMaxDim = uint64_t{1} << 40;
constexpr std::string_view kMetadataName = "__metadata__";

struct FileDType {
  std::string_view name;
  int bytes;  // 0: elements smaller than a byte
};
constexpr FileDType kFileDTypes[] = {
    {"F32", 4},     {"BF16", 2},    {"F16", 2}, {"F64", 8},     {"I32", 4},     {"I64", 8},
    {"I16", 2},     {"I8", 1},      {"U8", 1},  {"U16", 2},     {"U32", 4},     {"U64", 8},
    {"BOOL", 1},    {"F8_E4M3", 1}, {"C64", 8}, {"F8_E5M2", 1}, {"F8_E8M0", 1}, {"F4", 0},
    {"F6_E2M3", 0}, {"F6_E3M2", 0}};

// Reads the header in one pass, without building a document: what is kept is bounded by the bytes
// of the header. Grammar: {name: {"dtype": string, "shape": [n...], "data_offsets": [n, n]}...,
// "__metadata__": {string: string...}}.
class HeaderReader : public json::json_sax_t {
 public:
  explicit HeaderReader(SafetensorsHeader* header) : header_(header) {}

  const std::string& error() const { return error_; }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("true or false"); }
  bool number_float(number_float_t, const string_t& text) override {
    return Refuse(StrCat("number ", Printable(text),
                         " is not a plain integer below 2^64"));
  }
  // The parser calls this for numbers with a minus sign only, -0 included.
  bool number_integer(number_integer_t) override { return Refuse("negative number"); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::kShape) {
      if (entry_.shape.size() >= kMaxRank) {
        return Refuse(StrCat("shape has more than ", kMaxRank, " dimensions"));
      }
      if (value > kMaxDim) return Refuse(StrCat("dimension ", value, " exceeds 2^40"));
      entry_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (state_ == State::kOffsets) {
      if (num_offsets_ >= 2) return Refuse("data_offsets must be two numbers");
      (num_offsets_ == 0 ? entry_.begin : entry_.end) = value;
      ++num_offsets_;
      return true;
    }
    return Unexpected("a number");
  }

  bool string(string_t& value) override {
    if (state_ == State::kMetadata) {
      header_->metadata.emplace(key_, value);
      return true;
    }
    if (state_ != State::kTensor || key_ != "dtype") return Unexpected("a string");
    for (const FileDType& dtype : kFileDTypes) {
      if (dtype.name != value) continue;
      if (dtype.bytes == 0) {
        return Refuse(StrCat("dtype ", value, " has elements smaller than a byte"));
      }
      entry_.dtype = dtype.name;
      entry_.element_bytes = dtype.bytes;
      return true;
    }
    return Refuse(StrCat("unknown dtype \"", Printable(value), "\""));
  }

  bool start_object(std::size_t) override {
    switch (state_) {
      case State::kStart: state_ = State::kTop; return true;
      case State::kTop:
        if (key_ == kMetadataName) {
          state_ = State::kMetadata;
        } else {
          state_ = State::kTensor;
          entry_ = TensorEntry();
          entry_.name = key_;
          has_shape_ = false;
          num_offsets_ = -1;
        }
        keys_.clear();
        return true;
      default: return Unexpected("an object");
    }
  }

  bool end_object() override {
    if (state_ == State::kMetadata) {
      state_ = State::kTop;
    } else if (state_ == State::kTensor) {
      if (entry_.element_bytes == 0) return Refuse("dtype is missing");
      if (!has_shape_) return Refuse("shape is missing");
      if (num_offsets_ != 2) return Refuse("data_offsets must be two numbers");
      header_->tensors.push_back(std::move(entry_));
      state_ = State::kTop;
    } else {
      state_ = State::kEnd;
    }
    return true;
  }

  bool start_array(std::size_t) override {
    if (state_ == State::kTensor && key_ == "shape") {
      state_ = State::kShape;
      has_shape_ = true;
      return true;
    }
    if (state_ == State::kTensor && key_ == "data_offsets") {
      state_ = State::kOffsets;
      num_offsets_ = 0;
      return true;
    }
    return Unexpected("a list");
  }

  bool end_array() override {
    state_ = State::kTensor;
    return true;
  }

  bool key(string_t& key) override {
    std::unordered_set<std::string>& seen = state_ == State::kTop ? names_ : keys_;
    if (!seen.insert(key).second) {
      return Refuse(state_ == State::kTop
                        ? StrCat("tensor \"", Printable(key), "\" appears twice")
                        : StrCat("key \"", Printable(key), "\" appears twice"));
    }
    if (state_ == State::kTensor && key != "dtype" && key != "shape" && key != "data_offsets") {
      return Refuse(StrCat("unknown key \"", Printable(key), "\""));
    }
    key_ = key;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const json::exception&) override {
    error_ = StrCat("header is not valid JSON at byte ", position);
    return false;
  }

 private:
  enum class State { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };

  // Names the tensor that is being read, if there is one.
  bool Refuse(std::string_view reason) {
    switch (state_) {
      case State::kTensor:
      case State::kShape:
      case State::kOffsets:
        error_ = StrCat("tensor \"", Printable(entry_.name), "\": ", reason);
        break;
      case State::kMetadata: error_ = StrCat(kMetadataName, ": ", reason); break;
      default: error_ = StrCat("header: ", reason);
    }
    return false;
  }
  bool Unexpected(std::string_view what) {
    if (state_ == State::kMetadata) return Refuse("must map strings to strings");
    if (state_ == State::kTop) {
      error_ = StrCat("tensor \"", Printable(key_), "\": must be an object, not ", what);
      return false;
    }
    if (state_ == State::kTensor) return Refuse(StrCat("unexpected ", what, " in ", key_));
    return Refuse(StrCat("unexpected ", what));
  }

  SafetensorsHeader* header_;
  State state_ = State::kStart;
  std::string key_;
  TensorEntry entry_;
  bool has_shape_ = false;
  int num_offsets_ = -1;
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> keys_;
  std::string error_;
};

// Empty when the entry is sound by itself.
std::string EntryFault(const TensorEntry& entry, uint64_t data_start, uint64_t data_bytes) {
  uint64_t bytes = static_cast<uint64_t>(entry.element_bytes);
  for (const int64_t dim : entry.shape) {
    if (dim == 0) return "has no elements";
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes)) {
      return "shape overflows 64 bits";
    }
  }
  const std::string offsets =
      StrCat("data_offsets [", entry.begin, ", ", entry.end, "]");
  if (entry.begin > entry.end) return StrCat(offsets, " end before they begin");
  if (entry.end > data_bytes) {
    return StrCat(offsets, " exceed the data size ", data_bytes);
  }
  if (entry.end - entry.begin != bytes) {
    return StrCat(offsets, " span ", entry.end - entry.begin, " bytes, but the shape needs ",
                  bytes);
  }
  if ((data_start + entry.begin) % static_cast<uint64_t>(entry.element_bytes) != 0) {
    return StrCat(offsets, " are not aligned to the elements' ", entry.element_bytes,
                  " bytes");
  }
  return "";
}

}  // namespace

absl::StatusOr<uint64_t> SafetensorsHeaderBytes(std::string_view prefix, uint64_t file_bytes,
                                                std::string_view file) {
  if (file_bytes < kSafetensorsLengthBytes || prefix.size() < kSafetensorsLengthBytes) {
    return absl::InvalidArgumentError(
        StrCat(file, ": ", file_bytes, " bytes are too few for a safetensors file"));
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(prefix[i]);
  if (length == 0) return absl::InvalidArgumentError(StrCat(file, ": header length is 0"));
  if (length > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(StrCat(file, ": header length ", length,
                                             " exceeds the limit of ",
                                             kMaxSafetensorsHeaderBytes));
  }
  if (length > file_bytes - kSafetensorsLengthBytes) {
    return absl::InvalidArgumentError(
        StrCat(file, ": header length ", length, " exceeds the file of ", file_bytes,
               " bytes"));
  }
  return length;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json_text,
                                                         uint64_t data_bytes,
                                                         std::string_view file) {
  const auto refuse = [&](const auto&... reason) {
    return absl::InvalidArgumentError(StrCat(file, ": ", reason...));
  };
  if (!json_text.starts_with("{")) return refuse("header does not start with '{'");
  // The parser takes a NUL byte for the end of the text.
  if (json_text.find('\0') != std::string_view::npos) return refuse("header contains a NUL byte");

  SafetensorsHeader header;
  HeaderReader reader(&header);
  if (!json::sax_parse(json_text, &reader)) return refuse(reader.error());

  const uint64_t data_start = kSafetensorsLengthBytes + json_text.size();
  for (const TensorEntry& entry : header.tensors) {
    if (std::string fault = EntryFault(entry, data_start, data_bytes); !fault.empty()) {
      return refuse("tensor \"", Printable(entry.name), "\": ", fault);
    }
  }
  // Every tensor has elements, so sorted by begin each must start where the one before it ended.
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const TensorEntry& a, const TensorEntry& b) { return a.begin < b.begin; });
  uint64_t covered = 0;
  for (const TensorEntry& entry : header.tensors) {
    if (entry.begin < covered) {
      return refuse("tensor \"", Printable(entry.name), "\": overlaps the tensor before it by ",
                    covered - entry.begin, " bytes");
    }
    if (entry.begin > covered) {
      return refuse("tensor \"", Printable(entry.name), "\": a hole of ", entry.begin - covered,
                    " bytes lies before it");
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    return refuse(data_bytes - covered, " trailing bytes after the last tensor");
  }
  return header;
}

}  // namespace hyserve::model
