// Gives requests to workers: at once where there is room, else through the admission queue.
//
// Thread-safe. Targets are called without the dispatcher's lock.
#ifndef HYSERVE_SERVICES_ROUTER_DISPATCHER_H_
#define HYSERVE_SERVICES_ROUTER_DISPATCHER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <variant>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/common/timer_queue.h"
#include "services/router/admission.h"
#include "services/router/router_metrics.h"
#include "services/router/worker_registry.h"

namespace hyserve::router {

// Who waits in the queue.
class DispatchTarget : public WorkerLostListener {
 public:
  // Exactly one of both for each queued Submit() that was not withdrawn.
  virtual void OnAssigned(const Assignment& assignment) = 0;
  virtual void OnNotAssigned(const absl::Status& status) = 0;
};

struct DispatcherOptions {
  AdmissionLimits admission;
  absl::Duration max_queue_time = absl::Seconds(60);
  double retry_budget_ratio = 0.1;
};

class Dispatcher {
 public:
  // All must outlive the dispatcher; `metrics` may be null.
  Dispatcher(DispatcherOptions options, WorkerRegistry* registry, common::TimerQueue* timers,
             RouterMetrics* metrics);

  // An assignment, a place in the queue, or why neither: RESOURCE_EXHAUSTED (overload, with a
  // RetryInfo; or larger than every worker's memory). `retry`: admitted before, goes to the front.
  using Result = std::variant<Assignment, Ticket, absl::Status>;
  Result Submit(const RouteRequest& request, std::shared_ptr<DispatchTarget> target,
                absl::Time deadline, bool retry, absl::Time now);
  // Leaves the queue. False: an answer is on its way.
  bool Withdraw(Ticket ticket);

  void ReleasePrefill(BookingId booking);
  void ReleaseDecode(BookingId booking);
  // Something may have become possible: a load report, a new worker, a release.
  void Pump();

  // A retry now? Counts against a budget over all requests.
  bool TryRetry();

  int32_t queued_requests() const;
  int64_t queued_tokens() const;

 private:
  struct Item {
    RouteRequest request;
    std::weak_ptr<DispatchTarget> target;
    absl::Time deadline;
    common::TimerId timer = 0;
  };

  void OnTimeout(Ticket ticket);
  AssignmentResult Assign(const RouteRequest& request, std::weak_ptr<WorkerLostListener> target,
                          absl::Time now);

  const DispatcherOptions options_;
  WorkerRegistry* const registry_;
  common::TimerQueue* const timers_;
  RouterMetrics* const metrics_;

  mutable absl::Mutex mutex_;
  AdmissionQueue queue_ ABSL_GUARDED_BY(mutex_);
  RetryBudget retries_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<Ticket, Item> items_ ABSL_GUARDED_BY(mutex_);
  Ticket next_ticket_ ABSL_GUARDED_BY(mutex_) = 1;
  std::atomic<int> waiting_{0};  // queue_.size(), for Pump() without a lock
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_DISPATCHER_H_
