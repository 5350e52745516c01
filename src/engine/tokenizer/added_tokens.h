// Tokens that are found in the text before it is split: special tokens and tokens added to a
// trained vocabulary.
#ifndef HYSERVE_ENGINE_TOKENIZER_ADDED_TOKENS_H_
#define HYSERVE_ENGINE_TOKENIZER_ADDED_TOKENS_H_

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "engine/tokenizer/utf8.h"

namespace hyserve::tokenizer {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;      // control token: skipped by Decode on request
  bool single_word = false;  // only between non-word characters
  bool lstrip = false;       // swallows the white space before it
  bool rstrip = false;       // swallows the white space after it
  bool normalized = false;   // looked for in the normalized text, not in the text as given
};

// A stretch of text that is one added token (id >= 0) or ordinary text (id < 0).
struct AddedTokenSpan {
  int32_t id = -1;
  ByteRange range;
};

struct AddedTokenFilter {
  bool parse_special = true;  // false: special tokens are ordinary text
  // Special tokens that touch one of these ranges are ordinary text. Sorted and disjoint.
  std::span<const ByteRange> literal_ranges = {};
};

// Finds the tokens of one set, leftmost first, longest at one place. Immutable and thread-safe.
// Time: O(text * longest token) in the worst case, one table look-up per byte where no token
// begins.
class AddedTokenMatcher {
 public:
  // `patterns[i]` is what to look for (the content, normalized if the token is); not empty, no
  // two equal. The tokens are copied.
  AddedTokenMatcher(const std::vector<AddedToken>& tokens,
                    const std::vector<std::string>& patterns);

  // Splits `text` (valid UTF-8) into spans that cover it and calls `on_span` with each, in order,
  // until it returns false; returns false if it did. Where a token's rstrip swallows white space
  // that is itself a token, spans overlap as they do in Hugging Face.
  bool ForEachSpan(std::string_view text, const AddedTokenFilter& filter,
                   absl::FunctionRef<bool(const AddedTokenSpan&)> on_span) const;

 private:
  struct Match {
    int32_t token = -1;  // index into tokens_
    size_t end = 0;
  };
  Match LongestAt(std::string_view text, size_t pos) const;

  std::vector<AddedToken> tokens_;
  absl::flat_hash_map<uint64_t, int32_t> edges_;  // (node << 8 | byte) -> node; node 0 = root
  std::vector<int32_t> node_token_;               // token that ends at a node, or -1
  std::array<bool, 256> first_byte_{};
};

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_ADDED_TOKENS_H_
