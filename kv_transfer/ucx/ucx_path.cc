// Which way device memory travels on a connection. Whoever connects says first whether it can
// receive into device memory; the other side answers likewise. A sender of device memory whose peer
// can then sends a few messages between device buffers made for this, and the peer says how long
// each took. UCX chooses by itself how to move them; what it falls back to when devices cannot
// reach each other is slower by a factor of hundreds, so the time tells.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kv_transfer/ucx/ucx_node.h"

namespace hyserve::kv_transfer {
namespace {

constexpr uint32_t kMagic = 0x48765054;
constexpr uint32_t kHello = 1;   // value: can receive into device memory
constexpr uint32_t kResult = 2;  // value: round; nanoseconds, 0 when it failed
constexpr size_t kCheckBytes = size_t{8} << 20;
// The first round opens the peer's memory and warms everything up.
constexpr int kLeastRounds = 2;
constexpr int kMostRounds = 4;
constexpr absl::Duration kCheckTimeout = absl::Seconds(2);

struct PathMessage {
  uint32_t magic = kMagic;
  uint32_t kind = 0;
  uint32_t value = 0;
  uint32_t reserved = 0;
  uint64_t nanoseconds = 0;
};
static_assert(sizeof(PathMessage) == 24);

}  // namespace

absl::Status UcxNode::OpenDevice() {
  if (device() == nullptr) return absl::OkStatus();
  can_gather_ = true;
  absl::Status status = device()->MakeCurrent();
  if (!status.ok()) return status;
  ucp_context_attr_t attributes{};
  attributes.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES;
  status = UcxStatus(ucp_context_query(context_.get(), &attributes), "memory types of UCX");
  if (!status.ok()) return status;
  ucx_knows_device_ = (attributes.memory_types & (uint64_t{1} << UCS_MEMORY_TYPE_CUDA)) != 0;
  if (!ucx_knows_device_) {
    NotDirect("this UCX cannot use CUDA memory");
    return status;
  }
  for (std::shared_ptr<char>* buffer : {&check_source_, &check_target_}) {
    absl::StatusOr<std::shared_ptr<char>> scratch = AllocateScratch(kCheckBytes);
    if (!scratch.ok()) {
      NotDirect(std::string(scratch.status().message()));
      return status;
    }
    *buffer = *std::move(scratch);
  }
  // Now or never: later the cached state may have all the memory.
  can_gather_ = WhyNotDirect().empty() ? device_sends_.buffer.Reserve().ok() &&
                                             device_receives_.buffer.Reserve().ok()
                                       : true;
  return status;
}

void UcxNode::NotDirect(std::string reason) {
  absl::MutexLock lock(&memory_mutex_);
  if (not_direct_.empty()) not_direct_ = std::move(reason);
}

std::string UcxNode::WhyNotDirect() const {
  if (device() == nullptr) return "no device";
  if (options_.device_path == DevicePathPolicy::kStaged) return "staging is configured";
  absl::MutexLock lock(&memory_mutex_);
  return not_direct_;
}

void UcxNode::Greet(Endpoint& endpoint) {
  SendPathMessage(endpoint, kHello, WhyNotDirect().empty() ? 1 : 0, 0);
}

void UcxNode::SendPathMessage(Endpoint& endpoint, uint32_t kind, uint32_t value,
                              uint64_t nanoseconds) {
  const PathMessage message{.kind = kind, .value = value, .nanoseconds = nanoseconds};
  SendSmall(endpoint, MessageId(MessageType::kPath),
            std::string_view(reinterpret_cast<const char*>(&message), sizeof(message)));
}

void UcxNode::OnPathMessage(Endpoint& endpoint, std::string_view bytes) {
  PathMessage message;
  if (bytes.size() != sizeof(message)) return;
  std::memcpy(&message, bytes.data(), sizeof(message));
  if (message.magic != kMagic) return;
  if (message.kind == kResult) {
    OnCheckResult(endpoint, message.value, message.nanoseconds);
  } else if (message.kind == kHello && !endpoint.greeted) {
    endpoint.greeted = true;
    endpoint.peer_direct = message.value == 1;
    if (endpoint.accepted) Greet(endpoint);
    // Who is connected to will send, who connects only perhaps.
    if (endpoint.accepted || !endpoint.held.empty()) StartCheck(endpoint);
  }
}

void UcxNode::StartCheck(Endpoint& endpoint) {
  if (device() == nullptr || !endpoint.greeted || endpoint.check_round > 0 ||
      endpoint.path != DataPath::kUnknown || endpoint.closing) {
    return;
  }
  std::string reason = WhyNotDirect();
  if (reason.empty() && !endpoint.peer_direct) {
    reason = "the peer cannot receive into device memory";
  }
  if (!reason.empty()) return ChoosePath(endpoint, DataPath::kStaged, std::move(reason));
  endpoint.check_round = 1;
  SendCheck(endpoint);
  loop_.RunAt(loop_.Now() + kCheckTimeout, [this, id = endpoint.id] {
    const auto it = endpoints_.find(id);
    if (it == endpoints_.end() || it->second->path != DataPath::kUnknown) return;
    ChoosePath(*it->second, DataPath::kStaged, "the check of the direct path did not end in time");
  });
}

void UcxNode::SendCheck(Endpoint& endpoint) {
  Operation* operation = NewOperation(endpoint, Kind::kCheckSend);
  operation->path = DataPath::kDirect;
  operation->id = static_cast<OperationId>(endpoint.check_round);
  operation->bytes = std::string(1, static_cast<char>(endpoint.check_round));
  operation->data = check_source_.get();
  operation->length = kCheckBytes;
  SendMessage(operation, MessageType::kCheck, FindMemory(operation->data, operation->length));
}

ucs_status_t UcxNode::CheckAnnounced(Endpoint& endpoint, std::string_view header, void* data,
                                     size_t length) {
  if (check_target_ == nullptr || header.size() != 1 || length != kCheckBytes) return UCS_OK;
  Operation* operation = NewOperation(endpoint, Kind::kCheckReceive);
  operation->path = DataPath::kDirect;
  operation->id = static_cast<OperationId>(header[0]);
  operation->started = loop_.Now();
  operation->data = check_target_.get();  // checks may share it: nobody reads it
  operation->length = length;
  return PostReceive(operation, data, FindMemory(operation->data, length)) ? UCS_INPROGRESS
                                                                           : UCS_OK;
}

void UcxNode::FinishCheck(const Operation& operation) {
  Endpoint& endpoint = *operation.endpoint;
  const auto round = static_cast<uint32_t>(operation.id);
  if (operation.kind == Kind::kCheckReceive) {
    const absl::Duration took = loop_.Now() - operation.started;
    const uint64_t nanoseconds =
        operation.status.ok() ? static_cast<uint64_t>(absl::ToInt64Nanoseconds(took)) : 0;
    SendPathMessage(endpoint, kResult, round, nanoseconds);
  } else if (!operation.status.ok()) {
    OnCheckResult(endpoint, round, 0);
  }
}

void UcxNode::OnCheckResult(Endpoint& endpoint, uint32_t round, uint64_t nanoseconds) {
  if (endpoint.path != DataPath::kUnknown || endpoint.closing || endpoint.check_round == 0 ||
      round != static_cast<uint32_t>(endpoint.check_round)) {
    return;
  }
  if (nanoseconds == 0) {
    return ChoosePath(endpoint, DataPath::kStaged, "UCX cannot move device memory to this peer");
  }
  const double rate = static_cast<double>(kCheckBytes) / static_cast<double>(nanoseconds) * 1e9;
  endpoint.best_bytes_per_second = std::max(endpoint.best_bytes_per_second, rate);
  const bool fast = endpoint.best_bytes_per_second >= options_.min_direct_bytes_per_second;
  if (endpoint.check_round < kLeastRounds || (!fast && endpoint.check_round < kMostRounds)) {
    ++endpoint.check_round;
    return SendCheck(endpoint);
  }
  if (fast) return ChoosePath(endpoint, DataPath::kDirect, "");
  ChoosePath(endpoint, DataPath::kStaged,
             absl::StrFormat("UCX moves device memory at %.2f GB/s only, a way through the host",
                             endpoint.best_bytes_per_second / 1e9));
}

void UcxNode::ChoosePath(Endpoint& endpoint, DataPath path, std::string reason) {
  if (path == DataPath::kStaged && options_.device_path == DevicePathPolicy::kDirect) {
    path = DataPath::kRefused;
  }
  endpoint.path = path;
  endpoint.path_reason = reason;
  paths_.endpoints[static_cast<int>(path)].Add();
  if (options_.on_path) {
    options_.on_path({.path = path,
                      .bytes_per_second = endpoint.best_bytes_per_second,
                      .connection = EndpointDescription(endpoint.id),
                      .reason = std::move(reason)});
  }
  for (Operation* operation : std::exchange(endpoint.held, {})) SendDeviceData(operation);
}

void UcxNode::SendDeviceData(Operation* operation) {
  Endpoint& endpoint = *operation->endpoint;
  switch (endpoint.path) {
    case DataPath::kDirect:
      operation->path = DataPath::kDirect;
      if (!operation->parts.empty()) return StageSend(operation);
      SendMessage(operation, MessageType::kDeviceData,
                  FindMemory(operation->data, operation->length));
      return;
    case DataPath::kStaged:
      operation->path = DataPath::kStaged;
      StageSend(operation);
      return;
    case DataPath::kRefused:
      Complete(operation, absl::FailedPreconditionError(absl::StrCat(
                              "no direct path for device memory: ", endpoint.path_reason)));
      return;
    default:
      endpoint.held.push_back(operation);
      StartCheck(endpoint);
  }
}

DataPath UcxNode::EndpointPath(EndpointId endpoint) const {
  const auto it = endpoints_.find(endpoint);
  if (it == endpoints_.end()) return DataPath::kUnknown;
  return it->second->path != DataPath::kUnknown ? it->second->path : it->second->received;
}

}  // namespace hyserve::kv_transfer
