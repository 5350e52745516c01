// Host plan of one step: turns the sequences of a step into the arrays that every attention op
// reads (kernels/attention_batch.h), on the host and on the device.
//
// Reused from step to step, so that a step allocates only when it is larger than any before it.
// Not thread-safe.
#ifndef HYSERVE_ENGINE_ATTENTION_ATTENTION_PLAN_H_
#define HYSERVE_ENGINE_ATTENTION_ATTENTION_PLAN_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "engine/attention/staged_array.h"
#include "engine/kernels/attention_batch.h"
#include "engine/tensor/device.h"

namespace hyserve::attention {

// Rows [first_position, first_position + num_rows) of one sequence.
struct PlanSequence {
  int32_t num_rows = 0;                // >= 1
  int32_t first_position = 0;          // >= 0
  std::span<const int32_t> blocks;     // block ids; at least those of the rows' context
  int32_t slab = -1;
};

class AttentionPlan {
 public:
  // INVALID_ARGUMENT: a sequence without rows, a negative position, or fewer blocks than its
  // context needs. Block ids are not checked here (the pool's bounds are the caller's).
  // repeatable: every sequence has one row; the batch gets a context_bound, one of few values, and
  // a page table with room for so many tokens.
  absl::Status Build(tensor::Device& device, std::span<const PlanSequence> sequences,
                     bool repeatable = false);

  // So that no Build of up to so many sequences, rows of all together, and tokens of a context
  // allocates.
  absl::Status Reserve(tensor::Device& device, int64_t num_seqs, int64_t num_rows,
                       int64_t context_tokens);
  // The largest context_bound that a repeatable step of such a context may get.
  static int64_t MostContextBound(int64_t context_tokens);

  // Valid until the next Build.
  const kernels::AttentionBatch& batch() const { return batch_; }

 private:
  StagedArray<int32_t> arrays_;
  kernels::AttentionBatch batch_;
};

}  // namespace hyserve::attention

#endif  // HYSERVE_ENGINE_ATTENTION_ATTENTION_PLAN_H_
