#include "services/common/status_mapping.h"

#include <google/protobuf/any.pb.h>

#include <algorithm>

#include "base/strings.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace hyserve::common {
namespace {

constexpr std::string_view kUrlPrefix = "type.googleapis.com/";
constexpr std::string_view kKnownPrefix = "type.googleapis.com/google.rpc.";

template <typename Message>
std::string UrlOf() {
  return StrCat(kUrlPrefix, Message::descriptor()->full_name());
}

template <typename Message>
std::optional<Message> Payload(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(UrlOf<Message>());
  Message message;
  if (!payload.has_value() || !message.ParseFromString(std::string(*payload))) return std::nullopt;
  return message;
}

}  // namespace

absl::Status BadRequestError(const std::vector<FieldViolation>& violations) {
  std::string text;
  google::rpc::BadRequest details;
  for (const FieldViolation& violation : violations) {
    StrAppend(&text, text.empty() ? "" : "; ", violation.field, ": ", violation.description);
    if (details.field_violations_size() == static_cast<int>(kMaxReportedViolations)) continue;
    auto* const detail = details.add_field_violations();
    detail->set_field(violation.field);
    detail->set_description(violation.description);
  }
  absl::Status status = absl::InvalidArgumentError(text);
  status.SetPayload(UrlOf<google::rpc::BadRequest>(), absl::Cord(details.SerializeAsString()));
  return status;
}

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  google::rpc::RetryInfo details;
  const absl::Duration whole = absl::Trunc(delay, absl::Milliseconds(1));
  details.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(whole));
  details.mutable_retry_delay()->set_nanos(static_cast<int32_t>(
      absl::ToInt64Nanoseconds(whole - absl::Trunc(whole, absl::Seconds(1)))));
  status.SetPayload(UrlOf<google::rpc::RetryInfo>(), absl::Cord(details.SerializeAsString()));
  return status;
}

std::vector<FieldViolation> FieldViolations(const absl::Status& status) {
  std::vector<FieldViolation> violations;
  const auto details = Payload<google::rpc::BadRequest>(status);
  if (!details.has_value()) return violations;
  for (const auto& detail : details->field_violations()) {
    violations.push_back({detail.field(), detail.description()});
  }
  return violations;
}

std::optional<absl::Duration> RetryDelay(const absl::Status& status) {
  const auto details = Payload<google::rpc::RetryInfo>(status);
  if (!details.has_value()) return std::nullopt;
  return absl::Seconds(details->retry_delay().seconds()) +
         absl::Nanoseconds(details->retry_delay().nanos());
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const auto code = static_cast<grpc::StatusCode>(status.raw_code());  // the same numbers
  const std::string message(status.message());
  google::rpc::Status details;
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
    google::protobuf::Any* const detail = details.add_details();
    detail->set_type_url(std::string(url));
    detail->set_value(std::string(payload));
  });
  if (details.details_size() == 0) return grpc::Status(code, message);
  details.set_code(code);
  details.set_message(message);
  return grpc::Status(code, message, details.SerializeAsString());
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  google::rpc::Status details;
  if (status.error_details().empty() || !details.ParseFromString(status.error_details())) {
    return result;
  }
  for (const google::protobuf::Any& detail : details.details()) {
    if (std::string_view(detail.type_url()).substr(0, kKnownPrefix.size()) == kKnownPrefix) {
      result.SetPayload(detail.type_url(), absl::Cord(detail.value()));
    }
  }
  return result;
}

std::string_view StatusCodeName(absl::StatusCode code) {
  static constexpr std::string_view kNames[] = {
      "OK",          "CANCELLED",          "UNKNOWN",           "INVALID_ARGUMENT",
      "DEADLINE_EXCEEDED", "NOT_FOUND",    "ALREADY_EXISTS",    "PERMISSION_DENIED",
      "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",   "OUT_OF_RANGE",
      "UNIMPLEMENTED", "INTERNAL",         "UNAVAILABLE",       "DATA_LOSS",
      "UNAUTHENTICATED"};
  const auto index = static_cast<size_t>(code);
  return index < std::size(kNames) ? kNames[index] : "UNKNOWN";
}

}  // namespace hyserve::common
