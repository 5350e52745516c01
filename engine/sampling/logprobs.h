// Log-probabilities of one row of logits. Pure functions over host f32.
//
// Logits that are no numbers: NaN counts as minus infinity (never chosen), plus infinity as the
// largest finite float.
#ifndef HYSERVE_ENGINE_SAMPLING_LOGPROBS_H_
#define HYSERVE_ENGINE_SAMPLING_LOGPROBS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/sampling/sampling_params.h"

namespace hyserve::sampling {

// Applies the rule for NaN and infinity in place.
void Sanitize(std::span<float> logits);

// ln(sum(exp(logits))), summed in double; minus infinity when every logit is. REQUIRES: sanitized.
double LogSumExp(std::span<const float> logits);

// The `count` best tokens, best first, equal logits by lower id; fewer when the vocabulary is
// smaller. Tokens of probability 0 (minus infinity) are left out.
std::vector<TokenLogprob> TopLogprobs(std::span<const float> logits, double log_sum_exp, int count);

// Log-probability of `token_id` and the `num_top` best. Sanitizes `logits` in place (rows are
// scratch of the step). INTERNAL when no logit is finite. REQUIRES: token_id < logits.size().
absl::StatusOr<SampledToken> ScoreToken(std::span<float> logits, int32_t token_id, int num_top);

}  // namespace hyserve::sampling

#endif  // HYSERVE_ENGINE_SAMPLING_LOGPROBS_H_
