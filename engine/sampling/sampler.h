// Chooses the next token from one row of logits.
//
// Order of the transformations:
//   1. NaN and infinity (logprobs.h)
//   2. logit bias
//   3. repetition, then frequency and presence penalties (penalty_state.h)
//   4. min_tokens: end ids become impossible
//   5. temperature
//   6. top_k: the k most probable
//   7. top_p: of these, renormalised, the shortest run of the most probable whose sum reaches top_p
//   8. min_p: of these, those with at least min_p times the probability of the most probable
// Log-probabilities are taken after 4. Equal logits are ordered by lower id everywhere.
// Temperature 0 takes the best token after 4.
//
// Pure: the same logits, history and index give the same token on every machine with the same libm.
#ifndef HYSERVE_ENGINE_SAMPLING_SAMPLER_H_
#define HYSERVE_ENGINE_SAMPLING_SAMPLER_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/sampling/penalty_state.h"
#include "engine/sampling/sampling_params.h"

namespace hyserve::sampling {

struct SamplingContext {
  const SamplingParams* params = nullptr;
  const PenaltyState* penalties = nullptr;  // null: no penalties
  std::span<const int32_t> eos_token_ids = {};  // of the model
  int32_t index = 0;    // of the token to be chosen among the generated ones, from 0
  int32_t random_offset = 0;  // added to index for the random number (tokens of an earlier attempt)
  uint32_t choice = 0;  // of the request
};

// Holds scratch memory between calls; not thread-safe, one per thread.
class Sampler {
 public:
  // Changes `logits`. INTERNAL when no token is possible (every logit NaN or minus infinity).
  absl::StatusOr<SampledToken> Sample(std::span<float> logits, const SamplingContext& context);

 private:
  struct Candidate {
    float logit;
    int32_t id;
    double weight;
  };

  int32_t Draw(std::span<const float> logits, const SamplingContext& context);
  void Truncate(std::span<const float> logits, const SamplingParams& params, double max);

  std::vector<Candidate> candidates_;
};

// True when token `index` is just the one with the largest logit: temperature 0, no
// log-probabilities, and nothing that changes the logits.
bool IsPlainlyGreedy(const SamplingParams& params, int32_t index);

// INTERNAL: no logit of a row is a finite number.
absl::Status NoTokenPossible();

// Why the sequence ends with the token of this index, or kNone. `max_tokens` may be less than
// params.max_tokens (end of the context). End ids count from index min_tokens on; an id in
// stop_token_ids goes before the model's own end tokens.
FinishReason FinishReasonOf(const SamplingParams& params, std::span<const int32_t> eos_token_ids,
                            int32_t token_id, int32_t index, int32_t max_tokens);

}  // namespace hyserve::sampling

#endif  // HYSERVE_ENGINE_SAMPLING_SAMPLER_H_
