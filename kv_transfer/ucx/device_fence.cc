#include "kv_transfer/ucx/device_fence.h"

#include <utility>

namespace hyserve::kv_transfer {

DeviceFence::~DeviceFence() {
  if (thread_.joinable()) thread_.join();
}

void DeviceFence::Add(std::function<void()> done) {
  waiting_.push_back(std::move(done));
  StartIfNeeded();
}

void DeviceFence::StartIfNeeded() {
  if (thread_.joinable() || waiting_.empty()) return;
  running_.swap(waiting_);
  thread_ = std::thread([this] {
    device_->Synchronize().IgnoreError();
    {
      absl::MutexLock lock(&mutex_);
      ended_ = true;
    }
    wake_();
  });
}

bool DeviceFence::RunDone() {
  if (!thread_.joinable()) return false;
  {
    absl::MutexLock lock(&mutex_);
    if (!std::exchange(ended_, false)) return false;
  }
  thread_.join();
  const std::vector<std::function<void()>> done = std::exchange(running_, {});
  StartIfNeeded();
  for (const std::function<void()>& call : done) call();
  return true;
}

}  // namespace hyserve::kv_transfer
