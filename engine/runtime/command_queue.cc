#include "engine/runtime/command_queue.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace hyserve::runtime {

void CommandQueue::Push(Command command) {
  commands_.push_back(std::move(command));
  changed_.Signal();
}

absl::Status CommandQueue::Add(SequenceRequest request, std::shared_ptr<EventSink> sink) {
  absl::MutexLock lock(&mutex_);
  if (stopped_) return absl::UnavailableError("the engine is shutting down");
  const SequenceId id = request.id;
  if (live_.contains(id)) {
    return absl::AlreadyExistsError(absl::StrCat("sequence ", id, " is live"));
  }
  if (waiting_ >= max_waiting_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", max_waiting_, " sequences wait"));
  }
  live_.emplace(id, Live{});
  ++waiting_;
  ++pending_.sequences;
  pending_.prompt_tokens += static_cast<int64_t>(request.prompt.size());
  Push({.kind = Command::Kind::kAdd, .id = id, .request = std::move(request),
        .sink = std::move(sink)});
  return absl::OkStatus();
}

void CommandQueue::Resume(SequenceId id, int32_t first_token) {
  absl::MutexLock lock(&mutex_);
  const auto live = live_.find(id);
  if (live == live_.end() || std::exchange(live->second.resumed, true)) return;
  Push({.kind = Command::Kind::kResume, .id = id, .first_token = first_token});
}

void CommandQueue::Cancel(SequenceId id) {
  absl::MutexLock lock(&mutex_);
  const auto live = live_.find(id);
  if (live == live_.end() || std::exchange(live->second.cancelled, true)) return;
  Push({.kind = Command::Kind::kCancel, .id = id});
}

void CommandQueue::Release(SequenceId id) {
  absl::MutexLock lock(&mutex_);
  const auto live = live_.find(id);
  if (live == live_.end() || std::exchange(live->second.released, true)) return;
  Push({.kind = Command::Kind::kRelease, .id = id});
}

void CommandQueue::Stop() {
  absl::MutexLock lock(&mutex_);
  stopped_ = true;
  changed_.Signal();
}

CommandQueue::Pending CommandQueue::pending() const {
  absl::MutexLock lock(&mutex_);
  return pending_;
}

CommandQueue::Batch CommandQueue::Take(absl::Time until) {
  absl::MutexLock lock(&mutex_);
  while (commands_.empty() && !stopped_) {
    if (changed_.WaitWithDeadline(&mutex_, until)) break;  // timed out
  }
  pending_ = {};
  return {.commands = std::exchange(commands_, {}), .stop = stopped_};
}

void CommandQueue::LeftQueue(SequenceId id) {
  absl::MutexLock lock(&mutex_);
  const auto live = live_.find(id);
  if (live == live_.end() || !std::exchange(live->second.waiting, false)) return;
  --waiting_;
}

void CommandQueue::Forget(SequenceId id) {
  absl::MutexLock lock(&mutex_);
  const auto live = live_.find(id);
  if (live == live_.end()) return;
  waiting_ -= live->second.waiting;
  live_.erase(live);
}

}  // namespace hyserve::runtime
