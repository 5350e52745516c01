// Carries out one planned step: forward pass, prompt log-probabilities, next tokens, and the
// callbacks that belong to them. Engine thread only.
#ifndef HYSERVE_ENGINE_RUNTIME_STEP_RUNNER_H_
#define HYSERVE_ENGINE_RUNTIME_STEP_RUNNER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "engine/attention/kv_pool.h"
#include "engine/kernels/sample_tokens.h"
#include "engine/model/model.h"
#include "engine/runtime/engine.h"
#include "engine/sampling/penalty_state.h"
#include "engine/scheduler/scheduler.h"
#include "engine/scheduler/step_plan.h"

namespace hyserve::runtime {

// What the engine knows of a live sequence besides the scheduler.
struct LiveSequence {
  std::shared_ptr<EventSink> sink;
  SequenceMode mode = SequenceMode::kLocal;
  int32_t num_prompt_logprobs = -1;
  int32_t prior_generated_tokens = 0;
  sampling::PenaltyState penalties;
};
using LiveSequences = absl::flat_hash_map<SequenceId, std::unique_ptr<LiveSequence>>;

class StepRunner {
 public:
  // All must outlive the runner.
  StepRunner(model::Model* model, attention::KvPool* pool, const scheduler::Scheduler* scheduler,
             LiveSequences* live)
      : model_(*model), pool_(*pool), scheduler_(*scheduler), live_(*live) {}

  // Outcomes parallel to plan.rows. Sequences in `failed` (by id) are left out and get their
  // status.
  std::vector<scheduler::RowOutcome> Run(
      const scheduler::StepPlan& plan, const absl::flat_hash_map<SequenceId, absl::Status>& failed);

 private:
  // `taking_part`: rows of `plan`, in the order of StepInput::sequences.
  absl::Status Forward(const scheduler::StepPlan& plan, const std::vector<size_t>& taking_part);
  // What becomes of the rows' logits: samples for all their rows of logits, and their edits.
  void AppendSamples(const scheduler::PlannedRows& rows);
  scheduler::RowOutcome Finish(const scheduler::PlannedRows& rows, size_t slot);
  absl::Status SendPromptLogprobs(const scheduler::PlannedRows& rows,
                                  std::span<const kernels::SampledRow> sampled,
                                  const LiveSequence& live);
  LiveSequence& live(SequenceId id) { return *live_.at(id); }

  model::Model& model_;
  attention::KvPool& pool_;
  const scheduler::Scheduler& scheduler_;
  LiveSequences& live_;
  // Of the step under way.
  std::vector<kernels::SampleRow> samples_;
  std::vector<kernels::LogitEdit> edits_;
  model::StepOutput output_;
};

}  // namespace hyserve::runtime

#endif  // HYSERVE_ENGINE_RUNTIME_STEP_RUNNER_H_
