// The end of a step: from the chosen rows of the last layer to tokens, or to the logits themselves.
//
// Sampled rows never leave the device but as their tokens, and their logits exist for a few rows at
// a time: at 150,000 entries a row, copying them costs more than the step of a small batch, and
// those of a whole chunk (prompt log-probabilities) take gigabytes. Not thread-safe.
#ifndef HYSERVE_ENGINE_MODEL_STEP_RESULTS_H_
#define HYSERVE_ENGINE_MODEL_STEP_RESULTS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "engine/attention/staged_array.h"
#include "engine/kernels/ops.h"
#include "engine/model/model.h"
#include "engine/model/workspace.h"
#include "engine/tensor/device.h"

namespace hyserve::model {

// Rows whose logits exist at a time when they are sampled.
inline constexpr int64_t kSampledRowsAtATime = 256;

class StepResults {
 public:
  // Both must outlive this.
  StepResults(tensor::Device& device, Workspace& workspace)
      : device_(device), workspace_(workspace) {}

  // Takes the memory of steps of up to so many sampled rows in so many sequences: afterwards their
  // Prepare allocates nothing. Of edits, up to kReservedEdits are counted: every sequence may have
  // one for every token of the vocabulary, but none has more than its text has different tokens.
  absl::Status Reserve(int64_t num_rows, int64_t num_sequences, int64_t vocab_size);
  // Brings what the rows want to the device and takes the memory for it. num_rows: all rows of
  // logits of the step. REQUIRES: CheckStepInput.
  absl::Status Prepare(const StepInput& input, int64_t num_rows, int64_t vocab_size);
  // Adds what Compute depends on beside num_rows and the workspace (Device::RunRecorded).
  void AddToRecordingKey(std::vector<int64_t>& key) const;
  // normed: [num_rows, hidden], after the last norm. Only enqueues.
  absl::Status Compute(const tensor::TensorView& normed, const kernels::PackedMatrix& weight);
  // Waits for the step. Sets output->sampled and output->logits.
  absl::Status Copy(StepOutput* output);

 private:
  static constexpr int64_t kReservedEdits = int64_t{1} << 20;

  // Memory of the results of num_rows rows.
  absl::Status Take(int64_t num_rows, int64_t vocab_size, bool sampled);

  tensor::Device& device_;
  Workspace& workspace_;
  attention::StagedArray<kernels::SampleRow> samples_;
  attention::StagedArray<kernels::LogitEdit> edits_;
  // Of this step; without rows where none are wanted.
  tensor::TensorView logits_;
  kernels::SampledRow* sampled_ = nullptr;  // null: the logits are wanted themselves
  int64_t num_rows_ = 0;
};

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_STEP_RESULTS_H_
