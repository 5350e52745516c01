// The parts of tokenizer.json around the model: normalizer, pre-tokenizer, post-processor, decoder.
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "base/strings.h"
#include "engine/tokenizer/strict_json.h"
#include "engine/tokenizer/tokenizer_loader.h"

namespace hyserve::tokenizer {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxSequence = 16;

absl::Status Unsupported(const JsonFields& fields, std::string_view type,
                         std::string_view supported) {
  return JsonError(fields.PathOf("type"), StrCat("only ", supported, " is supported; got ",
                                                 QuoteForMessage(type)));
}

// The elements of a Sequence's list, as (value, path).
absl::StatusOr<std::vector<std::pair<const Json*, std::string>>> SequenceOf(
    JsonFields* fields, std::string_view key) {
  const Json* list = fields->RequiredArray(key);
  if (list == nullptr) return fields->status();
  if (list->size() > kMaxSequence) {
    return JsonError(fields->PathOf(key),
                     StrCat("has ", list->size(), " steps, more than ", kMaxSequence));
  }
  std::vector<std::pair<const Json*, std::string>> elements;
  for (size_t i = 0; i < list->size(); ++i) {
    elements.emplace_back(&(*list)[i], StrCat(fields->PathOf(key), "[", i, "]"));
  }
  return elements;
}

absl::Status LoadSplit(JsonFields* fields, TokenizerParts* parts) {
  fields->AllowOnly({"type", "pattern", "behavior", "invert"});
  const std::string behavior = fields->RequiredString("behavior");
  const bool invert = fields->BoolOr("invert", false);
  const Json* pattern_json = fields->RequiredObject("pattern");
  if (!fields->status().ok()) return fields->status();
  if (behavior != "Isolated" && behavior != "Removed") {
    return JsonError(fields->PathOf("behavior"),
                     StrCat("only Isolated and Removed are supported; got ",
                            QuoteForMessage(behavior)));
  }
  JsonFields pattern(*pattern_json, fields->PathOf("pattern"));
  pattern.AllowOnly({"Regex", "String"});
  const bool is_regex = pattern.Find("Regex") != nullptr;
  const std::string text = pattern.RequiredString(is_regex ? "Regex" : "String");
  if (!pattern.status().ok()) return pattern.status();
  if (pattern_json->size() != 1) {
    return JsonError(pattern.path(), "must have either Regex or String");
  }
  auto regex = is_regex ? Regex::Compile(text) : Regex::CompileLiteral(text);
  if (!regex.ok()) {
    return JsonError(pattern.PathOf(is_regex ? "Regex" : "String"),
                     ToStd(regex.status().message()));
  }
  SplitStep step;
  step.regex = *std::move(regex);
  step.drop_matches = behavior == "Removed" && !invert;
  step.drop_gaps = behavior == "Removed" && invert;
  parts->split_steps.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status AppendPattern(const std::string& path, std::string_view pattern,
                           TokenizerParts* parts) {
  auto regex = Regex::Compile(pattern);
  if (!regex.ok()) return JsonError(path, ToStd(regex.status().message()));
  SplitStep step;
  step.regex = *std::move(regex);
  parts->split_steps.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status LoadByteLevel(JsonFields* fields, TokenizerParts* parts) {
  fields->AllowOnly({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  const bool add_prefix_space = fields->RequiredBool("add_prefix_space");
  const bool use_regex = fields->BoolOr("use_regex", true);
  if (!fields->status().ok()) return fields->status();
  if (add_prefix_space) parts->split_steps.emplace_back();
  return use_regex ? AppendPattern(fields->path(), kGpt2Pattern, parts) : absl::OkStatus();
}

// One step; sets `is_byte_level` if it is the ByteLevel one.
absl::Status LoadPreTokenizerStep(const Json& json, const std::string& path, bool* is_byte_level,
                                  TokenizerParts* parts) {
  JsonFields fields(json, path);
  const std::string type = fields.RequiredString("type");
  if (!fields.status().ok()) return fields.status();
  *is_byte_level = type == "ByteLevel";
  if (type == "ByteLevel") return LoadByteLevel(&fields, parts);
  if (type == "Split") return LoadSplit(&fields, parts);
  if (type == "Digits") {
    fields.AllowOnly({"type", "individual_digits"});
    const bool individual = fields.RequiredBool("individual_digits");
    if (!fields.status().ok()) return fields.status();
    return AppendPattern(path, individual ? "\\p{N}" : "\\p{N}+", parts);
  }
  return Unsupported(fields, type, "ByteLevel, Split, Digits or a Sequence of them");
}

absl::Status LoadTemplate(JsonFields* fields, TokenizerParts* parts) {
  fields->AllowOnly({"type", "single", "pair", "special_tokens"});
  const Json* single = fields->RequiredArray("single");
  const Json* tokens = fields->RequiredObject("special_tokens");
  if (!fields->status().ok()) return fields->status();
  bool seen_text = false;
  for (size_t i = 0; i < single->size(); ++i) {
    const std::string path = StrCat(fields->PathOf("single"), "[", i, "]");
    JsonFields piece((*single)[i], path);
    piece.AllowOnly({"SpecialToken", "Sequence"});
    if (!piece.status().ok()) return piece.status();
    if (const Json* sequence = piece.Find("Sequence"); sequence != nullptr) {
      JsonFields inner(*sequence, piece.PathOf("Sequence"));
      const std::string id = inner.RequiredString("id");
      if (!inner.status().ok()) return inner.status();
      if (id != "A" || seen_text) return JsonError(path, "must hold sequence A exactly once");
      seen_text = true;
      continue;
    }
    const Json* special = piece.RequiredObject("SpecialToken");
    if (special == nullptr) return piece.status();
    JsonFields inner(*special, piece.PathOf("SpecialToken"));
    const std::string name = inner.RequiredString("id");
    if (!inner.status().ok()) return inner.status();
    const auto entry = tokens->find(name);
    const std::string entry_path =
        StrCat(fields->PathOf("special_tokens"), "[", QuoteForMessage(name), "]");
    if (entry == tokens->end()) return JsonError(entry_path, "is missing");
    JsonFields token(*entry, entry_path);
    const Json* ids = token.RequiredArray("ids");
    if (ids == nullptr) return token.status();
    std::vector<int32_t>& target = seen_text ? parts->template_suffix : parts->template_prefix;
    for (const Json& id : *ids) {
      if (!id.is_number_integer() || id < 0 || id >= parts->token_text.size()) {
        return JsonError(token.PathOf("ids"),
                         StrCat("id ", QuoteForMessage(id.dump()),
                                " is not in the vocabulary of ",
                                parts->token_text.size(), " tokens"));
      }
      target.push_back(id.get<int32_t>());
      if (target.size() > 64) return JsonError(fields->PathOf("single"), "adds too many tokens");
    }
  }
  if (!seen_text) return JsonError(fields->PathOf("single"), "must hold sequence A exactly once");
  return absl::OkStatus();
}

absl::Status LoadPostProcessorStep(const Json& json, const std::string& path, bool* is_template,
                                   TokenizerParts* parts) {
  JsonFields fields(json, path);
  const std::string type = fields.RequiredString("type");
  if (!fields.status().ok()) return fields.status();
  if (type == "ByteLevel") return absl::OkStatus();  // moves offsets only
  if (type != "TemplateProcessing") {
    return Unsupported(fields, type, "ByteLevel, TemplateProcessing or a Sequence of them");
  }
  if (*is_template) return JsonError(path, "a second TemplateProcessing");
  *is_template = true;
  return LoadTemplate(&fields, parts);
}

}  // namespace

absl::Status LoadNormalizer(const JsonFields& document, TokenizerParts* parts) {
  const Json* json = document.Find("normalizer");
  if (json == nullptr) return absl::OkStatus();
  JsonFields fields(*json, "normalizer");
  const std::string type = fields.RequiredString("type");
  if (!fields.status().ok()) return fields.status();
  if (type == "NFC") {
    parts->normalize_nfc = true;
    return absl::OkStatus();
  }
  if (type != "Sequence") return Unsupported(fields, type, "NFC");
  auto steps = SequenceOf(&fields, "normalizers");
  if (!steps.ok()) return steps.status();
  for (const auto& [step_json, path] : *steps) {
    JsonFields step(*step_json, path);
    const std::string step_type = step.RequiredString("type");
    if (!step.status().ok()) return step.status();
    if (step_type != "NFC") return Unsupported(step, step_type, "NFC");
    parts->normalize_nfc = true;
  }
  return absl::OkStatus();
}

absl::Status LoadPreTokenizer(const JsonFields& document, TokenizerParts* parts) {
  const Json* json = document.Find("pre_tokenizer");
  if (json == nullptr) return JsonError("pre_tokenizer", "is missing: ByteLevel is required");
  JsonFields fields(*json, "pre_tokenizer");
  const std::string type = fields.RequiredString("type");
  if (!fields.status().ok()) return fields.status();
  std::vector<std::pair<const Json*, std::string>> elements = {{json, "pre_tokenizer"}};
  if (type == "Sequence") {
    auto sequence = SequenceOf(&fields, "pretokenizers");
    if (!sequence.ok()) return sequence.status();
    elements = *std::move(sequence);
  }
  bool byte_level = false;
  for (const auto& [step, path] : elements) {
    if (byte_level) return JsonError(path, "ByteLevel must be the last step");
    absl::Status status = LoadPreTokenizerStep(*step, path, &byte_level, parts);
    if (!status.ok()) return status;
  }
  if (!byte_level) return JsonError("pre_tokenizer", "ByteLevel must be the last step");
  return absl::OkStatus();
}

absl::Status LoadPostProcessor(const JsonFields& document, TokenizerParts* parts) {
  const Json* json = document.Find("post_processor");
  if (json == nullptr) return absl::OkStatus();
  JsonFields fields(*json, "post_processor");
  const std::string type = fields.RequiredString("type");
  if (!fields.status().ok()) return fields.status();
  std::vector<std::pair<const Json*, std::string>> elements = {{json, "post_processor"}};
  if (type == "Sequence") {
    auto sequence = SequenceOf(&fields, "processors");
    if (!sequence.ok()) return sequence.status();
    elements = *std::move(sequence);
  }
  bool is_template = false;
  for (const auto& [step, path] : elements) {
    absl::Status status = LoadPostProcessorStep(*step, path, &is_template, parts);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckDecoder(const JsonFields& document) {
  const Json* json = document.Find("decoder");
  if (json == nullptr) return JsonError("decoder", "is missing: ByteLevel is required");
  JsonFields fields(*json, "decoder");
  const std::string type = fields.RequiredString("type");
  if (!fields.status().ok()) return fields.status();
  if (type != "ByteLevel") return Unsupported(fields, type, "ByteLevel");
  return absl::OkStatus();
}

}  // namespace hyserve::tokenizer
