// The byte alphabet of byte-level BPE: every byte is written as one printable code point, so that
// a piece of a vocabulary is readable text. Printable Latin-1 bytes stand for themselves; the
// other 68 bytes, in increasing order, are U+0100, U+0101, ... (GPT-2, Radford et al. 2019).
//
// Pure and thread-safe.
#ifndef HYSERVE_ENGINE_TOKENIZER_BYTE_ALPHABET_H_
#define HYSERVE_ENGINE_TOKENIZER_BYTE_ALPHABET_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace hyserve::tokenizer {

// The code point that stands for `byte`.
uint32_t ByteToCodePoint(uint8_t byte);

// The bytes that `piece` (UTF-8) stands for, or nullopt if one of its code points is not in the
// alphabet.
std::optional<std::string> PieceToBytes(std::string_view piece);

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_BYTE_ALPHABET_H_
