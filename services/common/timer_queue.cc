#include "services/common/timer_queue.h"

#include <algorithm>

#include "absl/time/clock.h"

namespace hyserve::common {

TimerQueue::TimerQueue() : thread_([this] { Run(); }) {}

TimerQueue::~TimerQueue() { Stop(); }

void TimerQueue::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
  std::map<Key, std::function<void()>> dropped;  // destroyed outside the lock, as in Cancel()
  absl::MutexLock lock(&mutex_);
  dropped.swap(calls_);
  times_.clear();
}

TimerId TimerQueue::Schedule(absl::Time when, std::function<void()> call) {
  absl::MutexLock lock(&mutex_);
  const TimerId id = next_id_++;
  if (stopping_) return id;
  changed_ |= calls_.empty() || when < calls_.begin()->first.first;
  calls_.emplace(Key(when, id), std::move(call));
  times_.emplace(id, when);
  return id;
}

TimerId TimerQueue::ScheduleAfter(absl::Duration delay, std::function<void()> call) {
  return Schedule(absl::Now() + delay, std::move(call));
}

bool TimerQueue::Cancel(TimerId id) {
  std::function<void()> dropped;  // destroyed outside the lock: it may own what uses the queue
  absl::MutexLock lock(&mutex_);
  const auto time = times_.find(id);
  if (time == times_.end()) return false;
  const auto call = calls_.find(Key(time->second, id));
  dropped = std::move(call->second);
  calls_.erase(call);
  times_.erase(time);
  return true;
}

void TimerQueue::Run() {
  absl::MutexLock lock(&mutex_);
  const auto wake = [this]()
                        ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return changed_ || stopping_; };
  while (!stopping_) {
    const absl::Time next = calls_.empty() ? absl::InfiniteFuture() : calls_.begin()->first.first;
    if (absl::Now() < next) {
      mutex_.AwaitWithDeadline(absl::Condition(&wake), next);
      changed_ = false;
      continue;
    }
    std::function<void()> call = std::move(calls_.begin()->second);
    times_.erase(calls_.begin()->first.second);
    calls_.erase(calls_.begin());
    mutex_.Unlock();
    call();
    call = nullptr;
    mutex_.Lock();
  }
}

}  // namespace hyserve::common
