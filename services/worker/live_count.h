// How many things are alive, and a way to wait until none is.
#ifndef HYSERVE_SERVICES_WORKER_LIVE_COUNT_H_
#define HYSERVE_SERVICES_WORKER_LIVE_COUNT_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace hyserve::worker {

// Thread-safe.
class LiveCount {
 public:
  void Enter() {
    absl::MutexLock lock(&mutex_);
    ++count_;
  }
  void Leave() {
    absl::MutexLock lock(&mutex_);
    --count_;
  }
  int64_t value() const {
    absl::MutexLock lock(&mutex_);
    return count_;
  }
  // False: still not 0 after `timeout`.
  bool WaitForNone(absl::Duration timeout) const {
    absl::MutexLock lock(&mutex_);
    const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return count_ == 0; };
    return mutex_.AwaitWithTimeout(absl::Condition(&none), timeout);
  }

 private:
  mutable absl::Mutex mutex_;
  int64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace hyserve::worker

#endif  // HYSERVE_SERVICES_WORKER_LIVE_COUNT_H_
