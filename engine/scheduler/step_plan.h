// What one forward pass computes, and what the scheduler tells about sequences. Plain data.
#ifndef HYSERVE_ENGINE_SCHEDULER_STEP_PLAN_H_
#define HYSERVE_ENGINE_SCHEDULER_STEP_PLAN_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/kv_cache/ids.h"
#include "engine/sampling/finish_reason.h"

namespace hyserve::scheduler {

using SequenceId = uint64_t;

// Rows of one sequence. Spans stay valid until the step is completed.
struct PlannedRows {
  SequenceId id = 0;
  bool is_prompt = false;             // a chunk of the prompt, else one generated token
  bool samples_token = false;         // the last row's logits choose the next token
  bool wants_all_logits = false;      // prompt log-probabilities
  bool wants_selection = false;       // hand-off self-check, last chunk of kPrefill
  int32_t first_position = 0;
  std::span<const int32_t> token_ids;
  std::span<const int32_t> blocks;    // of the whole sequence
  int32_t slab = -1;
};

// Generating sequences first, then chunks of prompts from the oldest to the youngest.
struct StepPlan {
  std::vector<PlannedRows> rows;
  int32_t prompt_tokens = 0;
  int32_t decode_tokens = 0;
  // Prefix cache: prompt tokens looked up and found at the admissions since the last plan.
  int64_t prefix_query_tokens = 0;
  int64_t prefix_hit_tokens = 0;
};

// What became of one PlannedRows.
struct RowOutcome {
  absl::Status status;   // an error ends the sequence
  int32_t token_id = 0;  // when samples_token
};

// Copy of a whole slab. All copies are to be carried out in order, before the next step and before
// any event is passed on (a reservation hands slabs to a transfer).
struct SlabCopy {
  enum class Kind : uint8_t { kSnapshot, kRestore } kind = Kind::kSnapshot;
  SequenceId id = 0;
  kv_cache::SlabId from = kv_cache::kNoSlab;
  kv_cache::SlabId to = kv_cache::kNoSlab;
};

struct Event {
  enum class Kind : uint8_t {
    kAdmitted,  // prompt: memory reserved, computing begins
    kReserved,  // kDecode: memory reserved
    kRefused,   // kDecode: ended before the reservation, see status; `gone`
    kFinished,  // see status and reason
    kReleased,  // memory that was kept after the end is given back; `gone`
  };
  Kind kind = Kind::kAdmitted;
  SequenceId id = 0;
  bool gone = false;  // the scheduler knows the id no longer
  absl::Status status = {};
  sampling::FinishReason reason = sampling::FinishReason::kNone;
  std::vector<int32_t> blocks = {};  // kAdmitted, kReserved: of the prompt
  int32_t slab = -1;
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;
  int32_t generated_tokens = 0;  // kDecode: token 0 included
};

}  // namespace hyserve::scheduler

#endif  // HYSERVE_ENGINE_SCHEDULER_STEP_PLAN_H_
