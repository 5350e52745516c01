// The waits of a pull: every one ends by a clock, and what each clock does.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kv_transfer/import_table.h"

namespace hyserve::kv_transfer {

ClockTime ImportTable::StuckAt(const Import& import) const {
  if (import.in_flight == 0 && !import.final) return absl::InfiniteDuration();
  ClockTime progress = import.last_progress;
  const auto it = endpoint_progress_.find(import.endpoint);
  if (it != endpoint_progress_.end()) progress = std::max(progress, it->second);
  return progress + config_.options.progress_timeout;
}

void ImportTable::Schedule(Import& import) {
  const ClockTime next =
      import.failure ? import.force_at
                     : std::min({import.deadline, import.transfer_deadline, import.renew_at,
                                 StuckAt(import),
                                 import.last_heard + config_.options.silence_timeout});
  // A later time needs no new entry: the old one fires early, finds nothing to do and is renewed.
  if (next == import.timer || (next > import.timer && !import.failure)) return;
  if (import.timer != absl::InfiniteDuration()) {
    auto [begin, end] = timers_.equal_range(import.timer);
    while (begin != end && begin->second != import.spec.id) ++begin;
    if (begin != end) timers_.erase(begin);
  }
  import.timer = next;
  if (next != absl::InfiniteDuration()) timers_.emplace(next, import.spec.id);
}

void ImportTable::CheckClocks(Import& import, ClockTime now, Actions& actions) {
  if (import.failure) {
    stats_.forced_closes.Add();
    actions.push_back(CloseEndpoint{import.endpoint});
    import.force_at = absl::InfiniteDuration();  // once: the close ends the receives
    Schedule(import);
    return;
  }
  if (import.deadline <= now) {
    Fail(import, absl::DeadlineExceededError("the request's deadline passed during the hand-off"),
         Tell::kRelease, false, now, actions);
  } else if (import.transfer_deadline <= now) {
    Fail(import, absl::DeadlineExceededError("the hand-off is slower than the link's floor"),
         Tell::kCancel, true, now, actions);
  } else if (StuckAt(import) <= now) {
    Fail(import, absl::DeadlineExceededError("the hand-off made no progress"), Tell::kCancel, true,
         now, actions);
  } else if (import.last_heard + config_.options.silence_timeout <= now) {
    Fail(import, absl::DeadlineExceededError("the prefill worker is silent"), Tell::kCancel, true,
         now, actions);
  } else {
    if (import.renew_at <= now) {
      import.renew_at = now + config_.options.renew_interval;
      actions.push_back(SendControl{import.endpoint, {import.envelope, RenewBody{}}});
    }
    Schedule(import);
  }
}

void ImportTable::OnTimer(ClockTime now, Actions& actions) {
  while (!timers_.empty() && timers_.begin()->first <= now) {
    Import& import = imports_.at(timers_.begin()->second);
    timers_.erase(timers_.begin());
    import.timer = absl::InfiniteDuration();
    CheckClocks(import, now, actions);
  }
  if (next_commit_timer_ > now) return;
  next_commit_timer_ = absl::InfiniteDuration();
  for (auto it = committing_.begin(); it != committing_.end();) {
    Committing& commit = it->second;
    if (commit.give_up <= now) {
      committing_.erase(it++);
      continue;
    }
    if (commit.retry_at <= now) {
      commit.retry_at = now + config_.options.commit_retry;
      actions.push_back(SendControl{commit.endpoint, {commit.envelope, CommitBody{}}});
    }
    next_commit_timer_ = std::min(next_commit_timer_, commit.retry_at);
    ++it;
  }
}

ClockTime ImportTable::NextTimer() const {
  return timers_.empty() ? next_commit_timer_
                         : std::min(next_commit_timer_, timers_.begin()->first);
}

std::string ImportTable::CheckInvariants() const {
  int64_t in_flight = 0;
  size_t timers = 0;
  for (const auto& [id, import] : imports_) {
    in_flight += import.in_flight;
    timers += import.timer == absl::InfiniteDuration() ? 0 : 1;
    if (import.in_flight < 0) return absl::StrCat(id.Short(), ": receives below zero");
    if (import.failure && import.in_flight == 0) {
      return absl::StrCat(id.Short(), ": quiet, not finished");
    }
    if (!import.failure && import.timer == absl::InfiniteDuration()) {
      return absl::StrCat(id.Short(), ": waits without a clock");
    }
    if (import.landed.blocks > BlocksBytes(import) ||
        import.landed.slab > config_.layout.slab_bytes) {
      return absl::StrCat(id.Short(), ": more bytes than the hand-off has");
    }
  }
  if (config_.options.fences.quiesce && in_flight != static_cast<int64_t>(receives_.size())) {
    return absl::StrCat("receives of pulls ", in_flight, ", operations ", receives_.size());
  }
  if (timers != timers_.size())
    return absl::StrCat("pulls with timer ", timers, " of ", timers_.size());
  return "";
}

}  // namespace hyserve::kv_transfer
