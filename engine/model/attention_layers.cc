#include "engine/model/attention_layers.h"

#include <cmath>
#include <utility>

#include "engine/kernels/ops.h"

namespace hyserve::model {
namespace {

using tensor::DType;
using tensor::TensorView;

const float* Floats(const tensor::Buffer& buffer) {
  return static_cast<const float*>(buffer.data());
}

// Views of the stacked projection of a layer.
struct Projected {
  TensorView q, k, v, window_gate, sparse_gate;
};

absl::StatusOr<Projected> Project(StepContext& step, const LayerWeights& weights,
                                  const TensorView& normed) {
  const ProjectionColumns& columns = weights.columns;
  const absl::StatusOr<TensorView> all =
      step.workspace.Get(Workspace::kProjection, step.device.activation_dtype(), normed.rows,
                         columns.total());
  if (!all.ok()) return all.status();
  if (absl::Status status = kernels::Linear(
          step.device, {.x = normed, .weight = weights.projection.get(), .y = *all});
      !status.ok()) {
    return status;
  }
  int64_t begin = 0;
  const auto take = [&](int64_t count) {
    const TensorView view = count > 0 ? all->Columns(begin, count) : TensorView();
    begin += count;
    return view;
  };
  Projected projected;
  projected.q = take(columns.q);
  projected.k = take(columns.k);
  projected.v = take(columns.v);
  projected.window_gate = take(columns.window_gate);
  projected.sparse_gate = take(columns.sparse_gate);
  return projected;
}

const double* InvFreq(const StepContext& step, LayerKind kind) {
  const tensor::Buffer& buffer = kind == LayerKind::kSliding ? step.weights.sliding_inv_freq
                                                             : step.weights.full_inv_freq;
  return static_cast<const double*>(buffer.data());
}

float Scale(const AttentionShape& shape) {
  return static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim)));
}

// Rotates queries and keys, and caches the keys and values.
absl::Status AppendKv(StepContext& step, int layer, const Projected& projected) {
  const int layer_slot = step.slots[layer].layer_slot;
  const AttentionShape& shape = step.config.full;
  if (absl::Status status = kernels::AppendPagedKv(
          step.device, {.q = projected.q,
                        .k = projected.k,
                        .v = projected.v,
                        .rotary_dim = shape.rotary_dim,
                        .inv_freq = InvFreq(step, LayerKind::kFull),
                        .value_scale = static_cast<float>(step.config.attention_value_scale),
                        .batch = &step.batch,
                        .kv = step.pool.Paged(layer_slot)});
      !status.ok()) {
    return status;
  }
  if (!step.on_layer_kv_ready) return absl::OkStatus();
  const absl::StatusOr<int64_t> marker = step.device.Mark();
  if (!marker.ok()) return marker.status();
  step.pending_layers.push_back({layer_slot, *marker});
  return AnnounceReadyLayers(step);
}

// Attention of a full layer, with rotated queries, and its output projection, for the rows of
// `batch`.
absl::StatusOr<TensorView> AttendFull(StepContext& step, int layer, const TensorView& q,
                                      const kernels::AttentionBatch& batch, int32_t* selection) {
  const AttentionShape& shape = step.config.full;
  const DType dtype = step.device.activation_dtype();
  const absl::StatusOr<TensorView> attention = step.workspace.Get(
      Workspace::kAttention, dtype, q.rows, int64_t{shape.num_heads} * shape.v_head_dim);
  if (!attention.ok()) return attention.status();
  if (absl::Status status = kernels::FullAttention(
          step.device,
          {.q = q,
           .out = *attention,
           .num_heads = shape.num_heads,
           .scale = Scale(shape),
           .batch = &batch,
           .kv = step.pool.Paged(step.slots[layer].layer_slot),
           .selection = selection,
           .selected_blocks = selection == nullptr ? 0 : step.config.selected_blocks()});
      !status.ok()) {
    return status;
  }
  const absl::StatusOr<TensorView> delta =
      step.workspace.Get(Workspace::kDelta, dtype, q.rows, step.config.hidden_size);
  if (!delta.ok()) return delta.status();
  if (absl::Status status = kernels::Linear(
          step.device,
          {.x = *attention, .weight = step.weights.layers[layer].output.get(), .y = *delta});
      !status.ok()) {
    return status;
  }
  return *delta;
}

// Keys and values of this step's rows of a window layer, in the cache's dtype.
struct StepKv {
  TensorView k, v;
};
// Queries are rotated with the keys. With `ring` the rows are in the ring too.
absl::StatusOr<StepKv> PrepareStepKv(StepContext& step, LayerKind kind, const Projected& projected,
                                     const kernels::WindowKv& ring) {
  const AttentionShape& shape = step.config.shape(kind);
  const DType dtype = step.pool.layout().dtype;
  const absl::StatusOr<TensorView> k =
      step.workspace.Get(Workspace::kStepK, dtype, projected.k.rows, projected.k.cols);
  if (!k.ok()) return k.status();
  const absl::StatusOr<TensorView> v =
      step.workspace.Get(Workspace::kStepV, dtype, projected.v.rows, projected.v.cols);
  if (!v.ok()) return v.status();
  if (absl::Status status = kernels::PrepareWindowKv(
          step.device, {.q = projected.q,
                        .k = projected.k,
                        .v = projected.v,
                        .rotary_dim = shape.rotary_dim,
                        .inv_freq = InvFreq(step, kind),
                        .value_scale = static_cast<float>(step.config.attention_value_scale),
                        .batch = &step.batch,
                        .step_k = *k,
                        .step_v = *v,
                        .num_kv_heads = shape.num_kv_heads,
                        .head_dim = shape.head_dim,
                        .ring = ring});
      !status.ok()) {
    return status;
  }
  return StepKv{*k, *v};
}

absl::StatusOr<TensorView> AttendWindow(StepContext& step, int layer, const Projected& projected,
                                        const StepKv& step_kv) {
  const LayerKind kind = step.config.layers[layer].kind;
  const AttentionShape& shape = step.config.shape(kind);
  const LayerWeights& weights = step.weights.layers[layer];
  const LayerSlots& slots = step.slots[layer];
  const DType dtype = step.device.activation_dtype();
  const absl::StatusOr<TensorView> attention =
      step.workspace.Get(Workspace::kAttention, dtype, projected.q.rows,
                         int64_t{shape.num_heads} * shape.v_head_dim);
  if (!attention.ok()) return attention.status();

  kernels::WindowSparseAttentionParams params;
  params.q = projected.q;
  params.out = *attention;
  params.num_heads = shape.num_heads;
  params.scale = Scale(shape);
  params.batch = &step.batch;
  params.ring = step.pool.Window(slots.ring);
  params.step_k = step_kv.k;
  params.step_v = step_kv.v;
  params.window_sink = Floats(weights.window_sink);
  params.window_gate = projected.window_gate;
  if (kind == LayerKind::kSparse) {
    params.kv = step.pool.Paged(slots.layer_slot);
    params.selection = step.selections[slots.oracle];
    params.selected_blocks = step.config.selected_blocks();
    params.sparse_sink = Floats(weights.sparse_sink);
    params.sparse_gate = projected.sparse_gate;
  }
  if (absl::Status status = kernels::WindowSparseAttention(step.device, params); !status.ok()) {
    return status;
  }
  return *attention;
}

}  // namespace

absl::StatusOr<TensorView> RunFullLayer(StepContext& step, int layer, const TensorView& normed) {
  const absl::StatusOr<Projected> projected =
      Project(step, step.weights.layers[layer], normed);
  if (!projected.ok()) return projected.status();
  if (absl::Status status = AppendKv(step, layer, *projected); !status.ok()) return status;

  const int oracle = step.slots[layer].oracle;
  int32_t* const selection = oracle < 0 ? nullptr : step.selections[oracle];
  return AttendFull(step, layer, projected->q, step.batch, selection);
}

absl::StatusOr<TensorView> RunWindowLayer(StepContext& step, int layer, const TensorView& normed,
                                          bool output_wanted) {
  const LayerWeights& weights = step.weights.layers[layer];
  const absl::StatusOr<Projected> projected = Project(step, weights, normed);
  if (!projected.ok()) return projected.status();
  const kernels::WindowKv ring = step.pool.Window(step.slots[layer].ring);
  const bool one_row_each = step.batch.max_rows_per_seq == 1;
  const absl::StatusOr<StepKv> step_kv =
      PrepareStepKv(step, step.config.layers[layer].kind, *projected,
                    one_row_each ? ring : kernels::WindowKv());
  if (!step_kv.ok()) return step_kv.status();

  TensorView delta;
  if (output_wanted) {
    const absl::StatusOr<TensorView> attention =
        AttendWindow(step, layer, *projected, *step_kv);
    if (!attention.ok()) return attention.status();
    const absl::StatusOr<TensorView> out =
        step.workspace.Get(Workspace::kDelta, step.device.activation_dtype(), normed.rows,
                           step.config.hidden_size);
    if (!out.ok()) return out.status();
    delta = *out;
    if (absl::Status status = kernels::Linear(
            step.device, {.x = *attention, .weight = weights.output.get(), .y = delta});
        !status.ok()) {
      return status;
    }
  }
  if (one_row_each) return delta;
  // After the attention: until then the ring holds keys that the step's first rows see.
  if (absl::Status status = kernels::StoreWindowKv(
          step.device,
          {.step_k = step_kv->k, .step_v = step_kv->v, .batch = &step.batch, .ring = ring});
      !status.ok()) {
    return status;
  }
  return delta;
}

absl::Status AppendKvOfPrunedLayer(StepContext& step, int layer, const TensorView& normed) {
  const absl::StatusOr<Projected> projected =
      Project(step, step.weights.layers[layer], normed);
  if (!projected.ok()) return projected.status();
  return AppendKv(step, layer, *projected);
}

absl::StatusOr<TensorView> RunPrunedLayer(StepContext& step, int layer,
                                          const TensorView& chosen_normed) {
  const LayerWeights& weights = step.weights.layers[layer];
  const absl::StatusOr<TensorView> q =
      step.workspace.Get(Workspace::kQuery, step.device.activation_dtype(), chosen_normed.rows,
                         weights.pruned_q->out_features());
  if (!q.ok()) return q.status();
  if (absl::Status status = kernels::Linear(
          step.device, {.x = chosen_normed, .weight = weights.pruned_q.get(), .y = *q});
      !status.ok()) {
    return status;
  }
  const AttentionShape& shape = step.config.full;
  if (absl::Status status =
          kernels::Rotary(step.device, {.x = *q,
                                        .num_heads = shape.num_heads,
                                        .head_dim = shape.head_dim,
                                        .rotary_dim = shape.rotary_dim,
                                        .inv_freq = InvFreq(step, LayerKind::kFull),
                                        .positions = step.chosen_batch.positions});
      !status.ok()) {
    return status;
  }
  return AttendFull(step, layer, *q, step.chosen_batch, /*selection=*/nullptr);
}

}  // namespace hyserve::model
