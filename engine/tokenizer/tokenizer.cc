#include "engine/tokenizer/tokenizer.h"

#include <algorithm>
#include <utility>

#include "base/strings.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/strict_json.h"
#include "engine/tokenizer/tokenizer_loader.h"

namespace hyserve::tokenizer {
namespace {

AddedTokenMatcher MakeMatcher(const std::vector<AddedToken>& all, bool normalized, bool nfc) {
  std::vector<AddedToken> tokens;
  std::vector<std::string> patterns;
  for (const AddedToken& token : all) {
    if (token.normalized != normalized) continue;
    tokens.push_back(token);
    patterns.push_back(normalized && nfc ? NormalizeNfc(token.content) : token.content);
  }
  return AddedTokenMatcher(tokens, patterns);
}

// The parts of the sorted, disjoint ranges inside the window, as offsets from its begin.
std::vector<ByteRange> Inside(std::span<const ByteRange> ranges, const ByteRange& window) {
  std::vector<ByteRange> inside;
  auto it = std::lower_bound(
      ranges.begin(), ranges.end(), window.begin_bytes,
      [](const ByteRange& range, size_t value) { return range.end_bytes <= value; });
  for (; it != ranges.end() && it->begin_bytes < window.end_bytes; ++it) {
    const size_t begin = std::max(it->begin_bytes, window.begin_bytes);
    const size_t end = std::min(it->end_bytes, window.end_bytes);
    if (begin < end) inside.push_back({begin - window.begin_bytes, end - window.begin_bytes});
  }
  return inside;
}

}  // namespace

struct Tokenizer::EncodeState {
  std::vector<int32_t> ids;
  size_t limit = 0;  // stop at this many ids
  Regex::Scratch regex;
  BpeModel::Workspace bpe;

  bool Full() const { return ids.size() >= limit; }
};

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  absl::StatusOr<std::string> text = ReadBoundedFile(path, kMaxTokenizerFileBytes);
  if (!text.ok()) return text.status();
  return Parse(*text, path);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(std::string_view json,
                                                            std::string_view name) {
  absl::StatusOr<TokenizerParts> parts = ParseTokenizerParts(json);
  if (!parts.ok()) {
    return absl::Status(parts.status().code(),
                        StrCat(name, ": ", ToStd(parts.status().message())));
  }
  return std::make_unique<Tokenizer>(*std::move(parts));
}

Tokenizer::Tokenizer(TokenizerParts parts)
    : bpe_(std::move(parts.bpe)),
      pre_tokenizer_(std::move(parts.split_steps)),
      normalize_nfc_(parts.normalize_nfc),
      token_bytes_(std::move(parts.token_bytes)),
      token_text_(std::move(parts.token_text)),
      special_(token_bytes_.size(), false),
      added_tokens_(std::move(parts.added_tokens)),
      raw_matcher_(MakeMatcher(added_tokens_, /*normalized=*/false, normalize_nfc_)),
      normalized_matcher_(MakeMatcher(added_tokens_, /*normalized=*/true, normalize_nfc_)),
      template_prefix_(std::move(parts.template_prefix)),
      template_suffix_(std::move(parts.template_suffix)) {
  for (const AddedToken& token : added_tokens_) {
    if (token.special) special_[token.id] = true;
  }
  ids_by_text_.reserve(token_text_.size());
  for (size_t id = 0; id < token_text_.size(); ++id) {
    ids_by_text_.emplace(token_text_[id], static_cast<int32_t>(id));
  }
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, const EncodeOptions& options) const {
  EncodeState state;
  state.limit = options.max_tokens == std::numeric_limits<size_t>::max() ? options.max_tokens
                                                                         : options.max_tokens + 1;
  std::string valid_text;
  std::vector<ByteRange> ranges(options.literal_ranges.begin(), options.literal_ranges.end());
  if (!IsValidUtf8(text)) {
    AppendLossyUtf8(text, &valid_text, ranges);
    text = valid_text;
  }
  if (options.add_special_tokens) state.ids = template_prefix_;
  const AddedTokenFilter filter{options.parse_special, ranges};
  bool more = !state.Full();
  if (more) {
    more = raw_matcher_.ForEachSpan(text, filter, [&](const AddedTokenSpan& span) {
      if (span.id >= 0) {
        state.ids.push_back(span.id);
        return !state.Full();
      }
      const std::vector<ByteRange> inside = Inside(ranges, span.range);
      return EncodeSegment(span.range.Of(text), {options.parse_special, inside}, &state);
    });
  }
  if (more && options.add_special_tokens) {
    state.ids.insert(state.ids.end(), template_suffix_.begin(), template_suffix_.end());
  }
  if (state.ids.size() > state.limit) state.ids.resize(state.limit);
  return std::move(state.ids);
}

bool Tokenizer::EncodeSegment(std::string_view segment, const AddedTokenFilter& filter,
                              EncodeState* state) const {
  std::string normalized;
  AddedTokenFilter local = filter;
  if (normalize_nfc_ && MayChangeUnderNfc(segment)) {
    normalized = NormalizeNfc(segment);
    // Offsets into the text as given mean nothing here: a segment with literal text in it is
    // literal as a whole.
    if (normalized != segment && !filter.literal_ranges.empty()) {
      local = {/*parse_special=*/false, {}};
    }
    segment = normalized;
  }
  return normalized_matcher_.ForEachSpan(segment, local, [&](const AddedTokenSpan& span) {
    if (span.id < 0) return EncodePlain(span.range.Of(segment), state);
    state->ids.push_back(span.id);
    return !state->Full();
  });
}

bool Tokenizer::EncodePlain(std::string_view text, EncodeState* state) const {
  return pre_tokenizer_.ForEachWord(text, &state->regex, [this, state](std::string_view word) {
    bpe_.EncodeWord(word, &state->bpe, &state->ids);
    return !state->Full();
  });
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (skip_special_tokens && IsSpecial(id)) continue;
    bytes.append(TokenBytes(id));
  }
  if (IsValidUtf8(bytes)) return bytes;
  std::string text;
  AppendLossyUtf8(bytes, &text);
  return text;
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return token_bytes_[id];
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && special_[id];
}

std::optional<int32_t> Tokenizer::TokenToId(std::string_view token) const {
  const auto it = ids_by_text_.find(token);
  if (it == ids_by_text_.end()) return std::nullopt;
  return it->second;
}

}  // namespace hyserve::tokenizer
