// What the glue of prefill adds to a hand-off for the glue of decode: token 1, and a checksum of
// the prompt's ids, so that a cached state is never continued with another prompt. Random numbers
// are counter-based and penalties follow from prompt and token 1, so there is no other sampler
// state.
#ifndef HYSERVE_SERVICES_WORKER_HANDOFF_TRAILER_H_
#define HYSERVE_SERVICES_WORKER_HANDOFF_TRAILER_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace hyserve::worker {

std::string EncodeTrailer(std::span<const int32_t> prompt, int32_t first_token);

// Token 1. DATA_LOSS when the trailer is malformed or belongs to another prompt.
absl::StatusOr<int32_t> DecodeTrailer(std::string_view trailer, std::span<const int32_t> prompt);

}  // namespace hyserve::worker

#endif  // HYSERVE_SERVICES_WORKER_HANDOFF_TRAILER_H_
