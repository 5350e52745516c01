// What the penalties must know about the tokens so far: a pure function of the tokens, so it can be
// rebuilt on any worker.
#ifndef HYSERVE_ENGINE_SAMPLING_PENALTY_STATE_H_
#define HYSERVE_ENGINE_SAMPLING_PENALTY_STATE_H_

#include <cstdint>
#include <span>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "engine/sampling/sampling_params.h"

namespace hyserve::sampling {

struct Penalty {
  float repetition = 1;
  float subtracted = 0;
};

class PenaltyState {
 public:
  // `prompt` counts for the repetition penalty only. Nothing is kept when `params` asks for no
  // penalty.
  PenaltyState() = default;
  PenaltyState(const SamplingParams& params, std::span<const int32_t> prompt);

  void AddGenerated(int32_t token_id);

  // Calls `visit` once for every token that occurred: a logit > 0 is divided by `repetition` and a
  // logit <= 0 multiplied by it (Keskar et al., "CTRL", 2019, with the sign handled); then
  // `subtracted`, which is frequency_penalty * (times generated) + presence_penalty * (generated at
  // all), is subtracted.
  void ForEach(const SamplingParams& params,
               absl::FunctionRef<void(int32_t token_id, const Penalty& penalty)> visit) const;

 private:
  bool repetition_ = false;  // some penalty over prompt and generated tokens
  bool generated_ = false;   // some penalty over generated tokens
  absl::flat_hash_map<int32_t, int32_t> generated_count_;  // 0: only in the prompt
};

}  // namespace hyserve::sampling

#endif  // HYSERVE_ENGINE_SAMPLING_PENALTY_STATE_H_
