#include "kv_transfer/progress_loop.h"

#include <chrono>

namespace hyserve::kv_transfer {

ClockTime SteadyNow() {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

ProgressLoop::ProgressLoop(std::function<void()> wake, std::function<ClockTime()> clock)
    : wake_(std::move(wake)), clock_(std::move(clock)) {}

void ProgressLoop::Post(std::function<void()> job) {
  bool first = false;
  {
    absl::MutexLock lock(&mutex_);
    first = jobs_.empty();
    jobs_.push_back(std::move(job));
  }
  if (first) wake_();
}

bool ProgressLoop::HasJobs() const {
  absl::MutexLock lock(&mutex_);
  return !jobs_.empty();
}

uint64_t ProgressLoop::RunAt(ClockTime when, std::function<void()> job) {
  const uint64_t timer = next_timer_++;
  timers_.emplace(std::make_pair(when, timer), std::move(job));
  timer_times_.emplace(timer, when);
  return timer;
}

void ProgressLoop::CancelTimer(uint64_t timer) {
  const auto it = timer_times_.find(timer);
  if (it == timer_times_.end()) return;
  timers_.erase({it->second, timer});
  timer_times_.erase(it);
}

bool ProgressLoop::RunReady() {
  {
    absl::MutexLock lock(&mutex_);
    running_.swap(jobs_);
  }
  bool any = !running_.empty();
  for (std::function<void()>& job : running_) job();
  running_.clear();
  if (timers_.empty()) return any;
  const ClockTime now = clock_();
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
    const auto node = timers_.extract(timers_.begin());
    timer_times_.erase(node.key().second);
    node.mapped()();
    any = true;
  }
  return any;
}

ClockTime ProgressLoop::NextTimer() const {
  return timers_.empty() ? absl::InfiniteDuration() : timers_.begin()->first.first;
}

}  // namespace hyserve::kv_transfer
