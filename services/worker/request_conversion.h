// Messages of worker.proto <-> types of the engine and of the transfer. Pure.
#ifndef HYSERVE_SERVICES_WORKER_REQUEST_CONVERSION_H_
#define HYSERVE_SERVICES_WORKER_REQUEST_CONVERSION_H_

#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/runtime/engine.h"
#include "engine/sampling/sampling_params.h"
#include "hyserve/v1/worker.pb.h"
#include "kv_transfer/ticket.h"

namespace hyserve::worker {

inline constexpr size_t kMaxRequestIdBytes = 128;
inline constexpr size_t kMaxCacheScopeBytes = 64;

// Values are not judged here: Engine::Submit and Reserve do.
sampling::SamplingParams ToSamplingParams(const v1::WorkerSampling& sampling);
void FillSampledToken(const sampling::SampledToken& token, v1::SampledToken* out);
// `Event` is v1::PrefillEvent or v1::DecodeEvent.
template <typename Event>
Event PromptLogprobsEvent(int32_t first_index,
                          const std::vector<sampling::SampledToken>& logprobs) {
  Event event;
  event.mutable_prompt_logprobs()->set_first_index(first_index);
  for (const sampling::SampledToken& token : logprobs) {
    FillSampledToken(token, event.mutable_prompt_logprobs()->add_logprobs());
  }
  return event;
}

// INVALID_ARGUMENT for an id or a cache scope that no router sends.
absl::Status CheckRequestId(const v1::RequestId& id);
absl::Status CheckCacheScope(std::string_view scope);

struct ParsedTicket {
  kv_transfer::TransferId id;
  uint32_t epoch = 0;
  kv_transfer::PeerAddress source;
};
// INVALID_ARGUMENT for a malformed ticket or one of another attempt; FAILED_PRECONDITION
// "layout_mismatch: ..." when its layout is not `layout_fingerprint`.
absl::StatusOr<ParsedTicket> ParseTicket(const v1::TransferTicket& ticket, uint32_t attempt,
                                         std::string_view layout_fingerprint,
                                         std::string_view transport);

// The call's deadline, at most `max_deadline` from now.
absl::Time ClampDeadline(absl::Time deadline, absl::Duration max_deadline);

// "stop", "length" or, for everything that is not an end of its own, "".
std::string_view FinishedReason(sampling::FinishReason reason);

}  // namespace hyserve::worker

#endif  // HYSERVE_SERVICES_WORKER_REQUEST_CONVERSION_H_
