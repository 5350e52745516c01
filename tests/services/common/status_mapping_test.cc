#include "services/common/status_mapping.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/common/worker_errors.h"

namespace hyserve::common {
namespace {

TEST(StatusMapping, EveryCodeSurvivesTheRoundTrip) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    const grpc::Status wire = ToGrpcStatus(status);
    EXPECT_EQ(static_cast<int>(wire.error_code()), code);
    EXPECT_EQ(FromGrpcStatus(wire), status);
    EXPECT_FALSE(StatusCodeName(status.code()).empty());
  }
  EXPECT_EQ(StatusCodeName(absl::StatusCode::kResourceExhausted), "RESOURCE_EXHAUSTED");
  EXPECT_EQ(StatusCodeName(absl::StatusCode::kUnauthenticated), "UNAUTHENTICATED");
}

TEST(StatusMapping, ViolationsTravelAsDetails) {
  std::vector<FieldViolation> violations;
  for (int i = 0; i < 15; ++i) violations.push_back({"f" + std::to_string(i), "bad"});
  const absl::Status status = BadRequestError(violations);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("f14: bad"));  // all in the text
  const auto back = FieldViolations(FromGrpcStatus(ToGrpcStatus(status)));
  EXPECT_EQ(back, std::vector<FieldViolation>(violations.begin(), violations.begin() + 10));
}

TEST(StatusMapping, RetryDelayTravels) {
  const absl::Status status =
      WithRetryDelay(absl::ResourceExhaustedError("full"), absl::Milliseconds(2750));
  const absl::Status back = FromGrpcStatus(ToGrpcStatus(status));
  EXPECT_EQ(RetryDelay(back), absl::Milliseconds(2750));
  EXPECT_FALSE(RetryDelay(absl::ResourceExhaustedError("full")).has_value());
}

TEST(StatusMapping, ForeignAndBrokenDetailsAreDropped) {
  const grpc::Status broken(grpc::StatusCode::ABORTED, "x", "\xFF\xFF not a message");
  EXPECT_EQ(FromGrpcStatus(broken), absl::AbortedError("x"));
  absl::Status foreign = absl::AbortedError("x");
  foreign.SetPayload("type.googleapis.com/other.Type", absl::Cord("x"));
  EXPECT_EQ(FromGrpcStatus(ToGrpcStatus(foreign)), absl::AbortedError("x"));
}

TEST(WorkerErrors, CausesSurviveTheWire) {
  const absl::Status handoff = FromGrpcStatus(ToGrpcStatus(HandoffFailedError("peer lost")));
  EXPECT_TRUE(HasCause(handoff, kHandoffFailed));
  EXPECT_FALSE(HasCause(handoff, kStaleIncarnation));
  EXPECT_TRUE(HasCause(StaleIncarnationError("x"), kStaleIncarnation));
  EXPECT_FALSE(HasCause(absl::OkStatus(), kHandoffFailed));
}

}  // namespace
}  // namespace hyserve::common
