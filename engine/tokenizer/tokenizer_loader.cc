#include "engine/tokenizer/tokenizer_loader.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "base/strings.h"
#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/strict_json.h"

namespace hyserve::tokenizer {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxAddedTokenBytes = 512;

std::string KeyPath(std::string_view base, std::string_view key) {
  return StrCat(base, "[", QuoteForMessage(key), "]");
}

std::string IndexPath(std::string_view base, size_t index) {
  return StrCat(base, "[", index, "]");
}

// Reads model.vocab into id -> text. Holes stay empty strings here and are checked once the
// added tokens are in.
absl::Status LoadVocab(JsonFields* model, TokenizerParts* parts) {
  const Json* vocab = model->RequiredObject("vocab");
  if (vocab == nullptr) return model->status();
  if (vocab->size() > static_cast<size_t>(kMaxVocabSize)) {
    return JsonError("model.vocab", StrCat("has ", vocab->size(), " entries, more than ",
                                           kMaxVocabSize));
  }
  std::vector<std::pair<int64_t, const std::string*>> entries;
  entries.reserve(vocab->size());
  for (const auto& item : vocab->get_ref<const Json::object_t&>()) {
    const std::string path = KeyPath("model.vocab", item.first);
    if (item.first.empty()) return JsonError(path, "an empty piece");
    if (!item.second.is_number_integer()) return JsonError(path, "the id must be an integer");
    if (item.second < 0 || item.second >= kMaxVocabSize) {
      return JsonError(path, StrCat("id ", item.second.dump(), " is outside [0, ",
                                    kMaxVocabSize, ")"));
    }
    entries.emplace_back(item.second.get<int64_t>(), &item.first);
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.first, *a.second) < std::tie(b.first, *b.second);
  });
  for (size_t i = 1; i < entries.size(); ++i) {
    if (entries[i].first == entries[i - 1].first) {
      return JsonError(KeyPath("model.vocab", *entries[i].second),
                       StrCat("id ", entries[i].first, " is also that of ",
                              QuoteForMessage(*entries[i - 1].second)));
    }
  }
  // Added tokens may fill holes, at most kMaxVocabSize of them: the bound on ids bounds this.
  parts->token_text.resize(entries.empty() ? 0 : static_cast<size_t>(entries.back().first) + 1);
  for (const auto& [id, text] : entries) parts->token_text[id] = *text;
  return absl::OkStatus();
}

using IdMap = absl::flat_hash_map<std::string_view, int32_t>;

IdMap MapText(const std::vector<std::string>& token_text) {
  IdMap ids;
  ids.reserve(token_text.size());
  for (size_t id = 0; id < token_text.size(); ++id) {
    if (!token_text[id].empty()) ids.emplace(token_text[id], static_cast<int32_t>(id));
  }
  return ids;
}

absl::Status ReadMergePair(const Json& merge, const std::string& path, std::string_view* left,
                           std::string_view* right) {
  if (merge.is_string()) {
    const std::string& text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      return JsonError(path, StrCat("must be two pieces with one space between them; got ",
                                    QuoteForMessage(text)));
    }
    *left = std::string_view(text).substr(0, space);
    *right = std::string_view(text).substr(space + 1);
    return absl::OkStatus();
  }
  if (!merge.is_array() || merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) {
    return JsonError(path, "must be \"left right\" or [\"left\", \"right\"]");
  }
  *left = merge[0].get_ref<const std::string&>();
  *right = merge[1].get_ref<const std::string&>();
  return absl::OkStatus();
}

absl::Status LoadMerges(JsonFields* model, const IdMap& ids, TokenizerParts* parts) {
  const Json* merges = model->RequiredArray("merges");
  if (merges == nullptr) return model->status();
  size_t max_piece_bytes = 0;
  for (const std::string& text : parts->token_text) {
    max_piece_bytes = std::max(max_piece_bytes, text.size());
  }
  absl::flat_hash_map<uint64_t, size_t> seen;
  seen.reserve(merges->size());
  std::string joined;
  for (size_t i = 0; i < merges->size(); ++i) {
    const std::string path = IndexPath("model.merges", i);
    std::string_view pieces[2];
    absl::Status status = ReadMergePair((*merges)[i], path, &pieces[0], &pieces[1]);
    if (!status.ok()) return status;
    int32_t pair[2];
    for (int side = 0; side < 2; ++side) {
      const auto it = ids.find(pieces[side]);
      if (it == ids.end()) {
        return JsonError(path, StrCat("piece ", QuoteForMessage(pieces[side]),
                                      " is not in model.vocab"));
      }
      pair[side] = it->second;
      if (parts->bpe.pieces[pair[side]].empty()) {
        return JsonError(path, StrCat("piece ", QuoteForMessage(pieces[side]),
                                      " is not written in the byte alphabet"));
      }
    }
    joined.assign(pieces[0]);
    joined.append(pieces[1]);
    if (joined.size() > max_piece_bytes) {
      return JsonError(path, StrCat("the merged token has ", joined.size(),
                                    " bytes, more than any key of model.vocab (",
                                    max_piece_bytes, ")"));
    }
    const auto result = ids.find(joined);
    if (result == ids.end()) {
      return JsonError(path, StrCat("the merged token ", QuoteForMessage(joined),
                                    " is not in model.vocab"));
    }
    const uint64_t key = (static_cast<uint64_t>(pair[0]) << 32) | static_cast<uint32_t>(pair[1]);
    const auto [first, inserted] = seen.emplace(key, i);
    if (!inserted) {
      return JsonError(path, StrCat("the same pair as model.merges[", first->second, "]"));
    }
    parts->bpe.merges.push_back({pair[0], pair[1], result->second});
  }
  return absl::OkStatus();
}

// The byte form of every piece, and the id of every single byte.
absl::Status LoadAlphabet(TokenizerParts* parts) {
  parts->bpe.byte_ids.fill(-1);
  parts->bpe.pieces.resize(parts->token_text.size());
  for (size_t id = 0; id < parts->token_text.size(); ++id) {
    std::optional<std::string> bytes = PieceToBytes(parts->token_text[id]);
    if (!bytes.has_value() || bytes->empty()) continue;
    if (bytes->size() == 1) {
      parts->bpe.byte_ids[static_cast<uint8_t>((*bytes)[0])] = static_cast<int32_t>(id);
    }
    parts->bpe.pieces[id] = *std::move(bytes);
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (parts->bpe.byte_ids[byte] >= 0) continue;
    std::string piece;
    AppendUtf8(ByteToCodePoint(static_cast<uint8_t>(byte)), &piece);
    return JsonError("model.vocab", StrCat("the byte alphabet is not complete: byte ", byte,
                                           " (", QuoteForMessage(piece), ") is missing"));
  }
  return absl::OkStatus();
}

absl::Status LoadModel(const JsonFields& document, TokenizerParts* parts) {
  const Json* json = document.Find("model");
  if (json == nullptr) return JsonError("model", "is missing");
  JsonFields model(*json, "model");
  if (!model.status().ok()) return model.status();
  // Files of the first generation have no type; only BPE has both a vocab and merges.
  const std::string type = model.Find("type") == nullptr ? "BPE" : model.RequiredString("type");
  if (model.status().ok() && type != "BPE") {
    return JsonError("model.type", StrCat("only BPE is supported; got ",
                                          QuoteForMessage(type)));
  }
  // With a complete byte alphabet no byte is unknown, so unk_token and fuse_unk have no effect.
  model.AllowOnly({"type", "dropout", "unk_token", "continuing_subword_prefix",
                   "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges", "vocab",
                   "merges"});
  model.RequireTrivial("dropout");
  model.RequireTrivial("continuing_subword_prefix");
  model.RequireTrivial("end_of_word_suffix");
  model.RequireTrivial("byte_fallback");
  parts->bpe.ignore_merges = model.BoolOr("ignore_merges", false);
  if (!model.status().ok()) return model.status();
  if (absl::Status status = LoadVocab(&model, parts); !status.ok()) return status;
  if (absl::Status status = LoadAlphabet(parts); !status.ok()) return status;
  const IdMap ids = MapText(parts->token_text);
  return LoadMerges(&model, ids, parts);
}

absl::Status LoadAddedToken(const Json& json, const std::string& path, AddedToken* token) {
  JsonFields fields(json, path);
  fields.AllowOnly(
      {"id", "content", "special", "single_word", "lstrip", "rstrip", "normalized"});
  token->id = static_cast<int32_t>(fields.RequiredInt("id", 0, kMaxVocabSize - 1));
  token->content = fields.RequiredString("content");
  token->special = fields.RequiredBool("special");
  token->single_word = fields.RequiredBool("single_word");
  token->lstrip = fields.RequiredBool("lstrip");
  token->rstrip = fields.RequiredBool("rstrip");
  token->normalized = fields.RequiredBool("normalized");
  if (!fields.status().ok()) return fields.status();
  if (token->content.empty()) fields.Fail("content", "is empty");
  if (token->content.size() > kMaxAddedTokenBytes) {
    fields.Fail("content", StrCat("has ", token->content.size(), " bytes, more than ",
                                  kMaxAddedTokenBytes));
  }
  return fields.status();
}

absl::Status LoadAddedTokens(const JsonFields& document, TokenizerParts* parts) {
  const Json* list = document.Find("added_tokens");
  if (list == nullptr) return absl::OkStatus();
  if (!list->is_array()) return JsonError("added_tokens", "must be an array");
  if (list->size() > static_cast<size_t>(kMaxVocabSize)) {
    return JsonError("added_tokens", "has too many entries");
  }
  absl::flat_hash_map<int32_t, size_t> by_id;
  absl::flat_hash_map<std::string, size_t> by_content;
  const IdMap vocab = MapText(parts->token_text);
  std::vector<std::pair<int32_t, std::string>> placed;
  int32_t max_id = static_cast<int32_t>(parts->token_text.size()) - 1;
  for (size_t i = 0; i < list->size(); ++i) {
    const std::string path = IndexPath("added_tokens", i);
    AddedToken token;
    if (absl::Status status = LoadAddedToken((*list)[i], path, &token); !status.ok()) {
      return status;
    }
    const auto known = vocab.find(token.content);
    if (known != vocab.end() && known->second != token.id) {
      return JsonError(path, StrCat("content ", QuoteForMessage(token.content), " has id ",
                                    token.id, " here and ", known->second,
                                    " in model.vocab"));
    }
    const size_t id = static_cast<size_t>(token.id);
    if (known == vocab.end() && id < parts->token_text.size() && !parts->token_text[id].empty()) {
      return JsonError(path, StrCat("id ", token.id, " is that of ",
                                    QuoteForMessage(parts->token_text[id]),
                                    " in model.vocab"));
    }
    const auto [same_id, new_id] = by_id.emplace(token.id, i);
    if (!new_id) {
      return JsonError(path, StrCat("the same id as added_tokens[", same_id->second, "]"));
    }
    // Tokens are looked for in the text as given or in the normalized text; two that look the same
    // there cannot be told apart.
    const auto [same, new_content] = by_content.emplace(
        parts->normalize_nfc && token.normalized ? NormalizeNfc(token.content) : token.content, i);
    if (!new_content) {
      return JsonError(path, StrCat("the same content as added_tokens[", same->second, "]"));
    }
    max_id = std::max(max_id, token.id);
    placed.emplace_back(token.id, token.content);
    parts->added_tokens.push_back(std::move(token));
  }
  // `vocab` points into token_text and is not used below.
  parts->token_text.resize(static_cast<size_t>(max_id) + 1);
  for (auto& [id, content] : placed) parts->token_text[id] = std::move(content);
  return absl::OkStatus();
}

absl::Status CheckDense(TokenizerParts* parts) {
  for (size_t id = 0; id < parts->token_text.size(); ++id) {
    if (parts->token_text[id].empty()) {
      return JsonError("model.vocab", StrCat("ids are not dense: no token has id ", id,
                                             " of ", parts->token_text.size()));
    }
  }
  parts->bpe.pieces.resize(parts->token_text.size());
  parts->token_bytes.reserve(parts->token_text.size());
  for (const std::string& text : parts->token_text) {
    // A token outside the byte alphabet stands for its own bytes (Hugging Face's decoder).
    parts->token_bytes.push_back(PieceToBytes(text).value_or(text));
  }
  for (const AddedToken& token : parts->added_tokens) {
    if (!parts->normalize_nfc || !token.normalized) continue;
    const std::string text = NormalizeNfc(token.content);
    parts->token_bytes[token.id] = PieceToBytes(text).value_or(text);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerParts> ParseTokenizerParts(std::string_view text) {
  StrictJsonLimits limits;
  limits.max_bytes = kMaxTokenizerFileBytes;
  absl::StatusOr<Json> json = ParseStrictJson(text, limits);
  if (!json.ok()) return json.status();
  JsonFields document(*json, "");
  document.AllowOnly({"version", "truncation", "padding", "added_tokens", "normalizer",
                      "pre_tokenizer", "post_processor", "decoder", "model"});
  // Both would change what Encode returns; the caller decides about lengths.
  document.RequireTrivial("truncation");
  document.RequireTrivial("padding");
  if (!document.status().ok()) return document.status();
  TokenizerParts parts;
  for (const auto load : {LoadModel, LoadNormalizer, LoadAddedTokens}) {
    if (absl::Status status = load(document, &parts); !status.ok()) return status;
  }
  if (absl::Status status = CheckDense(&parts); !status.ok()) return status;
  for (const auto load : {LoadPreTokenizer, LoadPostProcessor}) {
    if (absl::Status status = load(document, &parts); !status.ok()) return status;
  }
  if (absl::Status status = CheckDecoder(document); !status.ok()) return status;
  return parts;
}

}  // namespace hyserve::tokenizer
