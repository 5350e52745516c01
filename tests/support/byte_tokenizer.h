// A tokenizer whose ids are the bytes of the text, for tests of text at the router: ids 0 to 255
// are bytes, then three special tokens.
#ifndef HYSERVE_TESTS_SUPPORT_BYTE_TOKENIZER_H_
#define HYSERVE_TESTS_SUPPORT_BYTE_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "services/router/text.h"

namespace hyserve::test {

inline constexpr int32_t kEndTokenId = 256;    // "<|end|>"
inline constexpr int32_t kUserTokenId = 257;   // "<|user|>"
inline constexpr int32_t kReplyTokenId = 258;  // "<|reply|>"
inline constexpr int32_t kByteVocabSize = 259;

// tokenizer.json of it.
std::string ByteTokenizerJson();
// With a chat template: "<|user|>" content "<|end|>" per message, then "<|reply|>".
std::unique_ptr<router::TextModel> MakeByteTextModel();

}  // namespace hyserve::test

#endif  // HYSERVE_TESTS_SUPPORT_BYTE_TOKENIZER_H_
