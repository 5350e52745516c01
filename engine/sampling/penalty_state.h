// What the penalties must know about the tokens so far: a pure function of the tokens, so it can be
// rebuilt on any worker.
#ifndef HYSERVE_ENGINE_SAMPLING_PENALTY_STATE_H_
#define HYSERVE_ENGINE_SAMPLING_PENALTY_STATE_H_

#include <cstdint>
#include <span>

#include "absl/container/flat_hash_map.h"
#include "engine/sampling/sampling_params.h"

namespace hyserve::sampling {

class PenaltyState {
 public:
  // `prompt` counts for the repetition penalty only. Nothing is kept when `params` asks for no
  // penalty.
  PenaltyState() = default;
  PenaltyState(const SamplingParams& params, std::span<const int32_t> prompt);

  void AddGenerated(int32_t token_id);

  // Per token that occurred: a logit > 0 is divided by repetition_penalty and a logit <= 0
  // multiplied by it (Keskar et al., "CTRL", 2019, with the sign handled); then frequency_penalty *
  // (times generated) and presence_penalty * (generated at all) are subtracted.
  void Apply(const SamplingParams& params, std::span<float> logits) const;

 private:
  bool repetition_ = false;  // some penalty over prompt and generated tokens
  bool generated_ = false;   // some penalty over generated tokens
  absl::flat_hash_map<int32_t, int32_t> generated_count_;  // 0: only in the prompt
};

}  // namespace hyserve::sampling

#endif  // HYSERVE_ENGINE_SAMPLING_PENALTY_STATE_H_
