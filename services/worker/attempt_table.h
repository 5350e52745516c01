// The fence between attempts of one request: of all attempts at a worker only the highest computes.
//
// Knows live attempts only: a router uses a request id again once the request has ended.
#ifndef HYSERVE_SERVICES_WORKER_ATTEMPT_TABLE_H_
#define HYSERVE_SERVICES_WORKER_ATTEMPT_TABLE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace hyserve::worker {

inline constexpr char kStaleAttempt[] = "stale_attempt: ";

class Attempt {
 public:
  virtual ~Attempt() = default;
  // A newer attempt is here: give everything up. Called without the table's lock.
  virtual void OnSuperseded() = 0;
};

// Thread-safe. Bounded by the number of live attempts.
class AttemptTable {
 public:
  // ABORTED "stale_attempt: ..." while an attempt with this number or a higher one computes. Else
  // the attempt is entered and one that was there before is told.
  absl::Status Enter(const std::string& request_id, uint32_t attempt,
                     std::shared_ptr<Attempt> self);
  // The attempt computes no longer, though it may still hold memory: every other one may take over.
  void Retire(const std::string& request_id, const Attempt* self);
  // The attempt is gone.
  void Leave(const std::string& request_id, const Attempt* self);

  int64_t size() const;

 private:
  struct Entry {
    uint32_t attempt = 0;
    std::shared_ptr<Attempt> self;
    bool computes = true;
  };
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hyserve::worker

#endif  // HYSERVE_SERVICES_WORKER_ATTEMPT_TABLE_H_
