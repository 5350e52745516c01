#include "engine/tokenizer/utf8.h"

#include <cstring>

namespace hyserve::tokenizer {
namespace {

// Length of the run of ASCII bytes that starts at `pos`, eight bytes at a time.
size_t AsciiRun(std::string_view text, size_t pos) {
  size_t i = pos;
  while (i + 8 <= text.size()) {
    uint64_t chunk;
    std::memcpy(&chunk, text.data() + i, sizeof(chunk));
    if ((chunk & 0x8080808080808080ull) != 0) break;
    i += 8;
  }
  while (i < text.size() && static_cast<uint8_t>(text[i]) < 0x80) ++i;
  return i - pos;
}

}  // namespace

Utf8Scalar DecodeUtf8(std::string_view text, size_t pos) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(pos);
  if (lead < 0x80) return {lead, 1, true, false};
  uint32_t needed = 0;
  uint32_t code_point = 0;
  uint8_t low = 0x80;  // bounds of the second byte, tighter than 80..BF for some lead bytes
  uint8_t high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    needed = 1;
    code_point = lead & 0x1F;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    needed = 2;
    code_point = lead & 0x0F;
    if (lead == 0xE0) low = 0xA0;   // no overlong forms
    if (lead == 0xED) high = 0x9F;  // no surrogates
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    needed = 3;
    code_point = lead & 0x07;
    if (lead == 0xF0) low = 0x90;   // no overlong forms
    if (lead == 0xF4) high = 0x8F;  // nothing above U+10FFFF
  } else {
    return {0xFFFD, 1, false, false};
  }
  for (uint32_t i = 1; i <= needed; ++i) {
    if (pos + i >= text.size()) return {0xFFFD, i, false, true};
    const uint8_t next = byte(pos + i);
    if (next < low || next > high) return {0xFFFD, i, false, false};
    code_point = (code_point << 6) | (next & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {code_point, needed + 1, true, false};
}

bool IsValidUtf8(std::string_view text) {
  size_t pos = 0;
  while (true) {
    pos += AsciiRun(text, pos);
    if (pos >= text.size()) return true;
    const Utf8Scalar scalar = DecodeUtf8(text, pos);
    if (!scalar.valid) return false;
    pos += scalar.length_bytes;
  }
}

void AppendUtf8(uint32_t code_point, std::string* out) {
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (code_point >> 6)));
    out->push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  } else if (code_point < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (code_point >> 12)));
    out->push_back(static_cast<char>(0x80 | ((code_point >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | (code_point >> 18)));
    out->push_back(static_cast<char>(0x80 | ((code_point >> 12) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | ((code_point >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  }
}

void AppendLossyUtf8(std::string_view text, std::string* out, std::span<ByteRange> ranges) {
  const size_t out_begin = out->size();
  size_t next_range = 0;
  bool at_begin = true;  // the next offset to move is ranges[next_range].begin_bytes
  // Moves every offset <= pos to the current end of the output.
  const auto move_offsets = [&](size_t pos) {
    while (next_range < ranges.size()) {
      ByteRange& range = ranges[next_range];
      size_t& offset = at_begin ? range.begin_bytes : range.end_bytes;
      if (offset > pos) return;
      offset = out->size() - out_begin - (pos - offset);
      if (!at_begin) ++next_range;
      at_begin = !at_begin;
    }
  };
  size_t copied = 0;
  size_t pos = 0;
  while (pos < text.size()) {
    pos += AsciiRun(text, pos);
    if (pos >= text.size()) break;
    const Utf8Scalar scalar = DecodeUtf8(text, pos);
    if (!scalar.valid) {
      out->append(text.substr(copied, pos - copied));
      move_offsets(pos);
      // Offsets inside the replaced bytes go outwards: a range may only grow.
      out->append(kReplacementUtf8);
      copied = pos + scalar.length_bytes;
      for (size_t inside = pos + 1; inside < copied; ++inside) {
        while (next_range < ranges.size()) {
          ByteRange& range = ranges[next_range];
          size_t& offset = at_begin ? range.begin_bytes : range.end_bytes;
          if (offset != inside) break;
          offset = out->size() - out_begin - (at_begin ? kReplacementUtf8.size() : 0);
          if (!at_begin) ++next_range;
          at_begin = !at_begin;
        }
      }
    }
    pos += scalar.length_bytes;
  }
  out->append(text.substr(copied));
  move_offsets(text.size());
}

size_t CompleteUtf8Prefix(std::string_view text) {
  // A sequence that can still be completed starts within the last three bytes.
  const size_t first = text.size() > 3 ? text.size() - 3 : 0;
  for (size_t pos = text.size(); pos > first;) {
    --pos;
    const uint8_t byte = static_cast<uint8_t>(text[pos]);
    if ((byte & 0xC0) == 0x80) continue;  // a continuation byte: look further left
    const Utf8Scalar scalar = DecodeUtf8(text, pos);
    return scalar.truncated ? pos : text.size();
  }
  return text.size();
}

bool IsWhiteSpace(uint32_t code_point) {
  switch (code_point) {
    case 0x20:
    case 0x85:
    case 0xA0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202F:
    case 0x205F:
    case 0x3000:
      return true;
    default:
      return (code_point >= 0x09 && code_point <= 0x0D) ||
             (code_point >= 0x2000 && code_point <= 0x200A);
  }
}

size_t PreviousScalarStart(std::string_view text, size_t end) {
  size_t pos = end - 1;
  while (pos > 0 && (static_cast<uint8_t>(text[pos]) & 0xC0) == 0x80) --pos;
  return pos;
}

}  // namespace hyserve::tokenizer
