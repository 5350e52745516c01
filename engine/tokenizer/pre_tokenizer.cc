#include "engine/tokenizer/pre_tokenizer.h"

#include <optional>
#include <string>

#include "base/strings.h"

namespace hyserve::tokenizer {

const std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

bool PreTokenizer::ForEachWord(std::string_view text, Regex::Scratch* scratch,
                               absl::FunctionRef<bool(std::string_view)> on_word) const {
  return RunStep(0, text, scratch, on_word);
}

bool PreTokenizer::RunStep(size_t step, std::string_view piece, Regex::Scratch* scratch,
                           absl::FunctionRef<bool(std::string_view)> on_word) const {
  if (piece.empty()) return true;
  if (step == steps_.size()) return on_word(piece);
  const SplitStep& split = steps_[step];
  if (split.regex == nullptr) {
    if (piece.front() == ' ') return RunStep(step + 1, piece, scratch, on_word);
    return RunStep(step + 1, StrCat(" ", piece), scratch, on_word);
  }
  size_t done = 0;
  while (done < piece.size()) {
    const ByteRange match = split.regex->Find(piece, done, scratch)
                                .value_or(ByteRange{piece.size(), piece.size()});
    if (match.begin_bytes > done && !split.drop_gaps) {
      const std::string_view gap = piece.substr(done, match.begin_bytes - done);
      if (!RunStep(step + 1, gap, scratch, on_word)) return false;
    }
    if (match.end_bytes > match.begin_bytes && !split.drop_matches) {
      const std::string_view found =
          piece.substr(match.begin_bytes, match.end_bytes - match.begin_bytes);
      if (!RunStep(step + 1, found, scratch, on_word)) return false;
    }
    done = match.end_bytes;
  }
  return true;
}

}  // namespace hyserve::tokenizer
