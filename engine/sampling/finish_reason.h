// When a sequence ends.
#ifndef HYSERVE_ENGINE_SAMPLING_FINISH_REASON_H_
#define HYSERVE_ENGINE_SAMPLING_FINISH_REASON_H_

#include <cstdint>
#include <span>

#include "engine/sampling/sampling_params.h"

namespace hyserve::sampling {

enum class FinishReason : uint8_t {
  kNone,
  kStopToken,
  kEndOfSequence,
  kLength,
  kCancelled,
  kError
};

// Why the sequence ends with the token of this index, or kNone. `max_tokens` may be less than
// params.max_tokens (end of the context). End ids count from index min_tokens on; an id in
// stop_token_ids goes before the model's own end tokens.
FinishReason FinishReasonOf(const SamplingParams& params, std::span<const int32_t> eos_token_ids,
                            int32_t token_id, int32_t index, int32_t max_tokens);

}  // namespace hyserve::sampling

#endif  // HYSERVE_ENGINE_SAMPLING_FINISH_REASON_H_
