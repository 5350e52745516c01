#include "engine/tokenizer/byte_alphabet.h"

#include <array>

#include "engine/tokenizer/utf8.h"

namespace hyserve::tokenizer {
namespace {

constexpr uint32_t kAlphabetEnd = 0x100 + 68;  // one past the largest code point

constexpr bool StandsForItself(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
         (byte >= 0xAE && byte <= 0xFF);
}

struct Tables {
  std::array<uint32_t, 256> to_code_point{};
  std::array<int16_t, kAlphabetEnd> to_byte{};

  constexpr Tables() {
    for (int16_t& byte : to_byte) byte = -1;
    uint32_t next = 0x100;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const uint32_t code_point = StandsForItself(byte) ? byte : next++;
      to_code_point[byte] = code_point;
      to_byte[code_point] = static_cast<int16_t>(byte);
    }
  }
};

constexpr Tables kTables;

}  // namespace

uint32_t ByteToCodePoint(uint8_t byte) { return kTables.to_code_point[byte]; }

std::optional<std::string> PieceToBytes(std::string_view piece) {
  std::string bytes;
  bytes.reserve(piece.size());
  for (size_t pos = 0; pos < piece.size();) {
    const Utf8Scalar scalar = DecodeUtf8(piece, pos);
    if (!scalar.valid || scalar.code_point >= kAlphabetEnd) return std::nullopt;
    const int16_t byte = kTables.to_byte[scalar.code_point];
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    pos += scalar.length_bytes;
  }
  return bytes;
}

}  // namespace hyserve::tokenizer
