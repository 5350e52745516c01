#include "engine/tokenizer/normalizer.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include <utf8proc.h>

#include "engine/tokenizer/utf8.h"

namespace hyserve::tokenizer {
namespace {

constexpr uint32_t kHangulBase = 0xAC00;
constexpr uint32_t kHangulCount = 11172;
constexpr uint32_t kLeadBase = 0x1100;
constexpr uint32_t kVowelBase = 0x1161;
constexpr uint32_t kTrailBase = 0x11A7;
constexpr uint32_t kVowelCount = 21;
constexpr uint32_t kTrailCount = 28;

int CombiningClass(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

void AppendDecomposition(uint32_t code_point, std::vector<utf8proc_int32_t>* out) {
  if (code_point - kHangulBase < kHangulCount) {
    const uint32_t index = code_point - kHangulBase;
    const uint32_t trail = index % kTrailCount;
    out->push_back(kLeadBase + index / (kVowelCount * kTrailCount));
    out->push_back(kVowelBase + index / kTrailCount % kVowelCount);
    if (trail != 0) out->push_back(kTrailBase + trail);
    return;
  }
  utf8proc_int32_t buffer[32];  // the longest canonical decomposition has 4 code points
  const utf8proc_ssize_t count = utf8proc_decompose_char(
      static_cast<utf8proc_int32_t>(code_point), buffer, 32, UTF8PROC_DECOMPOSE, nullptr);
  if (count <= 0 || count > 32) {
    out->push_back(static_cast<utf8proc_int32_t>(code_point));
    return;
  }
  out->insert(out->end(), buffer, buffer + count);
}

// utf8proc's own reordering is quadratic on long runs of unordered marks; a stable sort of each
// run is the same function.
void ReorderMarks(std::vector<utf8proc_int32_t>* points) {
  auto it = points->begin();
  while (it != points->end()) {
    if (CombiningClass(*it) == 0) {
      ++it;
      continue;
    }
    const auto end =
        std::find_if(it, points->end(), [](utf8proc_int32_t c) { return CombiningClass(c) == 0; });
    if (end - it > 1) {
      std::stable_sort(it, end, [](utf8proc_int32_t a, utf8proc_int32_t b) {
        return CombiningClass(a) < CombiningClass(b);
      });
    }
    it = end;
  }
}

}  // namespace

bool MayChangeUnderNfc(std::string_view text) {
  // U+0300 is CC 80: every scalar below it is a starter that composes with nothing before it.
  return std::any_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) >= 0xCC; });
}

std::string NormalizeNfc(std::string_view text) {
  if (!MayChangeUnderNfc(text)) return std::string(text);
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Scalar scalar = DecodeUtf8(text, pos);
    AppendDecomposition(scalar.code_point, &points);
    pos += scalar.length_bytes;
  }
  ReorderMarks(&points);
  const utf8proc_ssize_t count = utf8proc_normalize_utf32(
      points.data(), static_cast<utf8proc_ssize_t>(points.size()),
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (count < 0) return std::string(text);
  points.resize(static_cast<size_t>(count));
  std::string out;
  out.reserve(text.size());
  for (const utf8proc_int32_t point : points) AppendUtf8(static_cast<uint32_t>(point), &out);
  return out;
}

}  // namespace hyserve::tokenizer
