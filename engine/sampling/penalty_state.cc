#include "engine/sampling/penalty_state.h"

#include <algorithm>
#include <limits>

namespace hyserve::sampling {

PenaltyState::PenaltyState(const SamplingParams& params, std::span<const int32_t> prompt)
    : repetition_(params.repetition_penalty != 1.0f),
      generated_(params.frequency_penalty != 0.0f || params.presence_penalty != 0.0f) {
  if (!repetition_) return;
  for (const int32_t token : prompt) generated_count_.try_emplace(token, 0);
}

void PenaltyState::AddGenerated(int32_t token_id) {
  if (repetition_ || generated_) ++generated_count_[token_id];
}

void PenaltyState::Apply(const SamplingParams& params, std::span<float> logits) const {
  for (const auto& [token, count] : generated_count_) {
    float& logit = logits[token];
    if (repetition_) {
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      logit = std::min(logit, std::numeric_limits<float>::max());
    }
    if (count > 0) {
      logit -= params.frequency_penalty * static_cast<float>(count) + params.presence_penalty;
    }
  }
}

}  // namespace hyserve::sampling
