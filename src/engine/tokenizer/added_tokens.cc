#include "engine/tokenizer/added_tokens.h"

#include <algorithm>

#include "engine/tokenizer/word_char.h"

namespace hyserve::tokenizer {
namespace {

// True if one of the sorted, disjoint ranges overlaps [begin, end).
bool Touches(std::span<const ByteRange> ranges, size_t begin, size_t end) {
  const auto it = std::lower_bound(
      ranges.begin(), ranges.end(), begin,
      [](const ByteRange& range, size_t value) { return range.end_bytes <= value; });
  return it != ranges.end() && it->begin_bytes < end;
}

bool EndsWithWord(std::string_view text, size_t end) {
  return end > 0 && IsWordCharacter(DecodeUtf8(text, PreviousScalarStart(text, end)).code_point);
}

bool StartsWithWord(std::string_view text, size_t begin) {
  return begin < text.size() && IsWordCharacter(DecodeUtf8(text, begin).code_point);
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(const std::vector<AddedToken>& tokens,
                                     const std::vector<std::string>& patterns)
    : tokens_(tokens), node_token_(1, -1) {
  for (size_t i = 0; i < patterns.size(); ++i) {
    int32_t node = 0;
    for (const char c : patterns[i]) {
      const uint64_t key = (static_cast<uint64_t>(node) << 8) | static_cast<uint8_t>(c);
      const auto [it, inserted] = edges_.emplace(key, static_cast<int32_t>(node_token_.size()));
      if (inserted) node_token_.push_back(-1);
      node = it->second;
    }
    node_token_[node] = static_cast<int32_t>(i);
    first_byte_[static_cast<uint8_t>(patterns[i].front())] = true;
  }
}

AddedTokenMatcher::Match AddedTokenMatcher::LongestAt(std::string_view text, size_t pos) const {
  Match best;
  int32_t node = 0;
  for (size_t i = pos; i < text.size(); ++i) {
    const auto it =
        edges_.find((static_cast<uint64_t>(node) << 8) | static_cast<uint8_t>(text[i]));
    if (it == edges_.end()) break;
    node = it->second;
    if (node_token_[node] >= 0) best = {node_token_[node], i + 1};
  }
  return best;
}

bool AddedTokenMatcher::ForEachSpan(
    std::string_view text, const AddedTokenFilter& filter,
    absl::FunctionRef<bool(const AddedTokenSpan&)> on_span) const {
  size_t done = 0;
  for (size_t pos = tokens_.empty() ? text.size() : 0; pos < text.size();) {
    if (!first_byte_[static_cast<uint8_t>(text[pos])]) {
      ++pos;
      continue;
    }
    const Match match = LongestAt(text, pos);
    if (match.token < 0) {
      ++pos;
      continue;
    }
    size_t begin = pos;
    size_t end = match.end;
    pos = match.end;  // a match that is rejected below hides what overlaps it
    const AddedToken& token = tokens_[match.token];
    if (token.special &&
        (!filter.parse_special || Touches(filter.literal_ranges, begin, end))) {
      continue;
    }
    if (token.single_word && (EndsWithWord(text, begin) || StartsWithWord(text, end))) continue;
    if (token.lstrip) {
      while (begin > done) {
        const size_t previous = PreviousScalarStart(text, begin);
        if (!IsWhiteSpace(DecodeUtf8(text, previous).code_point)) break;
        begin = std::max(previous, done);
      }
    }
    if (token.rstrip) {
      while (end < text.size()) {
        const Utf8Scalar scalar = DecodeUtf8(text, end);
        if (!IsWhiteSpace(scalar.code_point)) break;
        end += scalar.length_bytes;
      }
    }
    if (done < begin && !on_span({-1, {done, begin}})) return false;
    if (!on_span({token.id, {begin, end}})) return false;
    done = end;
  }
  return done == text.size() || on_span({-1, {done, text.size()}});
}

}  // namespace hyserve::tokenizer
