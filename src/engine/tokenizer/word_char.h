// Word characters in the sense of Unicode Technical Standard 18, annex C, which is what a regular
// expression's \w means in Rust and so in Hugging Face's single_word tokens.
#ifndef HYSERVE_ENGINE_TOKENIZER_WORD_CHAR_H_
#define HYSERVE_ENGINE_TOKENIZER_WORD_CHAR_H_

#include <cstdint>

namespace hyserve::tokenizer {

// Letters, marks, decimal digits, letter numbers, connector punctuation, U+200C and U+200D.
// Pure and thread-safe. (Other_Alphabetic symbols, such as circled letters, are counted too.)
bool IsWordCharacter(uint32_t code_point);

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_WORD_CHAR_H_
