// A model without arithmetic: a hash chain through the KV pool.
//
// What a row writes into pages and rings, and the logits, are hashes of what the row reads from
// them: all earlier keys and values of its sequence and the whole window. So any mix-up of blocks,
// slabs, positions or snapshots changes the tokens, while batching, chunking and hand-offs must
// not.
#ifndef HYSERVE_TESTS_SUPPORT_FAKE_MODEL_H_
#define HYSERVE_TESTS_SUPPORT_FAKE_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/model/model.h"
#include "engine/tensor/device.h"

namespace hyserve::testing_support {

struct FakeModelOptions {
  bool has_window_layers = true;
  int32_t vocab_size = 97;
  int32_t max_position_embeddings = 4096;
  int32_t eos_token_id = 96;
  int32_t nan_token_id = 95;  // a sequence whose rows contain it gets logits that are NaN
  // What ReserveWorkspaces does; null: nothing.
  std::function<absl::Status(const model::StepLimits& limits)> reserve = nullptr;
};

class FakeModel final : public model::Model {
 public:
  explicit FakeModel(const FakeModelOptions& options = {});

  const model::ModelConfig& config() const override { return config_; }
  const kv_cache::KvLayout& layout() const override { return layout_; }
  size_t weight_bytes() const override { return 0; }
  int64_t num_parameters() const override { return 0; }
  absl::Status ReserveWorkspaces(const model::StepLimits& limits) override {
    return reserve_ ? reserve_(limits) : absl::OkStatus();
  }
  absl::Status Forward(const model::StepInput& input, attention::KvPool& pool,
                       model::StepOutput* output) override;

  // Called at the beginning of every Forward, on the engine thread; an error is its result. May
  // block, to hold a step. Thread-safe.
  using Hook = std::function<absl::Status(const model::StepInput& input)>;
  void SetHook(Hook hook);

 private:
  void ComputeSlot(int slot, const model::SequenceRows& rows, attention::KvPool& pool) const;
  void AppendLogits(const model::SequenceRows& rows, int32_t position, attention::KvPool& pool,
                    bool nan, std::vector<float>* logits) const;

  model::ModelConfig config_;
  kv_cache::KvLayout layout_;
  const std::unique_ptr<tensor::Device> device_;  // samples
  const int32_t nan_token_id_;
  const std::function<absl::Status(const model::StepLimits& limits)> reserve_;
  absl::Mutex mutex_;
  Hook hook_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hyserve::testing_support

#endif  // HYSERVE_TESTS_SUPPORT_FAKE_MODEL_H_
