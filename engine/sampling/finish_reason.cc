#include "engine/sampling/finish_reason.h"

#include <algorithm>

namespace hyserve::sampling {
namespace {

bool Contains(std::span<const int32_t> ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

FinishReason FinishReasonOf(const SamplingParams& params, std::span<const int32_t> eos_token_ids,
                            int32_t token_id, int32_t index, int32_t max_tokens) {
  if (index >= params.min_tokens) {
    if (Contains(params.stop_token_ids, token_id)) return FinishReason::kStopToken;
    if (!params.ignore_eos && Contains(eos_token_ids, token_id)) {
      return FinishReason::kEndOfSequence;
    }
  }
  return index + 1 >= max_tokens ? FinishReason::kLength : FinishReason::kNone;
}

}  // namespace hyserve::sampling
