// Calls functions at times, on one thread of its own. For deadlines and other rare events: a
// Schedule() or Cancel() takes a lock that all users share.
#ifndef HYSERVE_SERVICES_COMMON_TIMER_QUEUE_H_
#define HYSERVE_SERVICES_COMMON_TIMER_QUEUE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace hyserve::common {

using TimerId = uint64_t;  // never 0

// Thread-safe.
class TimerQueue {
 public:
  TimerQueue();
  ~TimerQueue();  // Stop()
  TimerQueue(const TimerQueue&) = delete;
  TimerQueue& operator=(const TimerQueue&) = delete;

  // `call` must not block. It may use the queue.
  TimerId Schedule(absl::Time when, std::function<void()> call);
  TimerId ScheduleAfter(absl::Duration delay, std::function<void()> call);
  // True if the function will not run; false if it ran, runs now or is unknown.
  bool Cancel(TimerId id);
  // Functions that are not due yet, and those that are scheduled later, are dropped; a running one
  // is waited for. Not from two threads at once, nor from a function of the queue.
  void Stop();

 private:
  using Key = std::pair<absl::Time, TimerId>;
  void Run();

  absl::Mutex mutex_;
  std::map<Key, std::function<void()>> calls_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<TimerId, absl::Time> times_ ABSL_GUARDED_BY(mutex_);
  TimerId next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  bool changed_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace hyserve::common

#endif  // HYSERVE_SERVICES_COMMON_TIMER_QUEUE_H_
