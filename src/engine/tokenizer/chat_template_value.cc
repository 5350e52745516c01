#include "engine/tokenizer/chat_template_value.h"

#include <algorithm>

namespace hyserve::tokenizer {

void TemplateText::Append(const TemplateText& other) {
  const size_t shift = bytes.size();
  bytes.append(other.bytes);
  for (const ByteRange& range : other.client_ranges) {
    const ByteRange moved{range.begin_bytes + shift, range.end_bytes + shift};
    if (!client_ranges.empty() && client_ranges.back().end_bytes == moved.begin_bytes) {
      client_ranges.back().end_bytes = moved.end_bytes;
    } else {
      client_ranges.push_back(moved);
    }
  }
}

TemplateText TemplateText::Slice(size_t begin, size_t end) const {
  TemplateText slice;
  slice.bytes = bytes.substr(begin, end - begin);
  for (const ByteRange& range : client_ranges) {
    const size_t from = std::max(range.begin_bytes, begin);
    const size_t to = std::min(range.end_bytes, end);
    if (from < to) slice.client_ranges.push_back({from - begin, to - begin});
  }
  return slice;
}

SharedText MakeText(std::string_view bytes) {
  auto text = std::make_shared<TemplateText>();
  text->bytes = bytes;
  return text;
}

SharedText MakeClientText(std::string_view bytes) {
  auto text = std::make_shared<TemplateText>();
  text->bytes = bytes;
  if (!bytes.empty()) text->client_ranges.push_back({0, bytes.size()});
  return text;
}

bool IsPythonSpace(uint32_t code_point) {
  return IsWhiteSpace(code_point) || (code_point >= 0x1C && code_point <= 0x1F);
}

ByteRange StripBounds(std::string_view text, bool left, bool right) {
  ByteRange bounds{0, text.size()};
  while (left && bounds.begin_bytes < bounds.end_bytes) {
    const Utf8Scalar scalar = DecodeUtf8(text, bounds.begin_bytes);
    if (!IsPythonSpace(scalar.code_point)) break;
    bounds.begin_bytes += scalar.length_bytes;
  }
  while (right && bounds.begin_bytes < bounds.end_bytes) {
    const size_t start = PreviousScalarStart(text, bounds.end_bytes);
    if (!IsPythonSpace(DecodeUtf8(text, start).code_point)) break;
    bounds.end_bytes = start;
  }
  return bounds;
}

}  // namespace hyserve::tokenizer
