// Jobs and timers of one progress thread: the part that every transport shares. It has no thread of
// its own; its owner calls RunReady() and sleeps until NextTimer() or until woken.
#ifndef HYSERVE_KV_TRANSFER_PROGRESS_LOOP_H_
#define HYSERVE_KV_TRANSFER_PROGRESS_LOOP_H_

#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "kv_transfer/ticket.h"

namespace hyserve::kv_transfer {

class ProgressLoop {
 public:
  // `wake` is called from any thread when a job was posted to an empty queue; `clock` on the
  // progress thread and by Now().
  ProgressLoop(std::function<void()> wake, std::function<ClockTime()> clock);

  // Any thread.
  void Post(std::function<void()> job);
  ClockTime Now() const { return clock_(); }
  bool HasJobs() const;

  // Progress thread.
  uint64_t RunAt(ClockTime when, std::function<void()> job);
  void CancelTimer(uint64_t timer);
  // Runs every job that is queued now and every timer that is due; true if there was any.
  bool RunReady();
  ClockTime NextTimer() const;

 private:
  const std::function<void()> wake_;
  const std::function<ClockTime()> clock_;
  mutable absl::Mutex mutex_;
  std::vector<std::function<void()>> jobs_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::function<void()>> running_;
  std::map<std::pair<ClockTime, uint64_t>, std::function<void()>> timers_;
  absl::flat_hash_map<uint64_t, ClockTime> timer_times_;
  uint64_t next_timer_ = 1;
};

// Steady time of this process.
ClockTime SteadyNow();

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_PROGRESS_LOOP_H_
