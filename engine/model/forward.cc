#include "engine/model/forward.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/attention/attention_plan.h"
#include "engine/attention/staged_array.h"
#include "engine/kernels/ops.h"
#include "engine/model/attention_layers.h"
#include "engine/model/feed_forward.h"
#include "engine/model/layout.h"
#include "engine/model/reserve.h"
#include "engine/model/step.h"
#include "engine/model/step_results.h"
#include "engine/model/workspace.h"

namespace hyserve::model {
namespace {

using attention::PlanSequence;
using tensor::TensorView;

class HySparseModel final : public Model {
 public:
  HySparseModel(tensor::Device& device, const ModelConfig& config, ModelWeights weights,
                const ModelOptions& options)
      : device_(device),
        config_(config),
        layout_(MakeKvLayout(config, options.kv_dtype, weights.digest)),
        slots_(SlotsOfLayers(config, layout_)),
        weights_(std::move(weights)),
        workspace_(device),
        results_(device, workspace_) {}

  const ModelConfig& config() const override { return config_; }
  const kv_cache::KvLayout& layout() const override { return layout_; }
  size_t weight_bytes() const override { return weights_.bytes; }
  int64_t num_parameters() const override { return weights_.num_parameters; }

  absl::Status ReserveWorkspaces(const StepLimits& limits) override;
  absl::Status Forward(const StepInput& input, attention::KvPool& pool,
                       StepOutput* output) override {
    if (pool.layout() != layout_) {
      return absl::InvalidArgumentError("step: the KV pool has another layout than the model");
    }
    if (absl::Status status = CheckStepInput(input, config_, pool); !status.ok()) return status;
    if (absl::Status status = Plan(input, output); !status.ok()) return status;
    StepContext step = {.device = device_,
                        .config = config_,
                        .weights = weights_,
                        .slots = slots_,
                        .pool = pool,
                        .workspace = workspace_,
                        .on_layer_kv_ready = input.on_layer_kv_ready,
                        .batch = plan_.batch(),
                        .chosen_batch = chosen_is_all_ ? plan_.batch() : chosen_plan_.batch(),
                        .chosen_rows = ids_.device(plan_.batch().num_rows),
                        .chosen_is_all = chosen_is_all_};
    if (absl::Status status = PrepareSelections(step); !status.ok()) return status;
    if (absl::Status status = results_.Prepare(input, step.num_chosen(), config_.vocab_size);
        !status.ok()) {
      return status;
    }
    const auto run = [&] { return RunLayers(step); };
    if (absl::Status status = step.batch.context_bound > 0
                                  ? device_.RunRecorded(RecordingKey(step), run)
                                  : run();
        !status.ok()) {
      return status;
    }
    if (absl::Status status = AnnounceAllLayers(step); !status.ok()) return status;
    if (absl::Status status = results_.Copy(output); !status.ok()) return status;
    return CopySelections(input, step, output);
  }

 private:
  // The residual stream and what the last sub-layer adds to it.
  struct Stream {
    TensorView hidden;
    TensorView delta;
  };

  absl::Status Plan(const StepInput& input, StepOutput* output);
  absl::Status PrepareSelections(StepContext& step);
  std::vector<int64_t> RecordingKey(const StepContext& step) const;
  absl::Status RunLayers(StepContext& step);
  absl::StatusOr<TensorView> Normalise(Workspace::Slot slot, Stream& stream,
                                       const tensor::Buffer& weight);
  absl::StatusOr<TensorView> Choose(const StepContext& step, Workspace::Slot slot,
                                    const TensorView& rows);
  absl::Status RunLastFullLayer(StepContext& step, int layer, Stream& stream);
  absl::Status ComputeLogits(StepContext& step, Stream& stream);
  absl::Status CopySelections(const StepInput& input, const StepContext& step,
                              StepOutput* output);

  tensor::Device& device_;
  const ModelConfig config_;
  const kv_cache::KvLayout layout_;
  const std::vector<LayerSlots> slots_;
  const ModelWeights weights_;
  Workspace workspace_;
  StepResults results_;
  attention::AttentionPlan plan_;         // all rows
  attention::AttentionPlan chosen_plan_;  // rows whose logits are wanted, where not all
  bool chosen_is_all_ = false;
  attention::StagedArray<int32_t> ids_;  // token ids of all rows, then the chosen rows
};

absl::Status HySparseModel::ReserveWorkspaces(const StepLimits& limits) {
  if (absl::Status status = ids_.Reserve(device_, 2 * limits.num_rows); !status.ok()) {
    return status;
  }
  for (attention::AttentionPlan* plan : {&plan_, &chosen_plan_}) {
    if (absl::Status status = plan->Reserve(device_, limits.num_sequences, limits.num_rows,
                                            limits.context_tokens);
        !status.ok()) {
      return status;
    }
  }
  if (absl::Status status =
          results_.Reserve(limits.num_rows, limits.num_sequences, config_.vocab_size);
      !status.ok()) {
    return status;
  }
  return ReserveStep(device_, config_, layout_, weights_, limits, &workspace_);
}

absl::Status HySparseModel::Plan(const StepInput& input, StepOutput* output) {
  std::vector<PlanSequence> all, chosen;
  std::vector<int32_t> chosen_rows;
  output->logit_row_begin.assign(1, 0);
  ids_.Reset();
  int32_t row = 0;
  for (const SequenceRows& sequence : input.sequences) {
    const int32_t num_rows = static_cast<int32_t>(sequence.token_ids.size());
    all.push_back({num_rows, sequence.first_position, sequence.blocks, sequence.slab});
    int32_t skipped = 0;
    if (sequence.logits == SequenceRows::Logits::kNone) skipped = num_rows;
    if (sequence.logits == SequenceRows::Logits::kLast) skipped = num_rows - 1;
    if (skipped < num_rows) {
      chosen.push_back({num_rows - skipped, sequence.first_position + skipped, sequence.blocks,
                        sequence.slab});
    }
    for (int32_t i = 0; i < num_rows; ++i, ++row) {
      ids_.Push(sequence.token_ids[i]);
      if (i >= skipped) chosen_rows.push_back(row);
    }
    output->logit_row_begin.push_back(static_cast<int32_t>(chosen_rows.size()));
  }
  for (const int32_t chosen_row : chosen_rows) ids_.Push(chosen_row);
  if (absl::Status status = ids_.Upload(device_); !status.ok()) return status;
  chosen_is_all_ = static_cast<int32_t>(chosen_rows.size()) == row;
  // What only generates is the same step again and again.
  const bool repeatable =
      chosen_is_all_ && row == static_cast<int32_t>(all.size()) && !input.on_layer_kv_ready;
  if (absl::Status status = plan_.Build(device_, all, repeatable); !status.ok()) return status;
  return chosen_is_all_ ? absl::OkStatus() : chosen_plan_.Build(device_, chosen);
}

absl::Status HySparseModel::PrepareSelections(StepContext& step) {
  step.selections.resize(layout_.oracle_slots.size());
  for (size_t oracle = 0; oracle < step.selections.size(); ++oracle) {
    const absl::StatusOr<int32_t*> buffer = workspace_.Selection(
        static_cast<int>(oracle),
        step.batch.num_rows * int64_t{layout_.num_kv_heads} * layout_.selected_blocks);
    if (!buffer.ok()) return buffer.status();
    step.selections[oracle] = *buffer;
  }
  return absl::OkStatus();
}

// All that RunLayers depends on beside the model and its workspace, which keep their places as long
// as nothing is allocated.
std::vector<int64_t> HySparseModel::RecordingKey(const StepContext& step) const {
  const auto address = [](const void* data) {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(data));
  };
  std::vector<int64_t> key = {address(this),
                              address(&step.pool),
                              address(step.pool.block_memory().data()),
                              address(step.pool.slab_memory().data()),
                              step.batch.num_rows,
                              step.batch.context_bound,
                              address(step.batch.positions),
                              address(ids_.device(0))};
  results_.AddToRecordingKey(key);
  return key;
}

absl::StatusOr<TensorView> HySparseModel::Normalise(Workspace::Slot slot, Stream& stream,
                                                    const tensor::Buffer& weight) {
  const absl::StatusOr<TensorView> out = workspace_.Get(
      slot, device_.activation_dtype(), stream.hidden.rows, config_.hidden_size);
  if (!out.ok()) return out.status();
  if (absl::Status status = kernels::AddRmsNorm(
          device_, {.hidden = stream.hidden,
                    .delta = stream.delta,
                    .weight = static_cast<const float*>(weight.data()),
                    .epsilon = static_cast<float>(config_.rms_norm_epsilon),
                    .out = *out});
      !status.ok()) {
    return status;
  }
  stream.delta = TensorView();
  return *out;
}

absl::StatusOr<TensorView> HySparseModel::Choose(const StepContext& step, Workspace::Slot slot,
                                                 const TensorView& rows) {
  if (step.chosen_is_all || rows.empty()) return rows;
  const absl::StatusOr<TensorView> out =
      workspace_.Get(slot, rows.dtype, step.num_chosen(), rows.cols);
  if (!out.ok()) return out.status();
  if (absl::Status status = kernels::GatherRows(
          device_, {.x = rows, .rows = step.chosen_rows, .out = *out});
      !status.ok()) {
    return status;
  }
  return *out;
}

absl::Status HySparseModel::RunLayers(StepContext& step) {
  Stream stream;
  const absl::StatusOr<TensorView> hidden =
      workspace_.Get(Workspace::kHidden, device_.activation_dtype(), step.batch.num_rows,
                     config_.hidden_size);
  if (!hidden.ok()) return hidden.status();
  stream.hidden = *hidden;
  if (absl::Status status = kernels::EmbedTokens(
          device_,
          {.token_ids = ids_.device(0), .table = weights_.embedding_table, .out = *hidden});
      !status.ok()) {
    return status;
  }
  for (int layer = 0; layer < config_.num_layers(); ++layer) {
    const LayerWeights& weights = weights_.layers[layer];
    const bool last = layer == config_.num_layers() - 1;
    if (last && config_.last_layer_prunable()) {
      if (absl::Status status = RunLastFullLayer(step, layer, stream); !status.ok()) return status;
    } else {
      const absl::StatusOr<TensorView> normed =
          Normalise(Workspace::kNormed, stream, weights.input_norm);
      if (!normed.ok()) return normed.status();
      const bool output_wanted = !last || step.num_chosen() > 0;
      const absl::StatusOr<TensorView> delta =
          config_.layers[layer].kind == LayerKind::kFull
              ? RunFullLayer(step, layer, *normed)
              : RunWindowLayer(step, layer, *normed, output_wanted);
      if (!delta.ok()) return delta.status();
      stream.delta = *delta;
    }
    if (last && step.num_chosen() == 0) return absl::OkStatus();
    const absl::StatusOr<TensorView> normed =
        Normalise(Workspace::kNormed, stream, weights.post_attention_norm);
    if (!normed.ok()) return normed.status();
    const absl::StatusOr<TensorView> delta = RunFeedForward(step, layer, *normed);
    if (!delta.ok()) return delta.status();
    stream.delta = *delta;
  }
  return ComputeLogits(step, stream);
}

// Leaves the stream with the chosen rows only.
absl::Status HySparseModel::RunLastFullLayer(StepContext& step, int layer, Stream& stream) {
  const absl::StatusOr<TensorView> normed =
      Normalise(Workspace::kNormed, stream, weights_.layers[layer].input_norm);
  if (!normed.ok()) return normed.status();
  if (absl::Status status = AppendKvOfPrunedLayer(step, layer, *normed); !status.ok()) {
    return status;
  }
  if (step.num_chosen() == 0) return absl::OkStatus();
  const absl::StatusOr<TensorView> chosen_normed =
      Choose(step, Workspace::kChosenNormed, *normed);
  if (!chosen_normed.ok()) return chosen_normed.status();
  const absl::StatusOr<TensorView> chosen_hidden =
      Choose(step, Workspace::kChosenHidden, stream.hidden);
  if (!chosen_hidden.ok()) return chosen_hidden.status();
  const absl::StatusOr<TensorView> delta = RunPrunedLayer(step, layer, *chosen_normed);
  if (!delta.ok()) return delta.status();
  stream = {*chosen_hidden, *delta};
  return absl::OkStatus();
}

absl::Status HySparseModel::ComputeLogits(StepContext& step, Stream& stream) {
  if (stream.hidden.rows != step.num_chosen()) {
    const absl::StatusOr<TensorView> hidden =
        Choose(step, Workspace::kChosenHidden, stream.hidden);
    if (!hidden.ok()) return hidden.status();
    const absl::StatusOr<TensorView> delta = Choose(step, Workspace::kChosenDelta, stream.delta);
    if (!delta.ok()) return delta.status();
    stream = {*hidden, *delta};
  }
  const absl::StatusOr<TensorView> normed =
      Normalise(Workspace::kChosenNormed, stream, weights_.final_norm);
  if (!normed.ok()) return normed.status();
  return results_.Compute(*normed, *weights_.logits);
}

// After the layers are announced, because it waits for the whole step.
absl::Status HySparseModel::CopySelections(const StepInput& input, const StepContext& step,
                                           StepOutput* output) {
  output->selections.assign(input.sequences.size(), {});
  const int64_t per_row = int64_t{layout_.num_kv_heads} * layout_.selected_blocks;
  for (size_t s = 0; s < input.sequences.size(); ++s) {
    if (!input.sequences[s].want_selection) continue;
    std::vector<int32_t>& selection = output->selections[s];
    selection.resize(per_row * layout_.oracle_slots.size());
    const int64_t last_row = step.batch.row_begin[s + 1] - 1;
    for (size_t oracle = 0; oracle < layout_.oracle_slots.size(); ++oracle) {
      if (absl::Status status = device_.CopyToHost(selection.data() + oracle * per_row,
                                                   step.selections[oracle] + last_row * per_row,
                                                   per_row * sizeof(int32_t));
          !status.ok()) {
        return status;
      }
    }
  }
  // Nothing of this step may still be under way when the caller frees its inputs.
  return device_.Synchronize();
}

}  // namespace

std::unique_ptr<Model> MakeModel(tensor::Device& device, const ModelConfig& config,
                                 ModelWeights weights, const ModelOptions& options) {
  return std::make_unique<HySparseModel>(device, config, std::move(weights), options);
}

}  // namespace hyserve::model
