#include "engine/model/reserve.h"

#include <algorithm>
#include <cstdint>

#include "engine/attention/attention_plan.h"
#include "engine/kernels/ops.h"
#include "engine/kernels/reserve.h"
#include "engine/model/step_results.h"

namespace hyserve::model {
namespace {

using tensor::DType;
using tensor::TensorView;

class Reservation {
 public:
  Reservation(tensor::Device& device, const ModelConfig& config, const kv_cache::KvLayout& layout,
              const ModelWeights& weights, const StepLimits& limits, Workspace& workspace)
      : device_(device),
        config_(config),
        layout_(layout),
        weights_(weights),
        limits_(limits),
        workspace_(workspace) {}

  absl::Status Run() {
    ReserveSlots();
    for (int layer = 0; layer < config_.num_layers(); ++layer) ReserveOps(layer);
    ReserveProduct(Workspace::kChosenNormed, weights_.logits, Workspace::kLogits);
    return status_;
  }

 private:
  // The widest use of every slot, in columns.
  struct Columns {
    int64_t projection = 0;
    int64_t pruned_q = 0;
    int64_t attention = 0;
    int64_t gate_up = 0;
    int64_t router = 0;
    int64_t step_k = 0;
    int64_t step_v = 0;
  };

  Columns WidestLayer() const {
    Columns most;
    for (int i = 0; i < config_.num_layers(); ++i) {
      const LayerSpec& layer = config_.layers[i];
      const LayerWeights& weights = weights_.layers[i];
      const AttentionShape& shape = config_.shape(layer.kind);
      const auto widen = [](int64_t& columns, int64_t by) { columns = std::max(columns, by); };
      widen(most.projection, weights.columns.total());
      widen(most.attention, int64_t{shape.num_heads} * shape.v_head_dim);
      if (weights.pruned_q != nullptr) widen(most.pruned_q, weights.pruned_q->out_features());
      if (layer.is_moe) {
        widen(most.router, weights.router->out_features());
      } else {
        widen(most.gate_up, weights.gate_up[0]->out_features());
      }
      if (layer.kind == LayerKind::kFull) continue;
      widen(most.step_k, weights.columns.k);
      widen(most.step_v, weights.columns.v);
    }
    return most;
  }

  void ReserveSlots() {
    const Columns most = WidestLayer();
    const DType dtype = device_.activation_dtype();
    const int64_t rows = limits_.num_rows;
    const int64_t hidden = config_.hidden_size;
    // All rows may be chosen: of prompts whose log-probabilities are wanted.
    for (const Workspace::Slot slot :
         {Workspace::kHidden, Workspace::kNormed, Workspace::kDelta, Workspace::kChosenHidden,
          Workspace::kChosenNormed, Workspace::kChosenDelta}) {
      Grow(slot, dtype, rows, hidden);
    }
    Grow(Workspace::kProjection, dtype, rows, most.projection);
    Grow(Workspace::kQuery, dtype, rows, most.pruned_q);
    Grow(Workspace::kAttention, dtype, rows, most.attention);
    Grow(Workspace::kGateUp, dtype, rows, most.gate_up);
    Grow(Workspace::kActivated, dtype, rows, most.gate_up / 2);
    Grow(Workspace::kRouter, DType::kF32, rows, most.router);
    Grow(Workspace::kStepK, layout_.dtype, rows, most.step_k);
    Grow(Workspace::kStepV, layout_.dtype, rows, most.step_v);
    for (size_t oracle = 0; oracle < layout_.oracle_slots.size() && status_.ok(); ++oracle) {
      Take(workspace_
               .Selection(static_cast<int>(oracle),
                          rows * int64_t{layout_.num_kv_heads} * layout_.selected_blocks)
               .status());
    }
  }

  // What the ops of a layer take, from where their operands will lie.
  void ReserveOps(int index) {
    const LayerSpec& layer = config_.layers[index];
    const LayerWeights& weights = weights_.layers[index];
    ReserveProduct(Workspace::kNormed, weights.projection, Workspace::kProjection);
    if (weights.pruned_q != nullptr) {
      ReserveProduct(Workspace::kChosenNormed, weights.pruned_q, Workspace::kQuery);
    }
    ReserveAttention(layer);
    ReserveProduct(Workspace::kAttention, weights.output, Workspace::kDelta);
    if (!layer.is_moe) {
      ReserveProduct(Workspace::kNormed, weights.gate_up[0], Workspace::kGateUp);
      ReserveProduct(Workspace::kActivated, weights.down[0], Workspace::kDelta);
      return;
    }
    ReserveProduct(Workspace::kNormed, weights.router, Workspace::kRouter);
    if (!status_.ok()) return;
    const int64_t rows = limits_.num_rows;
    const DType dtype = device_.activation_dtype();
    Take(kernels::ReserveMixtureOfExperts(
        device_,
        {.x = View(Workspace::kNormed, dtype, rows, config_.hidden_size),
         .router_logits =
             View(Workspace::kRouter, DType::kF32, rows, weights.router->out_features()),
         .correction_bias = static_cast<const float*>(weights.router_bias.data()),
         .gate_up = weights.gate_up,
         .down = weights.down,
         .experts_per_token = config_.experts_per_token,
         .normalize = config_.normalize_topk,
         .scaling_factor = static_cast<float>(config_.routed_scaling_factor),
         .out = View(Workspace::kDelta, dtype, rows, config_.hidden_size)}));
  }

  void ReserveAttention(const LayerSpec& layer) {
    if (!status_.ok()) return;
    const AttentionShape& shape = config_.shape(layer.kind);
    const kernels::AttentionLimits limits = {
        .num_heads = shape.num_heads,
        .num_kv_heads = shape.num_kv_heads,
        .head_dim = shape.head_dim,
        .v_head_dim = shape.v_head_dim,
        .selected_blocks = layer.is_oracle || layer.kind == LayerKind::kSparse
                               ? config_.selected_blocks()
                               : 0,
        .num_rows = limits_.num_rows,
        .num_seqs = limits_.num_sequences,
        .context_tokens =
            attention::AttentionPlan::MostContextBound(limits_.context_tokens)};
    Take(layer.kind == LayerKind::kFull
             ? kernels::ReserveFullAttention(device_, limits)
             : kernels::ReserveWindowSparseAttention(device_, limits));
  }

  // y = x W^T of the most rows; logits of those that are there at once.
  void ReserveProduct(Workspace::Slot x, const Matrix& weight, Workspace::Slot y) {
    if (!status_.ok()) return;
    const DType dtype = device_.activation_dtype();
    const int64_t rows = y == Workspace::kLogits ? std::min(limits_.num_rows, kSampledRowsAtATime)
                                                 : limits_.num_rows;
    const DType y_dtype =
        y == Workspace::kLogits || y == Workspace::kRouter ? DType::kF32 : dtype;
    Take(kernels::ReserveLinear(device_, {.x = View(x, dtype, rows, weight->in_features()),
                                          .weight = weight.get(),
                                          .y = View(y, y_dtype, rows, weight->out_features())}));
  }

  TensorView View(Workspace::Slot slot, DType dtype, int64_t rows, int64_t cols) {
    const absl::StatusOr<TensorView> view = workspace_.Get(slot, dtype, rows, cols);
    Take(view.status());
    return view.ok() ? *view : TensorView();
  }
  void Grow(Workspace::Slot slot, DType dtype, int64_t rows, int64_t cols) {
    if (status_.ok() && cols > 0) View(slot, dtype, rows, cols);
  }
  void Take(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }

  tensor::Device& device_;
  const ModelConfig& config_;
  const kv_cache::KvLayout& layout_;
  const ModelWeights& weights_;
  const StepLimits& limits_;
  Workspace& workspace_;
  absl::Status status_;  // the first error
};

}  // namespace

absl::Status ReserveStep(tensor::Device& device, const ModelConfig& config,
                         const kv_cache::KvLayout& layout, const ModelWeights& weights,
                         const StepLimits& limits, Workspace* workspace) {
  return Reservation(device, config, layout, weights, limits, *workspace).Run();
}

}  // namespace hyserve::model
