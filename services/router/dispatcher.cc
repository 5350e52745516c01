#include "services/router/dispatcher.h"

#include <utility>

#include "absl/time/clock.h"
#include "services/common/status_mapping.h"

namespace hyserve::router {
namespace {

absl::Status NeverFits() {
  return absl::ResourceExhaustedError(
      "prompt: prompt and max_tokens need more KV memory than any worker has");
}

absl::Status DeadlineTooClose(absl::Duration predicted) {
  return common::WithRetryDelay(
      absl::ResourceExhaustedError("overloaded: the first token is expected after the deadline"),
      predicted);
}

}  // namespace

Dispatcher::Dispatcher(DispatcherOptions options, WorkerRegistry* registry,
                       common::TimerQueue* timers, RouterMetrics* metrics)
    : options_(options),
      registry_(registry),
      timers_(timers),
      metrics_(metrics),
      queue_(options.admission),
      retries_(options.retry_budget_ratio) {}

AssignmentResult Dispatcher::Assign(const RouteRequest& request,
                                    std::weak_ptr<WorkerLostListener> target, absl::Time now) {
  AssignmentResult result = registry_->Assign(request, std::move(target), now);
  if (metrics_ != nullptr && result.result == PickResult::kPicked) {
    metrics_->OnDecision(absl::Now() - now, result.assignment.cached_tokens);
  }
  return result;
}

Dispatcher::Result Dispatcher::Submit(const RouteRequest& request,
                                      std::shared_ptr<DispatchTarget> target, absl::Time deadline,
                                      bool retry, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  if (!retry) retries_.OnRequest();
  // Nobody overtakes the queue.
  if (queue_.size() == 0) {
    AssignmentResult result = Assign(request, target, now);
    if (result.result == PickResult::kPicked) {
      const absl::Duration predicted = absl::Milliseconds(result.assignment.predicted_ttft_ms);
      if (!retry && result.assignment.measured && now + predicted > deadline) {
        registry_->ReleasePrefill(result.assignment.booking);
        registry_->ReleaseDecode(result.assignment.booking);
        return DeadlineTooClose(predicted);
      }
      return std::move(result.assignment);
    }
    if (result.result == PickResult::kNeverFits) return NeverFits();
  }
  const Ticket ticket = next_ticket_++;
  absl::Status pushed = queue_.Push(ticket, request.routing.prompt_tokens, deadline, retry, now);
  if (!pushed.ok()) return pushed;
  Item item{request, target, deadline, 0};
  item.timer =
      timers_->Schedule(now + options_.max_queue_time, [this, ticket] { OnTimeout(ticket); });
  items_.emplace(ticket, std::move(item));
  waiting_.store(queue_.size());
  return ticket;
}

bool Dispatcher::Withdraw(Ticket ticket) {
  absl::MutexLock lock(&mutex_);
  const auto item = items_.find(ticket);
  if (item == items_.end()) return false;
  timers_->Cancel(item->second.timer);
  items_.erase(item);
  queue_.Remove(ticket);
  waiting_.store(queue_.size());
  return true;
}

void Dispatcher::OnTimeout(Ticket ticket) {
  std::shared_ptr<DispatchTarget> target;
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    const auto item = items_.find(ticket);
    if (item == items_.end()) return;
    target = item->second.target.lock();
    items_.erase(item);
    queue_.Remove(ticket);
    waiting_.store(queue_.size());
    const bool workers = registry_->stats(absl::Now()).can_serve;
    status = workers ? absl::ResourceExhaustedError("overloaded: waited too long for a worker")
                     : absl::UnavailableError("no_capacity: no worker to serve the request");
    status = common::WithRetryDelay(std::move(status), queue_.RetryDelay());
  }
  if (target != nullptr) target->OnNotAssigned(status);
}

void Dispatcher::Pump() {
  while (waiting_.load() > 0) {
    std::shared_ptr<DispatchTarget> target;
    AssignmentResult result;
    {
      absl::MutexLock lock(&mutex_);
      const std::optional<Ticket> ticket = queue_.Front();
      if (!ticket.has_value()) return;
      const auto item = items_.find(*ticket);
      target = item->second.target.lock();
      const absl::Time now = absl::Now();
      if (target != nullptr) {
        result = Assign(item->second.request, target, now);
        if (result.result == PickResult::kBusy || result.result == PickResult::kNoWorkers) return;
      }
      timers_->Cancel(item->second.timer);
      items_.erase(item);
      queue_.PopFront(now);
      waiting_.store(queue_.size());
    }
    if (target == nullptr) continue;
    if (result.result == PickResult::kPicked) {
      target->OnAssigned(result.assignment);
    } else {
      target->OnNotAssigned(NeverFits());
    }
  }
}

void Dispatcher::ReleasePrefill(BookingId booking) {
  registry_->ReleasePrefill(booking);
  Pump();
}

void Dispatcher::ReleaseDecode(BookingId booking) {
  registry_->ReleaseDecode(booking);
  Pump();
}

bool Dispatcher::TryRetry() {
  absl::MutexLock lock(&mutex_);
  return retries_.TryRetry();
}

int32_t Dispatcher::queued_requests() const {
  absl::MutexLock lock(&mutex_);
  return queue_.size();
}

int64_t Dispatcher::queued_tokens() const {
  absl::MutexLock lock(&mutex_);
  return queue_.tokens();
}

}  // namespace hyserve::router
