// Waits, on a thread of its own, until a device has finished all that was enqueued on it: after a
// failed receive nobody else knows whether a copy into its memory still runs. Several waits that
// come together cost one synchronisation.
#ifndef HYSERVE_KV_TRANSFER_UCX_DEVICE_FENCE_H_
#define HYSERVE_KV_TRANSFER_UCX_DEVICE_FENCE_H_

#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "kv_transfer/device_memory.h"

namespace hyserve::kv_transfer {

class DeviceFence {
 public:
  // `wake` is called from the fence's thread when something has ended.
  DeviceFence(DeviceMemory* device, std::function<void()> wake)
      : device_(device), wake_(std::move(wake)) {}
  ~DeviceFence();  // waits for a running synchronisation

  // One thread calls these two. `done` comes from RunDone(); also when the device has failed: then
  // nothing runs on it any more.
  void Add(std::function<void()> done);
  bool RunDone();

 private:
  void StartIfNeeded();

  DeviceMemory* const device_;
  const std::function<void()> wake_;
  std::vector<std::function<void()>> waiting_;
  std::vector<std::function<void()>> running_;
  std::thread thread_;
  absl::Mutex mutex_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_UCX_DEVICE_FENCE_H_
