#include "engine/model/step_results.h"

#include <algorithm>

namespace hyserve::model {

using tensor::TensorView;

absl::Status StepResults::Take(int64_t num_rows, int64_t vocab_size, bool sampled) {
  logits_ = TensorView();
  sampled_ = nullptr;
  if (sampled) {
    const absl::StatusOr<TensorView> rows =
        workspace_.Get(Workspace::kSampledRows, tensor::DType::kI32, num_rows,
                       sizeof(kernels::SampledRow) / sizeof(int32_t));
    if (!rows.ok()) return rows.status();
    sampled_ = static_cast<kernels::SampledRow*>(rows->data);
  }
  const absl::StatusOr<TensorView> logits = workspace_.Get(
      Workspace::kLogits, tensor::DType::kF32,
      sampled ? std::min(num_rows, kSampledRowsAtATime) : num_rows, vocab_size);
  if (!logits.ok()) return logits.status();
  logits_ = *logits;
  return absl::OkStatus();
}

absl::Status StepResults::Reserve(int64_t num_rows, int64_t num_sequences, int64_t vocab_size) {
  const int64_t edits = std::min(num_sequences * vocab_size, kReservedEdits);
  if (absl::Status status = samples_.Reserve(device_, num_rows); !status.ok()) return status;
  if (absl::Status status = edits_.Reserve(device_, edits); !status.ok()) return status;
  return Take(num_rows, vocab_size, /*sampled=*/true);
}

absl::Status StepResults::Prepare(const StepInput& input, int64_t num_rows, int64_t vocab_size) {
  samples_.Reset();
  edits_.Reset();
  logits_ = TensorView();
  sampled_ = nullptr;
  num_rows_ = num_rows;
  if (num_rows == 0) return absl::OkStatus();
  for (const SequenceRows& sequence : input.sequences) samples_.Append(sequence.samples);
  const bool sampled = samples_.size() > 0;
  if (sampled) {
    edits_.Append(input.edits);
    if (absl::Status status = samples_.Upload(device_); !status.ok()) return status;
    if (absl::Status status = edits_.Upload(device_); !status.ok()) return status;
  }
  return Take(num_rows, vocab_size, sampled);
}

void StepResults::AddToRecordingKey(std::vector<int64_t>& key) const {
  for (const void* data : {static_cast<const void*>(samples_.device(0)),
                           static_cast<const void*>(edits_.device(0)),
                           static_cast<const void*>(sampled_)}) {
    key.push_back(static_cast<int64_t>(reinterpret_cast<uintptr_t>(data)));
  }
}

absl::Status StepResults::Compute(const TensorView& normed, const kernels::PackedMatrix& weight) {
  for (int64_t begin = 0; begin < num_rows_; begin += logits_.rows) {
    const int64_t rows = std::min(logits_.rows, num_rows_ - begin);
    const TensorView logits = logits_.Rows(0, rows);
    if (absl::Status status = kernels::Linear(
            device_, {.x = normed.Rows(begin, rows), .weight = &weight, .y = logits});
        !status.ok()) {
      return status;
    }
    if (sampled_ == nullptr) continue;
    if (absl::Status status = kernels::SampleTokens(device_, {.logits = logits,
                                                              .rows = samples_.device(begin),
                                                              .edits = edits_.device(0),
                                                              .out = sampled_ + begin});
        !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status StepResults::Copy(StepOutput* output) {
  output->sampled.resize(sampled_ != nullptr ? num_rows_ : 0);
  output->logits.resize(sampled_ != nullptr ? 0 : logits_.rows * logits_.cols);
  if (num_rows_ == 0) return absl::OkStatus();
  if (sampled_ != nullptr) {
    return device_.CopyToHost(output->sampled.data(), sampled_,
                              output->sampled.size() * sizeof(kernels::SampledRow));
  }
  return device_.CopyToHost(output->logits.data(), logits_.data,
                            output->logits.size() * sizeof(float));
}

}  // namespace hyserve::model
