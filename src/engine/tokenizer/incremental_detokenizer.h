// Text of a growing list of token ids, piece by piece.
//
// A token may end inside a UTF-8 sequence. Such an end is held back until later tokens complete
// it or show that they will not, so every delta is valid UTF-8 and the deltas, joined, are exactly
// Tokenizer::Decode() of all ids, however the ids were grouped.
#ifndef HYSERVE_ENGINE_TOKENIZER_INCREMENTAL_DETOKENIZER_H_
#define HYSERVE_ENGINE_TOKENIZER_INCREMENTAL_DETOKENIZER_H_

#include <cstdint>
#include <string>

#include "engine/tokenizer/tokenizer.h"

namespace hyserve::tokenizer {

// State of one stream: at most three bytes. Not thread-safe; `tokenizer` must outlive it.
// Pure: the same ids always give the same deltas, so a stream can be replayed.
class IncrementalDetokenizer {
 public:
  IncrementalDetokenizer(const Tokenizer* tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

  // The text that is certain now and was not before; may be empty. Ids outside the vocabulary add
  // nothing.
  std::string Push(int32_t id);

  // The end of the stream: what was held back, as U+FFFD. The object is as new afterwards.
  std::string Flush();

  size_t held_bytes() const { return held_.size(); }

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::string held_;
};

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_INCREMENTAL_DETOKENIZER_H_
