// Messages of the UCX transport that go by a slot of memory in between. Staged ones, for pairs
// without a direct path: device, pinned memory of ours, wire, pinned memory, device. Direct ones
// whose pieces do not lie together: gathered into one piece of device memory and scattered from
// one. A send waits for room, is copied into its slot, then sent; a receive waits for room, is
// received, then copied out of its slot. Copies, wire and copies of several messages overlap. Sends
// and receives have separate memory, so that two processes that send to each other cannot wait for
// each other.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kv_transfer/ucx/ucx_node.h"

namespace hyserve::kv_transfer {

UcxNode::Stage& UcxNode::StageOf(const Operation& operation) {
  const bool direct = operation.path == DataPath::kDirect;
  if (operation.kind == Kind::kSend) return direct ? device_sends_ : pinned_sends_;
  return direct ? device_receives_ : pinned_receives_;
}

std::optional<UcxNode::MemoryHandle> UcxNode::SlotMemory(const Operation& operation) const {
  if (operation.path == DataPath::kDirect) return FindMemory(operation.slot, operation.length);
  return MemoryHandle{};
}

bool UcxNode::TakeSlot(Operation* operation) {
  Stage& stage = StageOf(*operation);
  if (stage.waiting.empty()) {
    const absl::StatusOr<char*> slot = stage.buffer.Take(operation->length);
    if (!slot.ok()) {
      operation->announced = nullptr;
      Complete(operation, slot.status());
      return false;
    }
    operation->slot = *slot;
    if (*slot != nullptr) return true;
  }
  stage.waiting.push_back(operation);
  return false;
}

void UcxNode::StageSend(Operation* operation) {
  if (!TakeSlot(operation)) return;
  const bool direct = operation->path == DataPath::kDirect;
  const auto direction =
      direct ? DeviceMemory::Direction::kOnDevice : DeviceMemory::Direction::kToHost;
  jobs_.Add(operation->parts.empty()
                ? device()->StartCopy(direction, operation->slot, operation->data,
                                      operation->length)
                : device()->StartGather(direction, operation->slot, operation->parts),
            [this, operation, direct](const absl::Status& status, uint32_t) {
              if (!status.ok()) return Complete(operation, status);
              if (operation->endpoint->closing) {
                return Complete(operation, operation->endpoint->reason);
              }
              SendMessage(operation, direct ? MessageType::kDeviceData : MessageType::kData,
                          SlotMemory(*operation));
            });
}

// Leaves operation->announced set exactly while UCX's description of the message is in use.
void UcxNode::StageReceive(Operation* operation) {
  if (TakeSlot(operation)) PostStagedReceive(operation);
}

void UcxNode::PostStagedReceive(Operation* operation) {
  if (operation->announced == nullptr) {  // it came whole
    std::memcpy(operation->slot, operation->bytes.data(), operation->length);
    return Complete(operation, absl::OkStatus());
  }
  if (!PostReceive(operation, operation->announced, SlotMemory(*operation))) {
    operation->announced = nullptr;
  }
}

bool UcxNode::ContinueStaged(Operation* operation) {
  if (operation->kind != Kind::kReceive || operation->slot == nullptr || operation->landing ||
      !operation->status.ok()) {
    return false;
  }
  operation->landing = true;
  const auto direction = operation->path == DataPath::kDirect
                             ? DeviceMemory::Direction::kOnDevice
                             : DeviceMemory::Direction::kToDevice;
  jobs_.Add(operation->parts.empty()
                ? device()->StartCopy(direction, operation->data, operation->slot,
                                      operation->length)
                : device()->StartScatter(direction, operation->parts, operation->slot),
            [this, operation](const absl::Status& status, uint32_t) {
              Complete(operation, status);
            });
  return true;
}

void UcxNode::ReleaseSlot(Operation* operation) {
  if (operation->slot == nullptr) return;
  Stage& stage = StageOf(*operation);
  stage.buffer.Give(operation->slot);
  operation->slot = nullptr;
  // In the order in which they came. One that failed is out of the way.
  std::deque<Operation*> waiting;
  waiting.swap(stage.waiting);
  while (!waiting.empty() && stage.waiting.empty()) {
    Operation* next = waiting.front();
    waiting.pop_front();
    if (next->kind == Kind::kSend) {
      StageSend(next);
    } else {
      StageReceive(next);
    }
  }
  stage.waiting.insert(stage.waiting.end(), waiting.begin(), waiting.end());
}

void UcxNode::DropWaiting(Endpoint& endpoint) {
  for (Operation* operation : endpoint.held) Complete(operation, endpoint.reason);
  endpoint.held.clear();
  for (Stage* stage : {&pinned_sends_, &pinned_receives_, &device_sends_, &device_receives_}) {
    for (Operation*& operation : stage->waiting) {
      if (operation->endpoint != &endpoint) continue;
      if (operation->announced != nullptr) {
        ucp_am_data_release(worker_.get(), std::exchange(operation->announced, nullptr));
      }
      Complete(std::exchange(operation, nullptr), endpoint.reason);
    }
    stage->waiting.erase(std::remove(stage->waiting.begin(), stage->waiting.end(), nullptr),
                         stage->waiting.end());
  }
}

}  // namespace hyserve::kv_transfer
