// Staged messages of the UCX transport: device memory by way of pinned host memory of our own, for
// pairs without a direct path. A send waits for room, is copied out of the device, then sent; a
// receive waits for room, is received, then copied into the device. Copies, wire and copies of
// several messages overlap. Sends and receives have separate memory, so that two processes that
// send to each other cannot wait for each other.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kv_transfer/ucx/ucx_node.h"

namespace hyserve::kv_transfer {

void UcxNode::StageSend(Operation* operation) {
  operation->path = DataPath::kStaged;
  if (waiting_sends_.empty()) {
    const absl::StatusOr<char*> slot = send_staging_.Take(operation->length);
    if (!slot.ok()) return Complete(operation, slot.status());
    operation->slot = *slot;
  }
  if (operation->slot == nullptr) {
    waiting_sends_.push_back(operation);
    return;
  }
  jobs_.Add(device()->StartCopy(DeviceMemory::Direction::kToHost, operation->slot, operation->data,
                                operation->length),
            [this, operation](const absl::Status& status, uint32_t) {
              if (!status.ok()) return Complete(operation, status);
              if (operation->endpoint->closing) {
                return Complete(operation, operation->endpoint->reason);
              }
              SendMessage(operation, MessageType::kData, MemoryHandle{});
            });
}

// Leaves operation->announced set exactly while UCX's description of the message is in use.
void UcxNode::StageReceive(Operation* operation) {
  if (waiting_receives_.empty()) {
    const absl::StatusOr<char*> slot = receive_staging_.Take(operation->length);
    if (!slot.ok()) {
      operation->announced = nullptr;
      return Complete(operation, slot.status());
    }
    operation->slot = *slot;
  }
  if (operation->slot == nullptr) {
    waiting_receives_.push_back(operation);
    return;
  }
  PostStagedReceive(operation);
}

void UcxNode::PostStagedReceive(Operation* operation) {
  if (operation->announced == nullptr) {  // it came whole
    std::memcpy(operation->slot, operation->bytes.data(), operation->length);
    return Complete(operation, absl::OkStatus());
  }
  if (!PostReceive(operation, operation->announced, MemoryHandle{})) operation->announced = nullptr;
}

bool UcxNode::ContinueStaged(Operation* operation) {
  if (operation->kind != Kind::kReceive || operation->slot == nullptr || operation->uploaded ||
      !operation->status.ok()) {
    return false;
  }
  operation->uploaded = true;
  jobs_.Add(device()->StartCopy(DeviceMemory::Direction::kToDevice, operation->data,
                                operation->slot, operation->length),
            [this, operation](const absl::Status& status, uint32_t) {
              Complete(operation, status);
            });
  return true;
}

void UcxNode::ReleaseSlot(Operation* operation) {
  if (operation->slot == nullptr) return;
  const bool sent = operation->kind == Kind::kSend;
  (sent ? send_staging_ : receive_staging_).Give(operation->slot);
  operation->slot = nullptr;
  // In the order in which they came. One that failed is out of the way.
  std::deque<Operation*> waiting;
  waiting.swap(sent ? waiting_sends_ : waiting_receives_);
  while (!waiting.empty()) {
    Operation* next = waiting.front();
    waiting.pop_front();
    if (sent) {
      StageSend(next);
    } else {
      StageReceive(next);
    }
    std::deque<Operation*>& still = sent ? waiting_sends_ : waiting_receives_;
    if (still.empty()) continue;
    still.insert(still.end(), waiting.begin(), waiting.end());
    return;
  }
}

void UcxNode::DropWaiting(Endpoint& endpoint) {
  for (Operation* operation : endpoint.held) Complete(operation, endpoint.reason);
  endpoint.held.clear();
  for (std::deque<Operation*>* waiting : {&waiting_sends_, &waiting_receives_}) {
    for (Operation*& operation : *waiting) {
      if (operation->endpoint != &endpoint) continue;
      if (operation->announced != nullptr) {
        ucp_am_data_release(worker_.get(), std::exchange(operation->announced, nullptr));
      }
      Complete(std::exchange(operation, nullptr), endpoint.reason);
    }
    waiting->erase(std::remove(waiting->begin(), waiting->end(), nullptr), waiting->end());
  }
}

}  // namespace hyserve::kv_transfer
