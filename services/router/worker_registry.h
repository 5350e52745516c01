// The live workers, their load, and what the router has booked on them.
//
// Thread-safe; one lock, taken a few times per request and per load report, never per token.
#ifndef HYSERVE_SERVICES_ROUTER_WORKER_REGISTRY_H_
#define HYSERVE_SERVICES_ROUTER_WORKER_REGISTRY_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "hyserve/v1/worker.pb.h"
#include "services/router/model_info.h"
#include "services/router/pair_health.h"
#include "services/router/prefix_index.h"
#include "services/router/routing_policy.h"
#include "services/router/worker_link.h"

namespace hyserve::router {

using WorkerId = uint64_t;   // of one registration; never reused
using BookingId = uint64_t;  // never 0

// One registered worker. Immutable.
struct Worker {
  WorkerId id = 0;
  v1::Registration registration;
  std::shared_ptr<WorkerLink> link;
};

enum class WorkerSide : uint8_t { kPrefill, kDecode };

// Told when a worker of its booking is gone. Called without the registry's lock.
class WorkerLostListener {
 public:
  virtual ~WorkerLostListener() = default;
  virtual void OnWorkerLost(BookingId booking, WorkerSide side) = 0;
};

// What a request got. Both bookings must be released, each on its own end.
struct Assignment {
  BookingId booking = 0;
  std::shared_ptr<const Worker> prefill;  // null: monolithic
  std::shared_ptr<const Worker> decode;
  double predicted_ttft_ms = 0;
  bool measured = false;
  int32_t cached_tokens = 0;  // expected at the prefill worker
};

struct AssignmentResult {
  PickResult result = PickResult::kNoWorkers;
  Assignment assignment;           // when kPicked
};

struct RouteRequest {
  RoutingRequest routing;
  std::vector<BlockHash> block_hashes;
};

struct RegistryOptions {
  std::string model_name;  // empty: that of the first worker
  int64_t prefix_index_blocks = 1 << 20;
  absl::Duration pair_quarantine = absl::Seconds(30);
};

class WorkerRegistry {
 public:
  explicit WorkerRegistry(RegistryOptions options);

  // FAILED_PRECONDITION, with the reason for the worker's log: another model, another protocol
  // version, a name that a live worker of the same incarnation has, nonsense values. A newer
  // incarnation of a name replaces the older one, which counts as lost.
  absl::StatusOr<WorkerId> Add(const v1::Registration& registration,
                               std::shared_ptr<WorkerLink> link);
  // Nonsense values are ignored. An unknown id has no effect.
  void UpdateLoad(WorkerId id, const v1::LoadReport& load);
  // True if it was there and not draining, or had failed: a crash.
  bool Remove(WorkerId id);

  // Picks, books, and remembers the prefix. `listener` hears about lost workers until both sides
  // are released.
  AssignmentResult Assign(const RouteRequest& request, std::weak_ptr<WorkerLostListener> listener,
                          absl::Time now);
  // Idempotent.
  void ReleasePrefill(BookingId booking);
  void ReleaseDecode(BookingId booking);

  void RecordHandoff(WorkerId prefill, WorkerId decode, bool ok, absl::Time now);

  // What is served, or nothing before the first worker.
  std::optional<ModelInfo> model() const;

  struct WorkerStats {
    std::string name;
    v1::WorkerRole role;
    int32_t inflight = 0;
    bool draining = false;
    bool reported = false;  // its load is known, so it can be used
  };
  struct Stats {
    std::vector<WorkerStats> workers;
    std::vector<std::pair<std::string, bool>>
        pairs;  // "prefill->decode" with failures, healthy now
    int64_t bookings = 0;
    bool can_serve = false;  // a pair or a monolithic worker is there
  };
  Stats stats(absl::Time now) const;

 private:
  struct State {
    std::shared_ptr<const Worker> worker;
    v1::LoadReport load;
    int32_t group = 0;
    int64_t booked_tokens = 0;
    int32_t booked_sequences = 0;
    int64_t booked_blocks = 0;
  };
  struct Booking {
    WorkerId prefill = 0;
    WorkerId decode = 0;
    bool prefill_open = false;
    bool decode_open = false;
    int64_t tokens = 0;
    int64_t blocks = 0;
    std::weak_ptr<WorkerLostListener> listener;
  };
  using Lost = std::vector<std::tuple<std::weak_ptr<WorkerLostListener>, BookingId, WorkerSide>>;

  absl::Status Check(const v1::Registration& registration) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int32_t GroupOf(const v1::Registration& registration) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  WorkerView View(const State& state, const RouteRequest* request) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool RemoveLocked(WorkerId id, Lost* lost) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReleaseLocked(BookingId id, WorkerSide side) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void Tell(const Lost& lost);

  const RegistryOptions options_;
  mutable absl::Mutex mutex_;
  WorkerId next_worker_ ABSL_GUARDED_BY(mutex_) = 1;
  BookingId next_booking_ ABSL_GUARDED_BY(mutex_) = 1;
  std::vector<State> workers_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<BookingId, Booking> bookings_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, int32_t> groups_ ABSL_GUARDED_BY(mutex_);
  PrefixIndex prefixes_ ABSL_GUARDED_BY(mutex_);
  PairHealth pairs_ ABSL_GUARDED_BY(mutex_);
  std::optional<ModelInfo> model_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_WORKER_REGISTRY_H_
