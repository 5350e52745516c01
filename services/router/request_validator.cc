#include "services/router/request_validator.h"

#include <algorithm>
#include <cmath>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "base/strings.h"
#include "engine/tokenizer/utf8.h"
#include "services/common/status_mapping.h"

namespace hyserve::router {
namespace {

using common::FieldViolation;

constexpr size_t kMaxRequestIdBytes = 128;
constexpr size_t kMaxCacheScopeBytes = 64;
constexpr size_t kMaxRoleBytes = 64;
constexpr float kMaxLogitBias = 100.0f;

// Gathers violations. A list with a million bad entries gives one line per list, not per entry.
class Checker {
 public:
  void Fail(std::string field, std::string reason) {
    violations_.push_back({std::move(field), std::move(reason)});
  }

  void Range(const char* field, float value, double min, double max, bool min_is_open = false) {
    // NaN fails both comparisons.
    const bool above = min_is_open ? value > min : value >= min;
    if (above && value <= max) return;
    Fail(field, absl::StrFormat("must be finite and in %c%g, %g]; got %g", min_is_open ? '(' : '[',
                                min, max, value));
  }

  void Range(const char* field, int64_t value, int64_t min, int64_t max) {
    if (value >= min && value <= max) return;
    Fail(field, StrCat("must be in [", min, ", ", max, "]; got ", value));
  }

  // First offset that is not UTF-8 decides.
  void Utf8(const std::string& field, std::string_view text) {
    if (tokenizer::IsValidUtf8(text)) return;
    size_t offset = 0;
    while (offset < text.size()) {
      const tokenizer::Utf8Scalar scalar = tokenizer::DecodeUtf8(text, offset);
      if (!scalar.valid) break;
      offset += scalar.length_bytes;
    }
    Fail(field, StrCat("not valid UTF-8 at byte ", offset));
  }

  template <typename Ids>
  void TokenIds(const char* field, const Ids& ids, int32_t vocab_size) {
    for (int i = 0; i < static_cast<int>(ids.size()); ++i) {
      if (ids[i] >= 0 && ids[i] < vocab_size) continue;
      Fail(StrCat(field, "[", i, "]"),
           StrCat("must be a token id in [0, ", vocab_size, "); got ", ids[i]));
      return;
    }
  }

  absl::Status Take() const {
    return violations_.empty() ? absl::OkStatus() : common::BadRequestError(violations_);
  }

 private:
  std::vector<FieldViolation> violations_;
};

bool IsRequestIdCharacter(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == ':' ||
         c == '-';
}

absl::Status CheckModel(const std::string& model, const ModelInfo& served) {
  if (model.empty() || model == served.name) return absl::OkStatus();
  return absl::NotFoundError(StrCat("model: served is \"", served.name, "\""));
}

void CheckChat(const v1::ChatMessages& chat, const common::LimitSettings& limits,
               Checker* checker) {
  if (chat.messages().empty()) checker->Fail("chat.messages", "must not be empty");
  if (chat.messages_size() > limits.messages) {
    checker->Fail("chat.messages",
                  StrCat("at most ", limits.messages, "; got ", chat.messages_size()));
    return;
  }
  for (int i = 0; i < chat.messages_size(); ++i) {
    const v1::ChatMessage& message = chat.messages(i);
    const std::string field = StrCat("chat.messages[", i, "]");
    if (message.role().empty()) checker->Fail(field + ".role", "must not be empty");
    if (message.role().size() > kMaxRoleBytes) {
      checker->Fail(field + ".role", StrCat("longer than ", kMaxRoleBytes, " bytes"));
    }
    checker->Utf8(field + ".content", message.content());
  }
}

void CheckPrompt(const v1::GenerateRequest& request, const ModelInfo& model,
                 const common::LimitSettings& limits, Checker* checker) {
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText:
      if (request.text().empty()) checker->Fail("text", "must not be empty");
      checker->Utf8("text", request.text());
      break;
    case v1::GenerateRequest::kChat:
      CheckChat(request.chat(), limits, checker);
      break;
    case v1::GenerateRequest::kTokenIds:
      if (request.token_ids().ids().empty()) checker->Fail("token_ids.ids", "must not be empty");
      checker->TokenIds("token_ids.ids", request.token_ids().ids(), model.vocab_size);
      break;
    case v1::GenerateRequest::PROMPT_NOT_SET:
      checker->Fail("prompt", "one of text, chat and token_ids must be set");
      break;
  }
}

void CheckSampling(const v1::Sampling& in, const ModelInfo& model,
                   const common::LimitSettings& limits, ValidatedRequest* out, Checker* checker) {
  sampling::SamplingParams& to = out->sampling;
  if (in.has_temperature()) to.temperature = in.temperature();
  if (in.has_top_p()) to.top_p = in.top_p();
  if (in.has_top_k()) to.top_k = in.top_k();
  if (in.has_min_p()) to.min_p = in.min_p();
  if (in.has_frequency_penalty()) to.frequency_penalty = in.frequency_penalty();
  if (in.has_presence_penalty()) to.presence_penalty = in.presence_penalty();
  if (in.has_repetition_penalty()) to.repetition_penalty = in.repetition_penalty();
  out->has_seed = in.has_seed();
  to.seed = in.seed();
  checker->Range("sampling.temperature", to.temperature, 0, 2);
  checker->Range("sampling.top_p", to.top_p, 0, 1, /*min_is_open=*/true);
  checker->Range("sampling.top_k", int64_t{to.top_k}, 0, INT32_MAX);
  checker->Range("sampling.min_p", to.min_p, 0, 1);
  checker->Range("sampling.frequency_penalty", to.frequency_penalty, -2, 2);
  checker->Range("sampling.presence_penalty", to.presence_penalty, -2, 2);
  checker->Range("sampling.repetition_penalty", to.repetition_penalty, 0, 2, /*min_is_open=*/true);
  if (static_cast<int>(in.logit_bias().size()) > limits.logit_bias) {
    checker->Fail("sampling.logit_bias",
                  StrCat("at most ", limits.logit_bias, " entries; got ", in.logit_bias().size()));
    return;
  }
  to.logit_bias.assign(in.logit_bias().begin(), in.logit_bias().end());
  std::sort(to.logit_bias.begin(), to.logit_bias.end());
  for (const auto& [id, bias] : to.logit_bias) {
    if (id < 0 || id >= model.vocab_size) {
      checker->Fail("sampling.logit_bias",
                    StrCat("keys must be token ids in [0, ", model.vocab_size, "); got ", id));
    } else if (!(std::abs(bias) <= kMaxLogitBias)) {
      checker->Fail(StrCat("sampling.logit_bias[", id, "]"),
                    absl::StrFormat("must be finite and in [-100, 100]; got %g", bias));
    }
  }
}

void CheckStopping(const v1::Stopping& in, const ModelInfo& model,
                   const common::LimitSettings& limits, ValidatedRequest* out, Checker* checker) {
  sampling::SamplingParams& to = out->sampling;
  out->has_max_tokens = in.has_max_tokens();
  to.max_tokens = in.has_max_tokens() ? in.max_tokens() : limits.default_max_tokens;
  if (in.has_max_tokens()) {
    checker->Range("stopping.max_tokens", int64_t{in.max_tokens()}, 1, limits.max_tokens);
  }
  to.min_tokens = in.min_tokens();
  checker->Range("stopping.min_tokens", int64_t{in.min_tokens()}, 0,
                 in.has_max_tokens() ? std::max(in.max_tokens(), 0) : limits.max_tokens);
  if (in.stop_size() > limits.stop_strings) {
    checker->Fail("stopping.stop",
                  StrCat("at most ", limits.stop_strings, "; got ", in.stop_size()));
  } else {
    for (int i = 0; i < in.stop_size(); ++i) {
      const std::string field = StrCat("stopping.stop[", i, "]");
      if (in.stop(i).empty()) checker->Fail(field, "must not be empty");
      if (static_cast<int>(in.stop(i).size()) > limits.stop_string_bytes) {
        checker->Fail(field, StrCat("longer than ", limits.stop_string_bytes, " bytes"));
      }
      checker->Utf8(field, in.stop(i));
      out->stop.push_back(in.stop(i));
    }
  }
  if (in.stop_token_ids_size() > limits.stop_token_ids) {
    checker->Fail("stopping.stop_token_ids",
                  StrCat("at most ", limits.stop_token_ids, "; got ", in.stop_token_ids_size()));
  } else {
    checker->TokenIds("stopping.stop_token_ids", in.stop_token_ids(), model.vocab_size);
    to.stop_token_ids.assign(in.stop_token_ids().begin(), in.stop_token_ids().end());
    std::sort(to.stop_token_ids.begin(), to.stop_token_ids.end());
    to.stop_token_ids.erase(std::unique(to.stop_token_ids.begin(), to.stop_token_ids.end()),
                            to.stop_token_ids.end());
  }
  to.ignore_eos = in.ignore_eos();
  out->include_stop = in.include_stop();
}

void CheckOutput(const v1::OutputOptions& in, const common::LimitSettings& limits,
                 ValidatedRequest* out, Checker* checker) {
  if (in.has_logprobs()) {
    checker->Range("output.logprobs", int64_t{in.logprobs()}, 0, limits.logprobs);
    out->sampling.num_logprobs = in.logprobs();
  }
  if (in.has_prompt_logprobs()) {
    checker->Range("output.prompt_logprobs", int64_t{in.prompt_logprobs()}, 0,
                   limits.prompt_logprobs);
    out->prompt_logprobs = in.prompt_logprobs();
  }
  out->keep_special_tokens = in.keep_special_tokens();
  out->report_progress = in.report_progress();
}

}  // namespace

absl::StatusOr<ValidatedRequest> ValidateRequest(const v1::GenerateRequest& request,
                                                 const ModelInfo& model,
                                                 const common::LimitSettings& limits) {
  if (absl::Status status = CheckModel(request.model(), model); !status.ok()) return status;
  Checker checker;
  ValidatedRequest out;
  const std::string& id = request.request_id();
  if (id.size() > kMaxRequestIdBytes || !std::all_of(id.begin(), id.end(), IsRequestIdCharacter)) {
    checker.Fail("request_id", "must be empty or 1 to 128 of [A-Za-z0-9._:-]");
  }
  out.request_id = id;
  CheckPrompt(request, model, limits, &checker);
  CheckSampling(request.sampling(), model, limits, &out, &checker);
  CheckStopping(request.stopping(), model, limits, &out, &checker);
  CheckOutput(request.output(), limits, &out, &checker);
  if (request.cache_scope().size() > kMaxCacheScopeBytes) {
    checker.Fail("cache_scope", StrCat("longer than ", kMaxCacheScopeBytes, " bytes"));
  }
  out.cache_scope = request.cache_scope();
  out.use_prefix_cache = !request.disable_prefix_cache();
  if (absl::Status status = checker.Take(); !status.ok()) return status;
  return out;
}

absl::Status ResolveLength(int64_t prompt_tokens, const ModelInfo& model,
                           const common::LimitSettings& limits, ValidatedRequest* request) {
  const int64_t context = model.max_context_tokens;
  if (prompt_tokens < 1) {
    return common::BadRequestError({{"prompt", "gives no token"}});
  }
  const int64_t room = context - prompt_tokens;
  sampling::SamplingParams& sampling = request->sampling;
  if (room < 1 || (request->has_max_tokens && sampling.max_tokens > room)) {
    const int64_t wanted = request->has_max_tokens ? sampling.max_tokens : 1;
    return common::BadRequestError({{"prompt", StrCat(prompt_tokens, " tokens + max_tokens ",
                                                      wanted, " exceed context ", context)}});
  }
  if (!request->has_max_tokens) {
    // min_tokens is a wish of the client: the default must not fall below it.
    const int64_t wanted = std::max(limits.default_max_tokens, sampling.min_tokens);
    sampling.max_tokens = static_cast<int32_t>(std::min(wanted, room));
  }
  if (sampling.min_tokens > sampling.max_tokens) {
    return common::BadRequestError(
        {{"stopping.min_tokens", StrCat("must be in [0, ", sampling.max_tokens, "]; got ",
                                        sampling.min_tokens)}});
  }
  return absl::OkStatus();
}

absl::Status ValidateTokenize(const v1::TokenizeRequest& request, const ModelInfo& model,
                              const common::LimitSettings& limits) {
  if (absl::Status status = CheckModel(request.model(), model); !status.ok()) return status;
  Checker checker;
  if (request.has_chat()) {
    CheckChat(request.chat(), limits, &checker);
  } else if (request.has_text()) {
    checker.Utf8("text", request.text());
  } else {
    checker.Fail("input", "one of text and chat must be set");
  }
  return checker.Take();
}

}  // namespace hyserve::router
