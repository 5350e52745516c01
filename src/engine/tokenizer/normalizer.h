// Unicode normalization form C (Unicode Standard Annex 15), in O(n log n) for any input.
#ifndef HYSERVE_ENGINE_TOKENIZER_NORMALIZER_H_
#define HYSERVE_ENGINE_TOKENIZER_NORMALIZER_H_

#include <string>
#include <string_view>

namespace hyserve::tokenizer {

// The NFC form of `text`. REQUIRES: `text` is valid UTF-8. Pure and thread-safe.
// Unicode version: that of utf8proc (15.0 in Debian 12).
std::string NormalizeNfc(std::string_view text);

// False only if NormalizeNfc(text) is certainly `text` itself (no scalar at or above U+0300).
bool MayChangeUnderNfc(std::string_view text);

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_NORMALIZER_H_
