#include "services/worker/attempt_table.h"

#include <utility>

#include "base/strings.h"

namespace hyserve::worker {

absl::Status AttemptTable::Enter(const std::string& request_id, uint32_t attempt,
                                 std::shared_ptr<Attempt> self) {
  std::shared_ptr<Attempt> superseded;
  {
    absl::MutexLock lock(&mutex_);
    Entry& entry = entries_[request_id];
    if (entry.self != nullptr && entry.computes && attempt <= entry.attempt) {
      return absl::AbortedError(StrCat(kStaleAttempt, "attempt ", entry.attempt,
                                       " of this request runs, ", attempt, " is not newer"));
    }
    superseded = std::exchange(entry.self, std::move(self));
    entry.attempt = attempt;
    entry.computes = true;
  }
  if (superseded != nullptr) superseded->OnSuperseded();
  return absl::OkStatus();
}

void AttemptTable::Retire(const std::string& request_id, const Attempt* self) {
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(request_id);
  if (found != entries_.end() && found->second.self.get() == self) found->second.computes = false;
}

void AttemptTable::Leave(const std::string& request_id, const Attempt* self) {
  std::shared_ptr<Attempt> gone;  // released without the lock
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(request_id);
  if (found == entries_.end() || found->second.self.get() != self) return;
  gone = std::move(found->second.self);
  entries_.erase(found);
}

int64_t AttemptTable::size() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int64_t>(entries_.size());
}

}  // namespace hyserve::worker
