// Splitting of text into the words that BPE works on: a fixed sequence of regular-expression
// splits, as a stream, so that an encoder that has enough tokens stops early.
#ifndef HYSERVE_ENGINE_TOKENIZER_PRE_TOKENIZER_H_
#define HYSERVE_ENGINE_TOKENIZER_PRE_TOKENIZER_H_

#include <memory>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/tokenizer/regex.h"

namespace hyserve::tokenizer {

// GPT-2's splitting pattern, the one a ByteLevel pre-tokenizer uses by itself.
extern const std::string_view kGpt2Pattern;

struct SplitStep {
  // Null: this step splits nothing and puts a space before each piece that does not start with
  // one (ByteLevel's add_prefix_space).
  std::unique_ptr<const Regex> regex;
  bool drop_matches = false;  // behaviour "Removed"
  bool drop_gaps = false;     // behaviour "Removed" with invert
};

// Immutable and thread-safe.
class PreTokenizer {
 public:
  explicit PreTokenizer(std::vector<SplitStep> steps) : steps_(std::move(steps)) {}

  // Calls `on_word` with each word in order until it returns false; returns false if it did.
  // Where an expression gives up (see Regex::Find), the rest of the piece is one word.
  // A word is a view into `text`, or into storage that lives until `on_word` returns.
  // REQUIRES: `text` is valid UTF-8.
  bool ForEachWord(std::string_view text, Regex::Scratch* scratch,
                   absl::FunctionRef<bool(std::string_view word)> on_word) const;

 private:
  bool RunStep(size_t step, std::string_view piece, Regex::Scratch* scratch,
               absl::FunctionRef<bool(std::string_view)> on_word) const;

  std::vector<SplitStep> steps_;
};

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_PRE_TOKENIZER_H_
