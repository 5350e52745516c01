// Events, plans and the life of a sequence. Memory: scheduler_memory.cc.
#include "engine/scheduler/scheduler.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/kv_cache/check.h"
#include "engine/sampling/finish_reason.h"
#include "engine/scheduler/chunk_policy.h"

namespace hyserve::scheduler {
namespace {

using kv_cache::kTokensPerBlock;
using sampling::FinishReason;

SchedulerOptions Checked(SchedulerOptions options) {
  HYSERVE_CHECK(options.max_sequences > 0 && options.max_context_tokens > 0);
  HYSERVE_CHECK(options.chunk_tokens > 0 && options.chunk_tokens % kTokensPerBlock == 0);
  HYSERVE_CHECK(options.snapshot_interval_tokens >= 0 &&
                options.snapshot_interval_tokens % kTokensPerBlock == 0);
  if (options.chunk_tokens_while_generating == 0) {
    options.chunk_tokens_while_generating = ChunkTokensWhileGenerating(options.chunk_tokens);
  }
  HYSERVE_CHECK(options.chunk_tokens_while_generating % kTokensPerBlock == 0);
  HYSERVE_CHECK(!options.has_window_layers ||
                options.num_slabs >= options.max_sequences + options.snapshot_slabs);
  return options;
}

}  // namespace

Scheduler::Scheduler(SchedulerOptions options)
    : options_(Checked(std::move(options))),
      blocks_(options_.num_blocks, options_.reuse_order),
      slabs_(options_.has_window_layers ? options_.num_slabs : 0),
      cache_({.needs_snapshots = options_.has_window_layers,
              .max_snapshots = options_.prefix_cache ? options_.snapshot_slabs : 0,
              .layout = options_.layout_fingerprint,
              .hash_key = options_.hash_key},
             &blocks_, &slabs_) {}

absl::Status Scheduler::Add(SequenceSpec spec) {
  HYSERVE_CHECK(!spec.prompt.empty() &&
                static_cast<int64_t>(spec.prompt.size()) <= options_.max_context_tokens);
  if (sequences_.contains(spec.id)) {
    return absl::AlreadyExistsError(absl::StrCat("sequence ", spec.id, " is live"));
  }
  if (static_cast<int32_t>(waiting_.size()) >= options_.max_queue) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", options_.max_queue, " sequences wait"));
  }
  const int64_t prompt_tokens = static_cast<int64_t>(spec.prompt.size());
  if (absl::Status status = CanEverFit(spec.mode, prompt_tokens, spec.sampling.max_tokens);
      !status.ok()) {
    return status;
  }
  auto owned = std::make_unique<Sequence>();
  Sequence& sequence = *owned;
  sequence.tokens = std::move(spec.prompt);
  sequence.spec = std::move(spec);
  sequence.arrival = next_arrival_++;
  sequence.prompt_tokens = static_cast<int32_t>(prompt_tokens);
  sequence.max_generated = MaxGenerated(prompt_tokens, sequence.spec.sampling.max_tokens);
  deadlines_.insert({sequence.spec.deadline, sequence.spec.id});
  sequences_.emplace(sequence.spec.id, std::move(owned));
  Enter(sequence, State::kWaiting);
  retry_admission_ = true;
  return absl::OkStatus();
}

void Scheduler::Resume(SequenceId id, int32_t first_token) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end() || found->second->spec.mode != Mode::kDecode) return;
  Sequence& sequence = *found->second;
  if (sequence.state == State::kWaiting) {
    Finish(sequence, absl::FailedPreconditionError("resumed before its memory was reserved"),
           FinishReason::kError);
    return;
  }
  if (sequence.state != State::kReserved) return;
  sequence.computed_tokens = sequence.prompt_tokens;
  sequence.tokens.push_back(first_token);
  Leave(sequence);
  Enter(sequence, State::kGenerating);
  const FinishReason reason =
      sampling::FinishReasonOf(sequence.spec.sampling, options_.eos_token_ids, first_token, 0,
                               sequence.max_generated);
  if (reason != FinishReason::kNone) Finish(sequence, absl::OkStatus(), reason);
}

void Scheduler::Cancel(SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end() || found->second->state == State::kHeld) return;
  Finish(*found->second, absl::CancelledError("cancelled"), FinishReason::kCancelled);
}

void Scheduler::Release(SequenceId id) {
  Cancel(id);
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  events_.push_back({.kind = Event::Kind::kReleased, .id = id, .gone = true});
  Erase(*found->second);
}

void Scheduler::Fail(SequenceId id, const absl::Status& status) {
  HYSERVE_CHECK(!status.ok());
  const auto found = sequences_.find(id);
  if (found == sequences_.end() || found->second->state == State::kHeld) return;
  Finish(*found->second, status, FinishReason::kError);
}

void Scheduler::ExpireDeadlines(absl::Time now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    if (deadlines_.begin()->first == absl::InfiniteFuture()) return;
    Finish(*sequences_.at(deadlines_.begin()->second),
           absl::DeadlineExceededError("the deadline of the request has passed"),
           FinishReason::kCancelled);
  }
}

StepPlan Scheduler::PlanStep(absl::Time now) {
  StepPlan plan;
  ExpireDeadlines(now);
  AdmitWaiting(&plan);
  for (const auto& [arrival, sequence] : generating_) {
    const int32_t position = sequence->computed_tokens;
    HYSERVE_CHECK(position + 1 == static_cast<int32_t>(sequence->tokens.size()));
    plan.rows.push_back({.id = sequence->spec.id,
                         .samples_token = true,
                         .first_position = position,
                         .token_ids = std::span<const int32_t>(sequence->tokens).last(1),
                         .blocks = sequence->block_table,
                         .slab = kv_cache::Index(sequence->slab)});
    ++plan.decode_tokens;
  }
  PlanPrompts(&plan);
  return plan;
}

void Scheduler::PlanPrompts(StepPlan* plan) {
  if (prefilling_.empty()) return;
  std::vector<PromptWork> work;
  work.reserve(prefilling_.size());
  for (const auto& [arrival, sequence] : prefilling_) {
    PromptWork& prompt = work.emplace_back();
    prompt.remaining_tokens = sequence->remaining_prompt();
    prompt.rows_to_stop = NextStop(*sequence) - sequence->computed_tokens;
  }
  const int32_t budget = generating_.empty()
                             ? options_.chunk_tokens
                             : std::min(options_.chunk_tokens,
                                        options_.chunk_tokens_while_generating);
  const std::vector<int32_t> rows = ShareRows(work, budget, num_plans_++);
  size_t index = 0;
  for (const auto& [arrival, sequence] : prefilling_) {
    const int32_t count = rows[index++];
    if (count == 0) continue;
    const int32_t position = sequence->computed_tokens;
    const bool last = position + count == sequence->prompt_tokens;
    plan->rows.push_back({.id = sequence->spec.id,
                          .is_prompt = true,
                          .samples_token = last,
                          .wants_all_logits = sequence->spec.wants_prompt_logprobs,
                          .wants_selection = last && sequence->spec.mode == Mode::kPrefill,
                          .first_position = position,
                          .token_ids =
                              std::span<const int32_t>(sequence->tokens).subspan(position, count),
                          .blocks = sequence->block_table,
                          .slab = kv_cache::Index(sequence->slab)});
    plan->prompt_tokens += count;
  }
}

void Scheduler::CompleteStep(const StepPlan& plan, std::span<const RowOutcome> outcomes) {
  HYSERVE_CHECK(outcomes.size() == plan.rows.size());
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    Sequence& sequence = *sequences_.at(plan.rows[i].id);
    if (!outcomes[i].status.ok()) {
      Finish(sequence, outcomes[i].status, FinishReason::kError);
    } else {
      CompleteRows(sequence, plan.rows[i], outcomes[i]);
    }
  }
}

void Scheduler::CompleteRows(Sequence& sequence, const PlannedRows& rows,
                             const RowOutcome& outcome) {
  sequence.computed_tokens += static_cast<int32_t>(rows.token_ids.size());
  if (rows.is_prompt) PublishPrefix(sequence);
  if (!rows.samples_token) return;
  const int32_t index = sequence.generated_tokens();
  sequence.tokens.push_back(outcome.token_id);
  const FinishReason reason =
      sampling::FinishReasonOf(sequence.spec.sampling, options_.eos_token_ids, outcome.token_id,
                               index, sequence.max_generated);
  if (sequence.spec.mode == Mode::kPrefill || reason != FinishReason::kNone) {
    Finish(sequence, absl::OkStatus(), reason);
  } else if (rows.is_prompt) {
    Leave(sequence);
    Enter(sequence, State::kGenerating);
  }
}

void Scheduler::Enter(Sequence& sequence, State state) {
  sequence.state = state;
  if (state == State::kWaiting) waiting_.emplace(sequence.arrival, &sequence);
  if (state == State::kPrefilling) prefilling_.emplace(sequence.arrival, &sequence);
  if (state == State::kGenerating) generating_.emplace(sequence.arrival, &sequence);
}

void Scheduler::Leave(Sequence& sequence) {
  waiting_.erase(sequence.arrival);
  prefilling_.erase(sequence.arrival);
  generating_.erase(sequence.arrival);
}

void Scheduler::Finish(Sequence& sequence, const absl::Status& status, FinishReason reason) {
  const State before = sequence.state;
  const Mode mode = sequence.spec.mode;
  const bool keeps_memory = (before == State::kPrefilling && mode == Mode::kPrefill) ||
                            (before == State::kReserved && mode == Mode::kDecode);
  if (status.ok() && before == State::kGenerating && !options_.has_window_layers) {
    PublishPrefix(sequence);
  }
  // After an error of the device or of the numbers nothing is promised of what the sequence read
  // and wrote: what it published or restored must not make others fail.
  if (reason == FinishReason::kError) cache_.Distrust(sequence.keys, sequence.tokens);
  Event event{.kind = Event::Kind::kFinished, .id = sequence.spec.id, .gone = !keeps_memory};
  if (mode == Mode::kDecode && before == State::kWaiting) event.kind = Event::Kind::kRefused;
  event.status = status;
  event.reason = reason;
  event.prompt_tokens = sequence.prompt_tokens;
  event.cached_tokens = sequence.cached_tokens;
  event.generated_tokens = sequence.generated_tokens();
  events_.push_back(std::move(event));

  Leave(sequence);
  deadlines_.erase({sequence.spec.deadline, sequence.spec.id});
  retry_admission_ = true;
  if (keeps_memory) {
    sequence.state = State::kHeld;
  } else {
    Erase(sequence);
  }
}

const Sequence* Scheduler::Find(SequenceId id) const {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? nullptr : found->second.get();
}

std::vector<SequenceId> Scheduler::ids() const {
  std::vector<SequenceId> ids;
  for (const auto& [id, sequence] : sequences_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  return ids;
}

SchedulerLoad Scheduler::load() const {
  SchedulerLoad load;
  load.waiting_sequences = static_cast<int32_t>(waiting_.size());
  for (const auto& [arrival, sequence] : waiting_) {
    if (sequence->spec.mode != Mode::kDecode) load.waiting_tokens += sequence->prompt_tokens;
  }
  load.running_sequences = static_cast<int32_t>(prefilling_.size() + generating_.size());
  for (const auto& [arrival, sequence] : prefilling_) {
    load.waiting_tokens += sequence->remaining_prompt();
    load.context_tokens += sequence->computed_tokens;
  }
  for (const auto& [arrival, sequence] : generating_) {
    load.context_tokens += sequence->computed_tokens;
  }
  return load;
}

}  // namespace hyserve::scheduler
