// Decides which rows each step computes and who holds which memory. A pure state machine: events in
// (Add, Resume, Cancel, Release, CompleteStep), plans, events and slab copies out; no device, no
// thread, no clock of its own. Not thread-safe: owned by the engine loop.
//
// Admission is first come, first served: the memory for prompt and generation (kPrefill: prompt) is
// reserved at once, so a running sequence never lacks any, and nobody overtakes a large request
// that waits for memory. In every step each generating sequence has one row, beside at most
// `chunk_tokens` prompt rows (fewer while sequences generate): chunk_policy.h.
//
// A chunk ends at restore points of the prefix cache: every snapshot_interval_tokens, and at the
// last block boundary before the prompt's last token, so that the same prompt asked again computes
// at least one token and at most 64.
//
// Between PlanStep and CompleteStep nothing else may be called. After every call the caller takes
// TakeSlabCopies(), then TakeEvents().
#ifndef HYSERVE_ENGINE_SCHEDULER_SCHEDULER_H_
#define HYSERVE_ENGINE_SCHEDULER_SCHEDULER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/kv_cache/block_allocator.h"
#include "engine/kv_cache/prefix_cache.h"
#include "engine/kv_cache/slab_allocator.h"
#include "engine/scheduler/sequence.h"
#include "engine/scheduler/step_plan.h"

namespace hyserve::scheduler {

struct SchedulerOptions {
  int64_t num_blocks = 0;
  int64_t num_slabs = 0;           // max_sequences + snapshot_slabs; 0 without window layers
  bool has_window_layers = true;
  int64_t max_context_tokens = 0;
  int32_t max_sequences = 64;      // that hold memory
  int32_t max_queue = 4096;        // that wait for it
  int32_t chunk_tokens = 1024;     // prompt rows per step, a multiple of 64
  // Prompt rows per step while any sequence generates, a multiple of 64: bounds the time between
  // two tokens. 0: ChunkTokensWhileGenerating.
  int32_t chunk_tokens_while_generating = 0;
  std::vector<int32_t> eos_token_ids;
  bool prefix_cache = true;
  int32_t snapshot_interval_tokens = 4096;  // a multiple of 64; 0: none inside a prompt
  int64_t snapshot_slabs = 16;
  std::string layout_fingerprint;
  kv_cache::Hash128 hash_key;
  kv_cache::ReuseOrder reuse_order = kv_cache::ReuseOrder::kFifo;
};

struct SchedulerLoad {
  int32_t waiting_sequences = 0;
  int64_t waiting_tokens = 0;  // prompt tokens not computed, waiting and running
  int32_t running_sequences = 0;
  int64_t context_tokens = 0;  // in the KV cache, of running sequences
};

class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options);

  // ALREADY_EXISTS; RESOURCE_EXHAUSTED when the queue is full or the memory can never suffice.
  // REQUIRES: 1 <= prompt <= max_context_tokens.
  absl::Status Add(SequenceSpec spec);
  // As the second half of Add, for callers that must answer before the loop does.
  absl::Status CanEverFit(Mode mode, int64_t prompt_tokens, int32_t max_tokens) const;
  // kDecode: its KV has arrived, generation goes on behind `first_token`. FAILED_PRECONDITION ends
  // the sequence when it was not reserved; no effect on an unknown or ended one.
  void Resume(SequenceId id, int32_t first_token);
  void Cancel(SequenceId id);
  void Release(SequenceId id);
  // Ends a sequence with an error (a device's).
  void Fail(SequenceId id, const absl::Status& status);
  // A copy of kind kSnapshot failed.
  void SnapshotFailed(kv_cache::SlabId slab);

  // Expires deadlines, admits what fits, plans. An empty plan needs no CompleteStep.
  StepPlan PlanStep(absl::Time now);
  // `outcomes` parallel to plan.rows.
  void CompleteStep(const StepPlan& plan, std::span<const RowOutcome> outcomes);

  std::vector<SlabCopy> TakeSlabCopies() { return std::exchange(slab_copies_, {}); }
  std::vector<Event> TakeEvents() { return std::exchange(events_, {}); }

  // Whether PlanStep may achieve anything before the next event or deadline.
  bool HasWork() const {
    return !prefilling_.empty() || !generating_.empty() || (retry_admission_ && !waiting_.empty());
  }
  absl::Time NextDeadline() const {
    return deadlines_.empty() ? absl::InfiniteFuture() : deadlines_.begin()->first;
  }
  // Null when unknown.
  const Sequence* Find(SequenceId id) const;
  std::vector<SequenceId> ids() const;

  SchedulerLoad load() const;
  const kv_cache::BlockAllocator& blocks() const { return blocks_; }
  const kv_cache::SlabAllocator& slabs() const { return slabs_; }
  const kv_cache::PrefixCache& cache() const { return cache_; }

  // INTERNAL with the first violated invariant: allocators and cache, every block's references
  // equal its holders, no block that a sequence may still write is shared. For tests.
  absl::Status CheckInvariants() const;

 private:
  using ByArrival = std::map<uint64_t, Sequence*>;

  int32_t MaxGenerated(int64_t prompt_tokens, int32_t max_tokens) const;
  int64_t TokensToReserve(Mode mode, int64_t prompt_tokens, int32_t max_tokens) const;
  bool Caches(const Sequence& sequence) const;

  void ExpireDeadlines(absl::Time now);
  void AdmitWaiting(StepPlan* plan);
  bool Admit(Sequence& sequence, StepPlan* plan);
  void PlanPrompts(StepPlan* plan);
  // Position at which the next chunk must end at the latest.
  int32_t NextStop(const Sequence& sequence) const;
  // Publishes what has become final, takes a snapshot at a restore point.
  void PublishPrefix(Sequence& sequence);
  void CompleteRows(Sequence& sequence, const PlannedRows& rows, const RowOutcome& outcome);
  // Moves between the containers of states.
  void Enter(Sequence& sequence, State state);
  void Leave(Sequence& sequence);
  void Finish(Sequence& sequence, const absl::Status& status, sampling::FinishReason reason);
  // Gives memory back and forgets the sequence.
  void Erase(Sequence& sequence);

  const SchedulerOptions options_;
  kv_cache::BlockAllocator blocks_;
  kv_cache::SlabAllocator slabs_;
  kv_cache::PrefixCache cache_;

  absl::flat_hash_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  ByArrival waiting_, prefilling_, generating_;
  std::set<std::pair<absl::Time, SequenceId>> deadlines_;  // of sequences that have not ended
  int32_t num_with_memory_ = 0;
  bool retry_admission_ = false;  // something changed since admission last failed
  uint64_t next_arrival_ = 0;
  uint64_t num_plans_ = 0;

  std::vector<SlabCopy> slab_copies_;
  std::vector<Event> events_;
};

}  // namespace hyserve::scheduler

#endif  // HYSERVE_ENGINE_SCHEDULER_SCHEDULER_H_
