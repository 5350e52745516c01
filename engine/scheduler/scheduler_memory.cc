// Memory of sequences: admission, prefix reuse, publication, invariants.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/kv_cache/check.h"
#include "engine/kv_cache/kv_layout.h"
#include "engine/scheduler/scheduler.h"

namespace hyserve::scheduler {
namespace {

using kv_cache::BlockId;
using kv_cache::KvLayout;
using kv_cache::kTokensPerBlock;

// Where the same prompt can be restored with at least one token left to compute.
int32_t LastRestorePoint(int32_t prompt_tokens) {
  return (prompt_tokens - 1) / kTokensPerBlock * kTokensPerBlock;
}

}  // namespace

int32_t Scheduler::MaxGenerated(int64_t prompt_tokens, int32_t max_tokens) const {
  const int64_t room = std::max<int64_t>(1, options_.max_context_tokens - prompt_tokens);
  return static_cast<int32_t>(std::min<int64_t>(max_tokens, room));
}

// The last generated token is never fed back, so its position needs no room.
int64_t Scheduler::TokensToReserve(Mode mode, int64_t prompt_tokens, int32_t max_tokens) const {
  if (mode == Mode::kPrefill) return prompt_tokens;
  return prompt_tokens + MaxGenerated(prompt_tokens, max_tokens) - 1;
}

absl::Status Scheduler::CanEverFit(Mode mode, int64_t prompt_tokens, int32_t max_tokens) const {
  const int64_t blocks = KvLayout::NumBlocks(TokensToReserve(mode, prompt_tokens, max_tokens));
  if (blocks <= blocks_.total()) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "needs ", blocks, " blocks of ", kTokensPerBlock, " tokens for a prompt of ", prompt_tokens,
      " and max_tokens ", max_tokens, "; the KV pool has ", blocks_.total()));
}

bool Scheduler::Caches(const Sequence& sequence) const {
  return options_.prefix_cache && sequence.spec.use_prefix_cache &&
         sequence.spec.mode != Mode::kDecode &&
         (!options_.has_window_layers || options_.snapshot_slabs > 0);
}

void Scheduler::AdmitWaiting(StepPlan* plan) {
  if (!retry_admission_) return;
  retry_admission_ = false;
  while (!waiting_.empty() && Admit(*waiting_.begin()->second, plan)) {
  }
}

bool Scheduler::Admit(Sequence& sequence, StepPlan* plan) {
  if (num_with_memory_ >= options_.max_sequences) return false;
  const SequenceSpec& spec = sequence.spec;
  const int64_t total = KvLayout::NumBlocks(
      TokensToReserve(spec.mode, sequence.prompt_tokens, spec.sampling.max_tokens));

  kv_cache::PrefixCache::Hit hit;
  // Prompt log-probabilities need every row computed.
  const bool looks_up = Caches(sequence) && !spec.wants_prompt_logprobs;
  if (Caches(sequence)) {
    cache_.ExtendKeys(spec.cache_scope, sequence.tokens, &sequence.keys);
    if (looks_up) {
      hit = cache_.Acquire(sequence.keys, sequence.tokens, sequence.prompt_tokens - 1);
    }
  }
  if (cache_.available() < total - static_cast<int64_t>(hit.blocks.size())) {
    cache_.Release(hit.blocks);
    return false;
  }
  sequence.blocks = std::move(hit.blocks);
  HYSERVE_CHECK(cache_.Allocate(total - static_cast<int64_t>(sequence.blocks.size()),
                                &sequence.blocks));
  if (options_.has_window_layers) {
    const auto slab = slabs_.Allocate(kv_cache::MemoryState::kUsed);
    HYSERVE_CHECK(slab.has_value());  // num_slabs covers max_sequences and all snapshots
    sequence.slab = *slab;
  }
  for (const BlockId block : sequence.blocks) {
    sequence.block_table.push_back(kv_cache::Index(block));
  }
  sequence.computed_tokens = sequence.cached_tokens = hit.num_tokens;
  if (hit.snapshot != kv_cache::kNoSlab) {
    slab_copies_.push_back(
        {.kind = SlabCopy::Kind::kRestore, .id = spec.id, .from = hit.snapshot,
         .to = sequence.slab});
  }
  if (looks_up) {
    plan->prefix_query_tokens += sequence.prompt_tokens;
    plan->prefix_hit_tokens += hit.num_tokens;
  }
  ++num_with_memory_;
  const bool is_decode = spec.mode == Mode::kDecode;
  Leave(sequence);
  Enter(sequence, is_decode ? State::kReserved : State::kPrefilling);

  Event event{.kind = is_decode ? Event::Kind::kReserved : Event::Kind::kAdmitted, .id = spec.id};
  event.blocks.assign(
      sequence.block_table.begin(),
      sequence.block_table.begin() + KvLayout::NumBlocks(sequence.prompt_tokens));
  event.slab = kv_cache::Index(sequence.slab);
  event.prompt_tokens = sequence.prompt_tokens;
  event.cached_tokens = sequence.cached_tokens;
  events_.push_back(std::move(event));
  return true;
}

int32_t Scheduler::NextStop(const Sequence& sequence) const {
  int32_t stop = sequence.prompt_tokens;
  if (!Caches(sequence) || !options_.has_window_layers) return stop;
  const int32_t position = sequence.computed_tokens;
  const int32_t last = LastRestorePoint(sequence.prompt_tokens);
  if (position < last && !cache_.HasSnapshot(sequence.keys[last / kTokensPerBlock - 1])) {
    stop = last;
  }
  if (const int32_t interval = options_.snapshot_interval_tokens; interval > 0) {
    const int64_t next = (static_cast<int64_t>(position) / interval + 1) * interval;
    stop = static_cast<int32_t>(std::min<int64_t>(stop, next));
  }
  return stop;
}

void Scheduler::PublishPrefix(Sequence& sequence) {
  if (!Caches(sequence)) return;
  const int32_t position = sequence.computed_tokens;
  const int32_t full = position / kTokensPerBlock * kTokensPerBlock;
  if (full <= sequence.cached_tokens) return;
  if (options_.has_window_layers) {
    // Only what a snapshot makes restorable is worth knowing.
    const int32_t interval = options_.snapshot_interval_tokens;
    const bool restore_point = position == LastRestorePoint(sequence.prompt_tokens) ||
                               (interval > 0 && position % interval == 0);
    if (!restore_point) return;
  }
  const std::span<const int32_t> tokens = std::span(sequence.tokens).first(position);
  cache_.ExtendKeys(sequence.spec.cache_scope, tokens, &sequence.keys);
  cache_.Publish(sequence.keys, tokens, sequence.blocks, full, &sequence.held);
  if (const auto slab = cache_.AddSnapshot(sequence.keys, full); slab.has_value()) {
    slab_copies_.push_back(
        {.kind = SlabCopy::Kind::kSnapshot, .id = sequence.spec.id, .from = sequence.slab,
         .to = *slab});
  }
  retry_admission_ = true;  // a waiting prompt may share these blocks
}

void Scheduler::SnapshotFailed(kv_cache::SlabId slab) { cache_.DropSnapshot(slab); }

void Scheduler::Erase(Sequence& sequence) {
  if (sequence.has_memory()) {
    cache_.Release(sequence.blocks);
    cache_.Release(sequence.held);
    if (sequence.slab != kv_cache::kNoSlab) slabs_.Free(sequence.slab);
    --num_with_memory_;
  }
  retry_admission_ = true;
  sequences_.erase(SequenceId{sequence.spec.id});
}

absl::Status Scheduler::CheckInvariants() const {
  if (absl::Status status = cache_.CheckInvariants(); !status.ok()) return status;
  std::vector<int32_t> holders(blocks_.total(), 0);
  int64_t slabs = 0;
  int32_t with_memory = 0;
  for (const auto& [id, sequence] : sequences_) {
    with_memory += sequence->has_memory();
    for (const BlockId block : sequence->blocks) ++holders[kv_cache::Index(block)];
    for (const BlockId block : sequence->held) ++holders[kv_cache::Index(block)];
    if (sequence->slab != kv_cache::kNoSlab) {
      ++slabs;
      if (slabs_.state(sequence->slab) != kv_cache::MemoryState::kUsed) {
        return absl::InternalError(absl::StrCat("sequence ", id, " has a foreign slab"));
      }
    }
    for (size_t i = sequence->computed_tokens / kTokensPerBlock; i < sequence->blocks.size(); ++i) {
      if (blocks_.references(sequence->blocks[i]) != 1 || blocks_.in_cache(sequence->blocks[i])) {
        return absl::InternalError(absl::StrCat("sequence ", id, " may write block ",
                                                kv_cache::Index(sequence->blocks[i]),
                                                ", which is shared"));
      }
    }
  }
  for (int64_t block = 0; block < blocks_.total(); ++block) {
    if (holders[block] != blocks_.references(BlockId{static_cast<int32_t>(block)})) {
      return absl::InternalError(absl::StrCat("block ", block, " has ", holders[block],
                                              " holders, its count says otherwise"));
    }
  }
  if (slabs != slabs_.used() || with_memory != num_with_memory_) {
    return absl::InternalError("slabs or sequences with memory are miscounted");
  }
  return absl::OkStatus();
}

}  // namespace hyserve::scheduler
