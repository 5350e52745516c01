// Which workers serve a request: a pure function of a snapshot.
//
// Everything is predicted milliseconds:
//   prefill   (tokens that wait there + prompt tokens not cached there) / its measured speed
//   transfer  what the hand-off takes beyond the part that hides behind the prefill
//   decode    its step time at the load it would have, over the tokens to come
// The pair with the smallest sum wins. Equal sums are decided by a hash of request and worker, so
// equal workers share the load evenly and a test can repeat every choice.
#ifndef HYSERVE_SERVICES_ROUTER_ROUTING_POLICY_H_
#define HYSERVE_SERVICES_ROUTER_ROUTING_POLICY_H_

#include <cstdint>
#include <vector>

#include "services/router/pair_health.h"

namespace hyserve::router {

// One worker as the policy sees it. Loads include what the router has booked on it.
struct WorkerView {
  uint64_t id = 0;
  int32_t group = 0;              // workers of one group can hand over to each other
  double waiting_tokens = 0;      // prompt tokens not yet computed
  double prefill_tokens_per_second = 0;  // 0: not measured yet
  double sequences = 0;           // running and waiting
  double max_sequences = 1;
  double decode_step_ms = 0;      // 0: not measured yet
  int64_t blocks_free = 0;
  int64_t blocks_total = 0;
  double link_bytes_per_second = 0;  // 0: not measured yet
  int32_t cached_tokens = 0;      // of this request's prompt, expected
  double kv_bytes_per_token = 0;
  double slab_bytes = 0;
  bool draining = false;
};

struct RoutingSnapshot {
  std::vector<WorkerView> prefill;
  std::vector<WorkerView> decode;
  std::vector<WorkerView> monolithic;
  std::vector<WorkerPair> bad_pairs;
};

struct RoutingRequest {
  int32_t prompt_tokens = 1;
  int32_t max_tokens = 1;
  uint64_t tie_seed = 0;                  // equal requests of a test give equal choices
  std::vector<uint64_t> avoid_workers =
      {};  // failed in an earlier attempt: used only if nothing else is
  std::vector<WorkerPair> avoid_pairs = {};
};

enum class PickResult : uint8_t {
  kPicked,
  kNoWorkers,   // none that could serve it is registered
  kBusy,        // all are full or draining: wait
  kNeverFits,   // larger than every decode worker's memory
};

struct Pick {
  PickResult result = PickResult::kNoWorkers;
  int prefill = -1;      // index into snapshot.prefill; -1: monolithic
  int decode = -1;       // index into snapshot.decode, or into snapshot.monolithic
  double predicted_ttft_ms = 0;
  bool measured = false;  // the prediction rests on measured speed
};

// What a worker is assumed to do before it has measured anything.
inline constexpr double kAssumedPrefillTokensPerSecond = 10'000;
inline constexpr double kAssumedDecodeStepMs = 10;
inline constexpr double kAssumedLinkBytesPerSecond = 1e9;
inline constexpr int32_t kMaxForeseenTokens = 256;  // generated tokens that count in the prediction
inline constexpr double kAvoidPenaltyMs = 1e7;

// Pure. O(prefill + decode), and O(prefill x decode) only when the best few of each do not pair.
Pick PickWorkers(const RoutingSnapshot& snapshot, const RoutingRequest& request);

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_ROUTING_POLICY_H_
