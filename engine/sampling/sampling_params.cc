#include "engine/sampling/sampling_params.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hyserve::sampling {

absl::Status Validate(const SamplingParams& params, int32_t vocab_size) {
  std::vector<std::string> violations;
  auto require = [&violations](bool holds, auto&&... text) {
    if (!holds) violations.push_back(absl::StrCat(text...));
  };
  // A comparison with NaN is false, so NaN fails every range.
  auto in_range = [&](const char* name, float value, float low, float high) {
    require(value >= low && value <= high, name, ": must be in [", low, ", ", high, "]; got ",
            value);
  };
  in_range("temperature", params.temperature, 0, 2);
  require(params.top_p > 0 && params.top_p <= 1, "top_p: must be in (0, 1]; got ", params.top_p);
  in_range("min_p", params.min_p, 0, 1);
  require(params.top_k >= 0, "top_k: must not be negative; got ", params.top_k);
  in_range("frequency_penalty", params.frequency_penalty, -2, 2);
  in_range("presence_penalty", params.presence_penalty, -2, 2);
  require(params.repetition_penalty > 0 && params.repetition_penalty <= 2,
          "repetition_penalty: must be in (0, 2]; got ", params.repetition_penalty);
  require(params.logit_bias.size() <= kMaxLogitBias, "logit_bias: at most ", kMaxLogitBias,
          " entries; got ", params.logit_bias.size());
  for (const auto& [token, bias] : params.logit_bias) {
    require(token >= 0 && token < vocab_size, "logit_bias: token ", token,
            " is not in the vocabulary of ", vocab_size);
    require(std::abs(bias) <= 100, "logit_bias of token ", token, ": must be in [-100, 100]; got ",
            bias);
  }
  require(params.max_tokens >= 1, "max_tokens: must be at least 1; got ", params.max_tokens);
  require(params.min_tokens >= 0 && params.min_tokens <= params.max_tokens,
          "min_tokens: must be in [0, max_tokens]; got ", params.min_tokens, " of ",
          params.max_tokens);
  require(params.stop_token_ids.size() <= kMaxStopTokenIds, "stop_token_ids: at most ",
          kMaxStopTokenIds, " entries; got ", params.stop_token_ids.size());
  for (const int32_t token : params.stop_token_ids) {
    require(token >= 0 && token < vocab_size, "stop_token_ids: token ", token,
            " is not in the vocabulary of ", vocab_size);
  }
  require(params.num_logprobs >= -1 && params.num_logprobs <= kMaxLogprobs,
          "num_logprobs: must be in [-1, ", kMaxLogprobs, "]; got ", params.num_logprobs);
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
}

}  // namespace hyserve::sampling
