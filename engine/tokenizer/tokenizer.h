// Text to token ids and back: byte-level BPE as Hugging Face writes it to tokenizer.json.
//
// Supported (anything else is refused at load, with its JSON path):
//   model           BPE over a complete byte alphabet; merges as "a b" or ["a", "b"];
//                   ignore_merges. No byte_fallback, dropout, prefixes or suffixes.
//   normalizer      null, NFC, Sequence of NFC
//   pre_tokenizer   ByteLevel, or a Sequence of Split (Regex or String; Isolated or Removed) and
//                   Digits that ends with ByteLevel
//   post_processor  null, ByteLevel, TemplateProcessing, Sequence of those
//   decoder         ByteLevel
//   added_tokens    all flags
// Ids are equal to those of Hugging Face `tokenizers` (tests/engine/tokenizer/parity_test.cc) for
// every code point that Unicode 14 assigns; newer ones may be split elsewhere by newer tables.
#ifndef HYSERVE_ENGINE_TOKENIZER_TOKENIZER_H_
#define HYSERVE_ENGINE_TOKENIZER_TOKENIZER_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/bpe_model.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/utf8.h"

namespace hyserve::tokenizer {

inline constexpr size_t kMaxTokenizerFileBytes = size_t{64} << 20;
inline constexpr int32_t kMaxVocabSize = int32_t{1} << 21;

struct EncodeOptions {
  // Adds what the post-processor adds (begin-of-text and the like).
  bool add_special_tokens = false;
  // False: special tokens written in the text are ordinary text.
  bool parse_special = true;
  // Encoding stops as soon as there are max_tokens + 1 ids: a longer result means "too long",
  // whatever its length.
  size_t max_tokens = std::numeric_limits<size_t>::max();
  // Byte ranges of the text, sorted and disjoint, in which special tokens are ordinary text even
  // with parse_special: the parts of a rendered chat that came from the client. Not owned; read
  // during the call only.
  std::span<const ByteRange> literal_ranges = {};
};

// The parts that the loader builds; ids and indices are checked there.
struct TokenizerParts {
  BpeTables bpe;
  std::vector<std::string> token_bytes;    // [vocab_size]
  std::vector<std::string> token_text;     // [vocab_size] as written in the file
  std::vector<AddedToken> added_tokens;    // in file order
  bool normalize_nfc = false;
  std::vector<SplitStep> split_steps;
  std::vector<int32_t> template_prefix;    // ids before and after the text with add_special_tokens
  std::vector<int32_t> template_suffix;
};

// Immutable after loading and thread-safe.
class Tokenizer {
 public:
  // Reads a tokenizer.json. Status as ReadBoundedFile's, or InvalidArgument with one line:
  // "<path>: <JSON path>: <reason>".
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);
  // The same from memory; `name` stands for the path in messages.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(std::string_view json,
                                                          std::string_view name);

  explicit Tokenizer(TokenizerParts parts);
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Ids of `text`. Any bytes are accepted: invalid UTF-8 is replaced first (see utf8.h).
  // O(n log n) in the length of the text.
  std::vector<int32_t> Encode(std::string_view text, const EncodeOptions& options = {}) const;

  // The text of `ids`: the tokens' bytes, joined, with invalid UTF-8 replaced. Ids outside the
  // vocabulary are skipped, as are special tokens on request. Always valid UTF-8.
  std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  // Raw bytes of one token, not always valid UTF-8 by themselves; empty for an id outside the
  // vocabulary. The view lives as long as the tokenizer.
  std::string_view TokenBytes(int32_t id) const;
  bool IsSpecial(int32_t id) const;
  int32_t vocab_size() const { return static_cast<int32_t>(token_bytes_.size()); }

  // Id of a token as it is written in the file ("<|im_end|>", "\u0120the"), or nullopt.
  std::optional<int32_t> TokenToId(std::string_view token) const;
  // Every token found in text before splitting, in the file's order.
  const std::vector<AddedToken>& added_tokens() const { return added_tokens_; }

 private:
  struct EncodeState;
  bool EncodeSegment(std::string_view segment, const AddedTokenFilter& filter,
                     EncodeState* state) const;
  bool EncodePlain(std::string_view text, EncodeState* state) const;

  BpeModel bpe_;
  PreTokenizer pre_tokenizer_;
  bool normalize_nfc_;
  std::vector<std::string> token_bytes_;
  std::vector<std::string> token_text_;
  std::vector<bool> special_;
  std::vector<AddedToken> added_tokens_;
  AddedTokenMatcher raw_matcher_;         // tokens looked for in the text as given
  AddedTokenMatcher normalized_matcher_;  // tokens looked for in the normalized text
  std::vector<int32_t> template_prefix_;
  std::vector<int32_t> template_suffix_;
  absl::flat_hash_map<std::string_view, int32_t> ids_by_text_;
};

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_TOKENIZER_H_
