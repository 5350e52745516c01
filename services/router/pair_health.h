// Pairs of workers that could not hand over: avoided for a while that doubles with each failure in
// a row. Not thread-safe; the clock is the caller's.
#ifndef HYSERVE_SERVICES_ROUTER_PAIR_HEALTH_H_
#define HYSERVE_SERVICES_ROUTER_PAIR_HEALTH_H_

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"

namespace hyserve::router {

using WorkerPair = std::pair<uint64_t, uint64_t>;  // prefill, decode

class PairHealth {
 public:
  explicit PairHealth(absl::Duration quarantine) : quarantine_(quarantine) {}

  void RecordFailure(const WorkerPair& pair, absl::Time now) {
    State& state = pairs_[pair];
    state.failures = std::min(state.failures + 1, kMaxDoublings + 1);
    state.bad_until = now + quarantine_ * (1 << (state.failures - 1));
  }
  void RecordSuccess(const WorkerPair& pair) { pairs_.erase(pair); }
  bool IsBad(const WorkerPair& pair, absl::Time now) const {
    const auto found = pairs_.find(pair);
    return found != pairs_.end() && now < found->second.bad_until;
  }
  // Pairs with a failure since their last success.
  std::vector<WorkerPair> Known() const {
    std::vector<WorkerPair> pairs;
    for (const auto& [pair, state] : pairs_) pairs.push_back(pair);
    return pairs;
  }
  void RemoveWorker(uint64_t worker) {
    absl::erase_if(pairs_, [worker](const auto& entry) {
      return entry.first.first == worker || entry.first.second == worker;
    });
  }
  bool empty() const { return pairs_.empty(); }

 private:
  static constexpr int kMaxDoublings = 4;
  struct State {
    int failures = 0;
    absl::Time bad_until;
  };
  const absl::Duration quarantine_;
  absl::flat_hash_map<WorkerPair, State> pairs_;
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_PAIR_HEALTH_H_
