#include "services/router/routing_policy.h"

#include <algorithm>
#include <limits>

#include "services/router/model_info.h"

namespace hyserve::router {
namespace {

constexpr size_t kBestOfEach = 4;

// splitmix64's finalizer: a well mixed word of two.
uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = a + 0x9E3779B97F4A7C15ull * (b + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

struct Candidate {
  int index = 0;
  double cost_ms = 0;
  uint64_t tie = 0;
  bool operator<(const Candidate& other) const {
    return cost_ms != other.cost_ms ? cost_ms < other.cost_ms : tie < other.tie;
  }
};

double PrefillMs(const WorkerView& worker, const RoutingRequest& request) {
  const double speed = worker.prefill_tokens_per_second > 0 ? worker.prefill_tokens_per_second
                                                            : kAssumedPrefillTokensPerSecond;
  const double uncached = std::max(request.prompt_tokens - worker.cached_tokens, 1);
  return 1e3 * (worker.waiting_tokens + uncached) / speed;
}

double DecodeMs(const WorkerView& worker, const RoutingRequest& request) {
  const double step = worker.decode_step_ms > 0 ? worker.decode_step_ms : kAssumedDecodeStepMs;
  // A step grows with the batch; at twice the sequences it is assumed to cost half as much again.
  const double occupancy = worker.sequences / std::max(worker.max_sequences, 1.0);
  return step * (1 + 0.5 * occupancy) * std::min(request.max_tokens, kMaxForeseenTokens);
}

// The pages of the prompt leave while it is computed; the slab and what is slower than the prefill
// come on top.
double TransferMs(const WorkerView& prefill, const WorkerView& decode,
                  const RoutingRequest& request) {
  const double speed =
      decode.link_bytes_per_second > 0 ? decode.link_bytes_per_second : kAssumedLinkBytesPerSecond;
  const double pages_ms = 1e3 * request.prompt_tokens * decode.kv_bytes_per_token / speed;
  return 1e3 * decode.slab_bytes / speed + std::max(0.0, pages_ms - PrefillMs(prefill, request));
}

int64_t BlocksNeeded(const RoutingRequest& request) {
  const int64_t tokens = int64_t{request.prompt_tokens} + request.max_tokens;
  return (tokens + kTokensPerBlock - 1) / kTokensPerBlock;
}

bool Contains(const std::vector<uint64_t>& ids, uint64_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}
bool Contains(const std::vector<WorkerPair>& pairs, const WorkerPair& pair) {
  return std::find(pairs.begin(), pairs.end(), pair) != pairs.end();
}

// Usable workers, best first. *fits: one of them could hold the request when empty.
template <typename Cost>
std::vector<Candidate> Rank(const std::vector<WorkerView>& workers, const RoutingRequest& request,
                            int64_t blocks_needed, bool* fits, Cost cost) {
  std::vector<Candidate> ranked;
  for (int i = 0; i < static_cast<int>(workers.size()); ++i) {
    const WorkerView& worker = workers[i];
    if (worker.blocks_total < blocks_needed) continue;
    *fits = true;
    if (worker.draining || worker.blocks_free < blocks_needed ||
        worker.sequences >= worker.max_sequences) {
      continue;
    }
    double cost_ms = cost(worker);
    if (Contains(request.avoid_workers, worker.id)) cost_ms += kAvoidPenaltyMs;
    ranked.push_back({i, cost_ms, Mix(request.tie_seed, worker.id)});
  }
  std::sort(ranked.begin(), ranked.end());
  return ranked;
}

// The best pair among the first `limit` candidates of each side.
void PairUp(const RoutingSnapshot& snapshot, const RoutingRequest& request,
            const std::vector<Candidate>& prefill, const std::vector<Candidate>& decode,
            size_t limit, Pick* pick) {
  double best = std::numeric_limits<double>::infinity();
  for (size_t p = 0; p < std::min(limit, prefill.size()); ++p) {
    const WorkerView& from = snapshot.prefill[prefill[p].index];
    for (size_t d = 0; d < std::min(limit, decode.size()); ++d) {
      const WorkerView& to = snapshot.decode[decode[d].index];
      if (from.group != to.group) continue;
      const WorkerPair pair(from.id, to.id);
      double cost = prefill[p].cost_ms + decode[d].cost_ms + TransferMs(from, to, request);
      if (Contains(snapshot.bad_pairs, pair)) cost += kAvoidPenaltyMs;
      if (Contains(request.avoid_pairs, pair)) cost += kAvoidPenaltyMs;
      if (cost >= best) continue;
      best = cost;
      pick->result = PickResult::kPicked;
      pick->prefill = prefill[p].index;
      pick->decode = decode[d].index;
      pick->predicted_ttft_ms = PrefillMs(from, request);
      pick->measured = from.prefill_tokens_per_second > 0;
    }
  }
  // A pair that is only good because nothing better was looked at.
  if (best >= kAvoidPenaltyMs && limit < std::max(prefill.size(), decode.size())) {
    PairUp(snapshot, request, prefill, decode, std::max(prefill.size(), decode.size()), pick);
  }
}

bool AnyPair(const RoutingSnapshot& snapshot) {
  for (const WorkerView& from : snapshot.prefill) {
    for (const WorkerView& to : snapshot.decode) {
      if (from.group == to.group) return true;
    }
  }
  return false;
}

}  // namespace

Pick PickWorkers(const RoutingSnapshot& snapshot, const RoutingRequest& request) {
  Pick pick;
  const bool pairs = AnyPair(snapshot);
  if (!pairs && snapshot.monolithic.empty()) return pick;
  const int64_t blocks = BlocksNeeded(request);
  bool fits = false;
  if (pairs) {
    bool prefill_fits = false, decode_fits = false;
    const int64_t prompt_blocks =
        (int64_t{request.prompt_tokens} + kTokensPerBlock - 1) / kTokensPerBlock;
    std::vector<WorkerView> prefill_workers = snapshot.prefill;
    for (WorkerView& worker : prefill_workers) {
      // Prefill workers have a queue of their own: a prompt may wait there for blocks.
      worker.blocks_free = worker.blocks_total;
      worker.sequences = 0;
      worker.max_sequences = 1;
    }
    const std::vector<Candidate> prefill =
        Rank(prefill_workers, request, prompt_blocks, &prefill_fits,
             [&](const WorkerView& worker) { return PrefillMs(worker, request); });
    const std::vector<Candidate> decode =
        Rank(snapshot.decode, request, blocks, &decode_fits,
             [&](const WorkerView& worker) { return DecodeMs(worker, request); });
    fits = prefill_fits && decode_fits;
    PairUp(snapshot, request, prefill, decode, kBestOfEach, &pick);
  }
  if (pick.result != PickResult::kPicked && !snapshot.monolithic.empty()) {
    const std::vector<Candidate> ranked =
        Rank(snapshot.monolithic, request, blocks, &fits, [&](const WorkerView& worker) {
          return PrefillMs(worker, request) + DecodeMs(worker, request);
        });
    if (!ranked.empty()) {
      const WorkerView& worker = snapshot.monolithic[ranked[0].index];
      pick.result = PickResult::kPicked;
      pick.decode = ranked[0].index;
      pick.predicted_ttft_ms = PrefillMs(worker, request);
      pick.measured = worker.prefill_tokens_per_second > 0;
    }
  }
  if (pick.result != PickResult::kPicked) {
    pick.result = fits ? PickResult::kBusy : PickResult::kNeverFits;
  }
  return pick;
}

}  // namespace hyserve::router
