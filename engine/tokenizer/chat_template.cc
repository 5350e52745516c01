#include "engine/tokenizer/chat_template.h"

#include <utility>

#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "engine/tokenizer/chat_template_eval.h"
#include "engine/tokenizer/chat_template_parser.h"
#include "engine/tokenizer/json_fields.h"
#include "engine/tokenizer/strict_json.h"

namespace hyserve::tokenizer {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxConfigBytes = size_t{4} << 20;

// A special token of the configuration: null, "text" or {"content": "text", ...}.
absl::StatusOr<std::string> TokenText(const JsonFields& config, std::string_view key) {
  const Json* value = config.Find(key);
  if (value == nullptr) return std::string();
  if (value->is_string()) return value->get<std::string>();
  JsonFields object(*value, config.PathOf(key));
  std::string text = object.RequiredString("content");
  if (!object.status().ok()) return object.status();
  return text;
}

absl::StatusOr<std::string> TemplateSource(const JsonFields& config) {
  const Json* value = config.Find("chat_template");
  if (value == nullptr) return absl::NotFoundError("chat_template: is missing");
  if (value->is_string()) return value->get<std::string>();
  if (!value->is_array()) return JsonError("chat_template", "must be a string or a list");
  for (size_t i = 0; i < value->size(); ++i) {
    JsonFields entry((*value)[i], StrCat("chat_template[", i, "]"));
    const std::string name = entry.RequiredString("name");
    std::string source = entry.RequiredString("template");
    if (!entry.status().ok()) return entry.status();
    if (name == "default") return source;
  }
  return JsonError("chat_template", "has no entry named \"default\"");
}

absl::Status Prefixed(std::string_view prefix, const absl::Status& status) {
  return absl::Status(status.code(), StrCat(prefix, ": ", ToStd(status.message())));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view source,
                                                                  std::string_view bos_token,
                                                                  std::string_view eos_token) {
  if (source.size() > kMaxChatTemplateBytes) {
    return absl::InvalidArgumentError(StrCat("chat_template: has ", source.size(),
                                             " bytes, more than ", kMaxChatTemplateBytes));
  }
  if (!IsValidUtf8(source) || !IsValidUtf8(bos_token) || !IsValidUtf8(eos_token)) {
    return absl::InvalidArgumentError("chat_template: not valid UTF-8");
  }
  absl::StatusOr<TemplateBody> body = ParseTemplate(source);
  if (!body.ok()) return Prefixed("chat_template", body.status());
  std::unique_ptr<ChatTemplate> chat_template(new ChatTemplate());
  chat_template->body_ = *std::move(body);
  chat_template->bos_token_ = MakeText(bos_token);
  chat_template->eos_token_ = MakeText(eos_token);
  return chat_template;
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::FromTokenizerConfig(
    std::string_view json, std::string_view name) {
  StrictJsonLimits limits;
  limits.max_bytes = kMaxConfigBytes;
  absl::StatusOr<Json> document = ParseStrictJson(json, limits);
  if (!document.ok()) return Prefixed(name, document.status());
  JsonFields config(*document, "");
  if (!config.status().ok()) return Prefixed(name, config.status());
  absl::StatusOr<std::string> source = TemplateSource(config);
  if (!source.ok()) return Prefixed(name, source.status());
  absl::StatusOr<std::string> bos = TokenText(config, "bos_token");
  if (!bos.ok()) return Prefixed(name, bos.status());
  absl::StatusOr<std::string> eos = TokenText(config, "eos_token");
  if (!eos.ok()) return Prefixed(name, eos.status());
  auto chat_template = Parse(*source, *bos, *eos);
  if (!chat_template.ok()) return Prefixed(name, chat_template.status());
  return chat_template;
}

absl::StatusOr<RenderedChat> ChatTemplate::RenderWithRanges(
    std::span<const ChatMessage> messages, bool add_generation_prompt) const {
  std::vector<TemplateMessage> values;
  values.reserve(messages.size());
  size_t input_bytes = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!IsValidUtf8(messages[i].role) || !IsValidUtf8(messages[i].content)) {
      return absl::InvalidArgumentError(StrCat("messages[", i, "]: not valid UTF-8"));
    }
    input_bytes += messages[i].role.size() + messages[i].content.size();
    values.push_back({MakeClientText(messages[i].role), MakeClientText(messages[i].content)});
  }
  TemplateLimits limits;
  limits.max_iterations = kMaxLoopIterations;
  limits.max_output_bytes = 4 * input_bytes + (size_t{64} << 10);
  limits.max_copied_bytes = 16 * limits.max_output_bytes;
  TemplateEvaluator::Variables globals;
  globals["messages"] = MessageListValue{0, messages.size()};
  globals["add_generation_prompt"] = add_generation_prompt;
  globals["bos_token"] = bos_token_;
  globals["eos_token"] = eos_token_;
  globals["tools"] = NoneValue{};
  globals["documents"] = NoneValue{};
  absl::StatusOr<TemplateText> text =
      TemplateEvaluator(values, std::move(globals), limits).Run(body_);
  if (!text.ok()) return Prefixed("chat_template", text.status());
  return RenderedChat{std::move(text->bytes), std::move(text->client_ranges)};
}

absl::StatusOr<std::string> ChatTemplate::Render(std::span<const ChatMessage> messages,
                                                 bool add_generation_prompt) const {
  absl::StatusOr<RenderedChat> chat = RenderWithRanges(messages, add_generation_prompt);
  if (!chat.ok()) return chat.status();
  return std::move(chat->text);
}

}  // namespace hyserve::tokenizer
