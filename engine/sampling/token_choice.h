// From a request's sampling parameters to what the device is told for its next token
// (kernels::SampleTokens has the order and the formulas of sampling), and back.
//
// Pure: the same parameters, history and index give the same row and edits on every worker.
#ifndef HYSERVE_ENGINE_SAMPLING_TOKEN_CHOICE_H_
#define HYSERVE_ENGINE_SAMPLING_TOKEN_CHOICE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/kernels/sample_tokens.h"
#include "engine/sampling/penalty_state.h"
#include "engine/sampling/sampling_params.h"

namespace hyserve::sampling {

struct SamplingContext {
  const SamplingParams* params = nullptr;
  const PenaltyState* penalties = nullptr;      // null: no penalties
  std::span<const int32_t> eos_token_ids = {};  // of the model
  int32_t index = 0;    // of the token to be chosen among the generated ones, from 0
  int32_t random_offset = 0;  // added to index for the random number (tokens of an earlier attempt)
  uint32_t choice = 0;  // of the request
};

// The row that chooses the next token; its edits (logit bias, penalties, and before min_tokens the
// end ids, which become impossible) are appended to `edits`.
kernels::SampleRow ChooseToken(const SamplingContext& context,
                               std::vector<kernels::LogitEdit>* edits);

// The row that scores `token_id`, with the `num_top` best tokens besides.
kernels::SampleRow ScoreToken(int32_t token_id, int num_top);

// INTERNAL when no token was possible (every logit NaN or minus infinity).
absl::StatusOr<SampledToken> ToSampledToken(const kernels::SampledRow& sampled);

}  // namespace hyserve::sampling

#endif  // HYSERVE_ENGINE_SAMPLING_TOKEN_CHOICE_H_
