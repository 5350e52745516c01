// Errors of workers whose cause the router must tell apart: the first word of the message says it.
// Everything else is told by the status code alone:
//   UNAVAILABLE        the worker is going away or lost: tried elsewhere
//   RESOURCE_EXHAUSTED no room at this worker now: tried elsewhere
//   DEADLINE_EXCEEDED, INVALID_ARGUMENT, INTERNAL: passed on, never tried again
#ifndef HYSERVE_SERVICES_COMMON_WORKER_ERRORS_H_
#define HYSERVE_SERVICES_COMMON_WORKER_ERRORS_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "base/strings.h"

namespace hyserve::common {

inline constexpr std::string_view kHandoffFailed = "handoff_failed: ";
inline constexpr std::string_view kStaleIncarnation = "stale_incarnation: ";

// Decode could not take the hand-off over (peer lost, no progress, checksum, lease expired).
// Nothing is wrong with either worker by itself: the router tries again and avoids this pair for a
// while.
inline absl::Status HandoffFailedError(std::string_view reason) {
  return absl::UnavailableError(StrCat(kHandoffFailed, reason));
}
// The ticket is meant for an earlier process at this address. Tried again.
inline absl::Status StaleIncarnationError(std::string_view reason) {
  return absl::FailedPreconditionError(StrCat(kStaleIncarnation, reason));
}

inline bool HasCause(const absl::Status& status, std::string_view cause) {
  return ToStd(status.message()).substr(0, cause.size()) == cause;
}

}  // namespace hyserve::common

#endif  // HYSERVE_SERVICES_COMMON_WORKER_ERRORS_H_
