#include "services/router/admission.h"

#include <algorithm>

#include "base/strings.h"
#include "services/common/status_mapping.h"

namespace hyserve::router {
namespace {

constexpr double kSmoothing = 0.1;
constexpr absl::Duration kMinRetryDelay = absl::Milliseconds(100);
constexpr absl::Duration kMaxRetryDelay = absl::Seconds(30);

}  // namespace

absl::Duration AdmissionQueue::ExpectedWait() const {
  return interval_ * static_cast<double>(entries_.size());
}

absl::Duration AdmissionQueue::RetryDelay() const {
  return std::clamp(ExpectedWait(), kMinRetryDelay, kMaxRetryDelay);
}

absl::Status AdmissionQueue::Push(Ticket ticket, int64_t prompt_tokens, absl::Time deadline,
                                  bool front, absl::Time now) {
  if (!front) {
    const auto refuse = [this](std::string_view what) {
      return common::WithRetryDelay(
          absl::ResourceExhaustedError(StrCat("overloaded: ", what)), RetryDelay());
    };
    if (size() >= limits_.queued_requests) return refuse("the queue of requests is full");
    if (tokens_ + prompt_tokens > limits_.queued_tokens && !entries_.empty()) {
      return refuse("the queue of prompt tokens is full");
    }
    if (now + ExpectedWait() > deadline) return refuse("the queue is longer than the deadline");
  }
  if (entries_.empty()) last_departure_ = now;  // an idle time is no interval
  const auto place = entries_.insert(front ? entries_.begin() : entries_.end(),
                                     Entry{ticket, prompt_tokens});
  tickets_.emplace(ticket, place);
  tokens_ += prompt_tokens;
  return absl::OkStatus();
}

std::optional<Ticket> AdmissionQueue::Front() const {
  if (entries_.empty()) return std::nullopt;
  return entries_.front().ticket;
}

void AdmissionQueue::PopFront(absl::Time now) {
  const absl::Duration interval = now - last_departure_;
  interval_ = interval_ == absl::ZeroDuration()
                  ? interval
                  : interval_ * (1 - kSmoothing) + interval * kSmoothing;
  last_departure_ = now;
  Erase(entries_.begin());
}

bool AdmissionQueue::Remove(Ticket ticket) {
  const auto found = tickets_.find(ticket);
  if (found == tickets_.end()) return false;
  Erase(found->second);
  return true;
}

void AdmissionQueue::Erase(Entries::iterator entry) {
  tokens_ -= entry->tokens;
  tickets_.erase(entry->ticket);
  entries_.erase(entry);
}

}  // namespace hyserve::router
