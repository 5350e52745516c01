// A sequence as the scheduler sees it.
#ifndef HYSERVE_ENGINE_SCHEDULER_SEQUENCE_H_
#define HYSERVE_ENGINE_SCHEDULER_SEQUENCE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "engine/kv_cache/ids.h"
#include "engine/kv_cache/keyed_hash.h"
#include "engine/sampling/sampling_params.h"
#include "engine/scheduler/step_plan.h"

namespace hyserve::scheduler {

// See runtime/engine.h.
enum class Mode : uint8_t { kPrefill, kDecode, kLocal };

struct SequenceSpec {
  SequenceId id = 0;
  Mode mode = Mode::kLocal;
  std::vector<int32_t> prompt;  // at least one token
  sampling::SamplingParams sampling;
  bool wants_prompt_logprobs = false;
  bool use_prefix_cache = true;
  std::string cache_scope;
  absl::Time deadline = absl::InfiniteFuture();
};

//   kWaiting --admit--> kPrefilling ------> kGenerating --> gone            (kLocal)
//                       kPrefilling ------> kHeld --Release--> gone         (kPrefill)
//   kWaiting --admit--> kReserved --Resume--> kGenerating --> gone          (kDecode)
// An end before its time (cancel, deadline, error) leads to kHeld where somebody else may still
// touch the memory (kPrefill once admitted, kDecode when reserved), and to gone elsewhere.
enum class State : uint8_t { kWaiting, kPrefilling, kReserved, kGenerating, kHeld };

struct Sequence {
  SequenceSpec spec;  // prompt moved to `tokens`
  State state = State::kWaiting;
  uint64_t arrival = 0;  // order among all sequences

  std::vector<int32_t> tokens;  // prompt, then generated tokens
  int32_t prompt_tokens = 0;
  int32_t computed_tokens = 0;  // in the KV cache
  int32_t cached_tokens = 0;    // of these, restored
  int32_t max_generated = 0;    // max_tokens, or less at the end of the context

  std::vector<kv_cache::BlockId> blocks;
  std::vector<int32_t> block_table;  // the same, as the model reads it
  kv_cache::SlabId slab = kv_cache::kNoSlab;
  std::vector<kv_cache::BlockId> held;   // blocks of others above published ones
  std::vector<kv_cache::Hash128> keys;   // of full blocks, for the prefix cache

  int32_t generated_tokens() const { return static_cast<int32_t>(tokens.size()) - prompt_tokens; }
  int32_t remaining_prompt() const { return prompt_tokens - computed_tokens; }
  bool has_memory() const { return state != State::kWaiting; }
};

}  // namespace hyserve::scheduler

#endif  // HYSERVE_ENGINE_SCHEDULER_SEQUENCE_H_
