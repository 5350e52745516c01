// How the next token is chosen. Plain data; validated at the router (services) and again by
// Validate() at the worker.
#ifndef HYSERVE_ENGINE_SAMPLING_SAMPLING_PARAMS_H_
#define HYSERVE_ENGINE_SAMPLING_SAMPLING_PARAMS_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace hyserve::sampling {

inline constexpr int kMaxLogprobs = 20;
inline constexpr int kMaxLogitBias = 1024;
inline constexpr int kMaxStopTokenIds = 256;

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy; finite, in [0, 2]
  float top_p = 1.0f;        // (0, 1]
  float min_p = 0.0f;        // [0, 1]
  int32_t top_k = 0;         // 0: off
  float frequency_penalty = 0.0f;   // [-2, 2], over generated tokens
  float presence_penalty = 0.0f;    // [-2, 2], over generated tokens
  float repetition_penalty = 1.0f;  // (0, 2], over prompt and generated tokens
  uint64_t seed = 0;                // random numbers: counter-based on (seed, choice, index)
  std::vector<std::pair<int32_t, float>> logit_bias = {};  // |bias| <= 100
  int32_t max_tokens = 16;                            // >= 1
  int32_t min_tokens = 0;  // before this many tokens no stop id ends the sequence or is sampled
  std::vector<int32_t> stop_token_ids = {};  // ends the sequence; the stop token itself is emitted
  bool ignore_eos = false;              // the model's end tokens do not end the sequence
  int32_t num_logprobs = -1;            // -1: none; 0: of the chosen token; n: the n best besides

  bool operator==(const SamplingParams&) const = default;
};

// INVALID_ARGUMENT with every violated rule, ids checked against the model's vocabulary.
absl::Status Validate(const SamplingParams& params, int32_t vocab_size);

// A token with its log-probability under the model's distribution (after penalties and bias, before
// temperature and truncation).
struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0;
  bool operator==(const TokenLogprob&) const = default;
};

struct SampledToken {
  int32_t token_id = 0;
  float logprob = 0;                 // valid when num_logprobs >= 0
  std::vector<TokenLogprob> top = {};  // best first, num_logprobs entries
  bool operator==(const SampledToken&) const = default;
};

}  // namespace hyserve::sampling

#endif  // HYSERVE_ENGINE_SAMPLING_SAMPLING_PARAMS_H_
