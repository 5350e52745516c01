// absl::Status <-> grpc::Status, and the details that clients can read.
//
// Details are payloads of the absl::Status under google.rpc type URLs; on the wire they are a
// google.rpc.Status in the trailer grpc-status-details-bin. Pure and thread-safe.
#ifndef HYSERVE_SERVICES_COMMON_STATUS_MAPPING_H_
#define HYSERVE_SERVICES_COMMON_STATUS_MAPPING_H_

#include <grpcpp/support/status.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace hyserve::common {

struct FieldViolation {
  std::string field;        // "sampling.temperature"
  std::string description;  // "must be finite and in [0, 2]; got nan"
  bool operator==(const FieldViolation&) const = default;
};
inline constexpr size_t kMaxReportedViolations = 10;

// INVALID_ARGUMENT with all violations in the message and the first kMaxReportedViolations in a
// google.rpc.BadRequest. REQUIRES: not empty.
absl::Status BadRequestError(const std::vector<FieldViolation>& violations);
// Adds a google.rpc.RetryInfo.
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);

std::vector<FieldViolation> FieldViolations(const absl::Status& status);
std::optional<absl::Duration> RetryDelay(const absl::Status& status);

grpc::Status ToGrpcStatus(const absl::Status& status);
// Details of another type than google.rpc.* are dropped; a malformed trailer is ignored.
absl::Status FromGrpcStatus(const grpc::Status& status);

// "RESOURCE_EXHAUSTED": the value of the label `code`.
std::string_view StatusCodeName(absl::StatusCode code);

}  // namespace hyserve::common

#endif  // HYSERVE_SERVICES_COMMON_STATUS_MAPPING_H_
