#include "engine/sampling/penalty_state.h"

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

void PenaltyState::ForEach(
    const SamplingParams& params,
    absl::FunctionRef<void(int32_t token_id, const Penalty& penalty)> visit) const {
  for (const auto& [token, count] : generated_count_) {
    Penalty penalty;
    if (repetition_) penalty.repetition = params.repetition_penalty;
    if (count > 0) {
      penalty.subtracted =
          params.frequency_penalty * static_cast<float>(count) + params.presence_penalty;
    }
    visit(token, penalty);
  }
}

}  // namespace hyserve::sampling
