// UTF-8 helpers of the tokenizer: decoding, replacement of invalid bytes, white space.
//
// "Replacement" everywhere in this folder means: each maximal subpart of an ill-formed sequence
// becomes one U+FFFD (Unicode 15, section 3.9, "Substitution of Maximal Subparts"), which is what
// Python's bytes.decode("utf-8", errors="replace") and Rust's String::from_utf8_lossy do.
//
// All functions are pure and thread-safe.
#ifndef HYSERVE_ENGINE_TOKENIZER_UTF8_H_
#define HYSERVE_ENGINE_TOKENIZER_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace hyserve::tokenizer {

// A half-open range of byte offsets.
struct ByteRange {
  size_t begin_bytes = 0;
  size_t end_bytes = 0;

  // REQUIRES: begin_bytes <= end_bytes <= text.size().
  std::string_view Of(std::string_view text) const {
    return text.substr(begin_bytes, end_bytes - begin_bytes);
  }
  friend bool operator==(const ByteRange&, const ByteRange&) = default;
};

inline constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Scalar {
  uint32_t code_point = 0;    // U+FFFD when not valid
  uint32_t length_bytes = 0;  // >= 1; of the maximal subpart when not valid
  bool valid = false;
  bool truncated = false;  // not valid, and only because the text ends too early
};

// REQUIRES: pos < text.size().
Utf8Scalar DecodeUtf8(std::string_view text, size_t pos);

bool IsValidUtf8(std::string_view text);

void AppendUtf8(uint32_t code_point, std::string* out);

// Appends `text` to `out` with invalid bytes replaced. `ranges` are offsets into `text`, sorted
// and disjoint; they are moved to the same places in the appended text (relative to its start).
void AppendLossyUtf8(std::string_view text, std::string* out, std::span<ByteRange> ranges = {});

// Length of the longest prefix of `text` that does not end inside a sequence which more bytes
// could still complete. At most three bytes less than text.size().
size_t CompleteUtf8Prefix(std::string_view text);

// The Unicode property White_Space.
bool IsWhiteSpace(uint32_t code_point);

// Start of the scalar that ends at `end` in valid UTF-8. REQUIRES: end > 0.
size_t PreviousScalarStart(std::string_view text, size_t end);

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_UTF8_H_
