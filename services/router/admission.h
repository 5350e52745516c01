// The bounded queue in front of the workers, and the arithmetic of refusing. Not thread-safe; the
// clock is the caller's.
#ifndef HYSERVE_SERVICES_ROUTER_ADMISSION_H_
#define HYSERVE_SERVICES_ROUTER_ADMISSION_H_

#include <cstdint>
#include <list>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"

namespace hyserve::router {

using Ticket = uint64_t;  // of a queued request; never 0

struct AdmissionLimits {
  int32_t queued_requests = 4096;
  int64_t queued_tokens = 32'000'000;
};

// First in, first out, except that retries of admitted requests go to the front.
class AdmissionQueue {
 public:
  explicit AdmissionQueue(const AdmissionLimits& limits) : limits_(limits) {}

  // RESOURCE_EXHAUSTED with a RetryInfo: the queue is full, or the wait is expected to outlast the
  // deadline. A retry (`front`) is never refused: it was admitted before.
  absl::Status Push(Ticket ticket, int64_t prompt_tokens, absl::Time deadline, bool front,
                    absl::Time now);
  std::optional<Ticket> Front() const;
  // A request left the queue for a worker.
  void PopFront(absl::Time now);
  // False: not in the queue.
  bool Remove(Ticket ticket);

  int32_t size() const { return static_cast<int32_t>(tickets_.size()); }
  int64_t tokens() const { return tokens_; }
  // What a newcomer would wait; zero before anything was measured.
  absl::Duration ExpectedWait() const;
  // What a refused client is told.
  absl::Duration RetryDelay() const;

 private:
  struct Entry {
    Ticket ticket;
    int64_t tokens;
  };
  using Entries = std::list<Entry>;
  void Erase(Entries::iterator entry);

  const AdmissionLimits limits_;
  Entries entries_;
  absl::flat_hash_map<Ticket, Entries::iterator> tickets_;
  int64_t tokens_ = 0;
  // Moving average of the time between two departures while somebody waits.
  absl::Duration interval_ = absl::ZeroDuration();
  absl::Time last_departure_ = absl::InfinitePast();
};

// Lets retries be at most a part of all requests, so that a broken cluster is not flooded by them.
// Not thread-safe.
class RetryBudget {
 public:
  // `ratio` retries per request, saved up to `burst`.
  explicit RetryBudget(double ratio, double burst = 10)
      : ratio_(ratio), burst_(burst), saved_(burst) {}
  void OnRequest() { saved_ = saved_ + ratio_ < burst_ ? saved_ + ratio_ : burst_; }
  bool TryRetry() {
    if (saved_ < 1) return false;
    saved_ -= 1;
    return true;
  }

 private:
  const double ratio_;
  const double burst_;
  double saved_;
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_ADMISSION_H_
