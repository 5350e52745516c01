// Checks and dispatch of the ops that know positions and the cache.
#include "engine/kernels/blocks.h"
#include "engine/kernels/cpu/cpu_ops.h"
#include "engine/kernels/dispatch.h"
#include "engine/kernels/ops.h"
#include "engine/kernels/shape_checks.h"

namespace hyserve::kernels {
namespace {

using tensor::DType;

void CheckRotary(ShapeCheck& check, int rotary_dim, int head_dim, const double* inv_freq) {
  check
      .Require(rotary_dim >= 0 && rotary_dim % 2 == 0 && rotary_dim <= head_dim,
               "rotary_dim must be even and at most head_dim")
      .Require(rotary_dim == 0 || inv_freq != nullptr, "no inv_freq");
}

void CheckPages(ShapeCheck& check, const PagedKv& kv, const AttentionBatch* batch) {
  check.Cached("pages", kv.dtype)
      .Require(kv.data != nullptr, "no pages")
      .Require(kv.num_kv_heads > 0 && kv.head_dim > 0 && kv.v_head_dim > 0,
               "pages need positive heads and dims")
      .Require(batch == nullptr || batch->num_rows == 0 || batch->page_table != nullptr,
               "batch has no page table");
}

void CheckRing(ShapeCheck& check, const WindowKv& ring, const AttentionBatch* batch) {
  check.Cached("ring", ring.dtype)
      .Require(ring.data != nullptr, "no ring")
      .Require(ring.window > 0, "window must be positive")
      .Require(ring.num_kv_heads > 0 && ring.head_dim > 0 && ring.v_head_dim > 0,
               "ring needs positive heads and dims")
      .Require(batch == nullptr || batch->num_rows == 0 || batch->slab_index != nullptr,
               "batch has no slab indices");
}

// Queries that an op may be given to rotate with the keys.
void CheckQueries(ShapeCheck& check, const TensorView& q, int64_t rows, int head_dim,
                  DType dtype) {
  if (q.empty()) return;
  check.Matrix("q", q, rows, q.cols, dtype)
      .Require(head_dim > 0 && q.cols % head_dim == 0, "q must have whole heads");
}

bool DividesInto(int kv_heads, int heads) {
  return kv_heads > 0 && heads > 0 && heads % kv_heads == 0;
}

}  // namespace

absl::Status Rotary(Device& device, const RotaryParams& params) {
  ShapeCheck check("Rotary");
  check.Matrix("x", params.x, params.x.rows,
               static_cast<int64_t>(params.num_heads) * params.head_dim,
               device.activation_dtype());
  CheckRotary(check, params.rotary_dim, params.head_dim, params.inv_freq);
  check.Require(params.rotary_dim == 0 || params.positions != nullptr || params.x.rows == 0,
                "no positions");
  if (!check.ok()) return check.status();
  return Dispatch(device, "Rotary", cpu::Rotary, cuda::Rotary, params);
}

absl::Status AppendPagedKv(Device& device, const AppendPagedKvParams& params) {
  const PagedKv& kv = params.kv;
  const DType dtype = device.activation_dtype();
  const int64_t rows = params.k.rows;
  ShapeCheck check("AppendPagedKv");
  CheckPages(check, kv, params.batch);
  CheckRotary(check, params.rotary_dim, kv.head_dim, params.inv_freq);
  check.Batch(params.batch, rows)
      .Matrix("k", params.k, rows, static_cast<int64_t>(kv.num_kv_heads) * kv.head_dim, dtype)
      .Matrix("v", params.v, rows, static_cast<int64_t>(kv.num_kv_heads) * kv.v_head_dim, dtype);
  CheckQueries(check, params.q, rows, kv.head_dim, dtype);
  if (!check.ok()) return check.status();
  return Dispatch(device, "AppendPagedKv", cpu::AppendPagedKv, cuda::AppendPagedKv, params);
}

absl::Status PrepareWindowKv(Device& device, const PrepareWindowKvParams& params) {
  const DType dtype = device.activation_dtype();
  const int64_t rows = params.k.rows;
  ShapeCheck check("PrepareWindowKv");
  CheckRotary(check, params.rotary_dim, params.head_dim, params.inv_freq);
  check.Batch(params.batch, rows)
      .Cached("step_k", params.step_k.dtype)
      .Matrix("k", params.k, rows, static_cast<int64_t>(params.num_kv_heads) * params.head_dim,
              dtype)
      .Matrix("v", params.v, rows, params.v.cols, dtype)
      .Matrix("step_k", params.step_k, rows, params.k.cols, params.step_k.dtype)
      .Matrix("step_v", params.step_v, rows, params.v.cols, params.step_k.dtype);
  CheckQueries(check, params.q, rows, params.head_dim, dtype);
  if (const WindowKv& ring = params.ring; ring.data != nullptr) {
    CheckRing(check, ring, params.batch);
    check.Require(ring.dtype == params.step_k.dtype && ring.num_kv_heads == params.num_kv_heads &&
                      ring.head_dim == params.head_dim &&
                      int64_t{ring.v_head_dim} * ring.num_kv_heads == params.v.cols,
                  "ring must have the dtype, heads and dims of step_k and step_v")
        .Require(params.batch == nullptr || params.batch->max_rows_per_seq <= 1,
                 "a ring can be written at once only with one row per sequence");
  }
  if (!check.ok()) return check.status();
  return Dispatch(device, "PrepareWindowKv", cpu::PrepareWindowKv, cuda::PrepareWindowKv, params);
}

absl::Status StoreWindowKv(Device& device, const StoreWindowKvParams& params) {
  const WindowKv& ring = params.ring;
  const int64_t rows = params.step_k.rows;
  ShapeCheck check("StoreWindowKv");
  CheckRing(check, ring, params.batch);
  check.Batch(params.batch, rows)
      .Matrix("step_k", params.step_k, rows,
              static_cast<int64_t>(ring.num_kv_heads) * ring.head_dim, ring.dtype)
      .Matrix("step_v", params.step_v, rows,
              static_cast<int64_t>(ring.num_kv_heads) * ring.v_head_dim, ring.dtype);
  if (!check.ok()) return check.status();
  return Dispatch(device, "StoreWindowKv", cpu::StoreWindowKv, cuda::StoreWindowKv, params);
}

absl::Status FullAttention(Device& device, const FullAttentionParams& params) {
  const PagedKv& kv = params.kv;
  const DType dtype = device.activation_dtype();
  const int64_t rows = params.q.rows;
  const int64_t heads = params.num_heads;
  ShapeCheck check("FullAttention");
  CheckPages(check, kv, params.batch);
  check
      .Require(DividesInto(kv.num_kv_heads, params.num_heads),
               "num_kv_heads must divide num_heads")
      .Batch(params.batch, rows)
      .Matrix("q", params.q, rows, heads * kv.head_dim, dtype)
      .Matrix("out", params.out, rows, heads * kv.v_head_dim, dtype)
      .Require(params.selection == nullptr ||
                   (params.selected_blocks >= 1 && params.selected_blocks <= kMaxSelectedBlocks),
               "selected_blocks must be in [1, 64]");
  if (!check.ok()) return check.status();
  const int64_t blocks = (params.batch->max_context + kBlockTokens - 1) / kBlockTokens;
  check.Require(params.block_scores == nullptr || params.scores_stride >= blocks,
                "scores_stride must cover the blocks of max_context");
  if (!check.ok()) return check.status();
  return Dispatch(device, "FullAttention", cpu::FullAttention, cuda::FullAttention, params);
}

absl::Status WindowSparseAttention(Device& device, const WindowSparseAttentionParams& params) {
  const WindowKv& ring = params.ring;
  const DType dtype = device.activation_dtype();
  const int64_t rows = params.q.rows;
  const int64_t heads = params.num_heads;
  ShapeCheck check("WindowSparseAttention");
  CheckRing(check, ring, params.batch);
  check
      .Require(DividesInto(ring.num_kv_heads, params.num_heads),
               "num_kv_heads must divide num_heads")
      .Batch(params.batch, rows)
      .Matrix("q", params.q, rows, heads * ring.head_dim, dtype)
      .Matrix("out", params.out, rows, heads * ring.v_head_dim, dtype)
      .Matrix("step_k", params.step_k, rows,
              static_cast<int64_t>(ring.num_kv_heads) * ring.head_dim, ring.dtype)
      .Matrix("step_v", params.step_v, rows,
              static_cast<int64_t>(ring.num_kv_heads) * ring.v_head_dim, ring.dtype);
  const auto check_gate = [&](std::string_view name, const TensorView& gate) {
    if (gate.empty()) return;
    check.Matrix(name, gate, rows, gate.cols == heads ? heads : heads * ring.v_head_dim, dtype);
  };
  check_gate("window_gate", params.window_gate);
  if (params.selection != nullptr) {
    const PagedKv& kv = params.kv;
    CheckPages(check, kv, params.batch);
    check
        .Require(kv.num_kv_heads == ring.num_kv_heads && kv.head_dim == ring.head_dim &&
                     kv.v_head_dim == ring.v_head_dim,
                 "pages and ring must have the same heads and dims")
        .Require(params.selected_blocks >= 1, "selected_blocks must be positive");
    check_gate("sparse_gate", params.sparse_gate);
  }
  if (!check.ok()) return check.status();
  return Dispatch(device, "WindowSparseAttention", cpu::WindowSparseAttention,
                  cuda::WindowSparseAttention, params);
}

}  // namespace hyserve::kernels
