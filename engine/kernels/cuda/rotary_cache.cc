#include "engine/kernels/cuda/rotary_cache.h"

#include "absl/strings/str_cat.h"
#include "engine/kernels/cuda/cuda_ops.h"

namespace hyserve::kernels::cuda {
namespace {

using tensor::CudaStatus;
using tensor::DType;

__nv_bfloat16* Bf16(const TensorView& view) { return static_cast<__nv_bfloat16*>(view.data); }

absl::Status CheckCacheDtype(DType dtype, std::string_view op) {
  if (dtype == DType::kBF16) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(std::string(op),
                                                 ": a cache on a GPU must be bf16, is ",
                                                 std::string(tensor::Name(dtype))));
}

KvWrite CommonPart(const TensorView& q, const TensorView& k, const TensorView& v, int head_dim,
                   const AttentionBatch& batch) {
  return {.q = Bf16(q),
          .q_stride = q.row_stride,
          .num_q_heads = q.empty() ? 0 : static_cast<int>(q.cols / head_dim),
          .k = Bf16(k),
          .k_stride = k.row_stride,
          .v = Bf16(v),
          .v_stride = v.row_stride,
          .angles = {.positions = batch.positions},
          .head_dim = head_dim,
          .num_rows = batch.num_rows};
}

RingMemory Ring(const WindowKv& ring, const AttentionBatch& batch) {
  return {.slabs = static_cast<char*>(ring.data),
          .slab_stride_bytes = ring.slab_stride_bytes,
          .k_offset_bytes = ring.k_offset_bytes,
          .v_offset_bytes = ring.v_offset_bytes,
          .window = ring.window,
          .slab_index = batch.slab_index};
}

}  // namespace

absl::Status Rotary(CudaDevice& device, const RotaryParams& params) {
  if (params.rotary_dim == 0 || params.x.rows == 0) return absl::OkStatus();
  return CudaStatus(LaunchRotary({.x = Bf16(params.x),
                                  .x_stride = params.x.row_stride,
                                  .num_heads = params.num_heads,
                                  .head_dim = params.head_dim,
                                  .angles = {params.inv_freq, params.positions, params.rotary_dim},
                                  .num_rows = params.x.rows},
                                 device.stream()),
                    "Rotary");
}

absl::Status AppendPagedKv(CudaDevice& device, const AppendPagedKvParams& params) {
  const PagedKv& kv = params.kv;
  const AttentionBatch& batch = *params.batch;
  const absl::Status cache = CheckCacheDtype(kv.dtype, "AppendPagedKv");
  if (!cache.ok() || batch.num_rows == 0) return cache;
  KvWrite write = CommonPart(params.q, params.k, params.v, kv.head_dim, batch);
  write.angles.inv_freq = params.inv_freq;
  write.angles.rotary_dim = params.rotary_dim;
  write.value_scale = params.value_scale;
  write.num_kv_heads = kv.num_kv_heads;
  write.v_head_dim = kv.v_head_dim;
  const int64_t tokens = static_cast<int64_t>(kv.num_kv_heads) * kCacheBlockTokens;
  const PagedDestination to = {.pages = static_cast<__nv_bfloat16*>(kv.data),
                               .slice = tokens * (kv.head_dim + kv.v_head_dim),
                               .k_slice = tokens * kv.head_dim,
                               .page_table = batch.page_table,
                               .page_table_stride = batch.page_table_stride,
                               .row_seq = batch.row_seq};
  return CudaStatus(LaunchAppendPagedKv(write, to, device.stream()), "AppendPagedKv");
}

absl::Status PrepareWindowKv(CudaDevice& device, const PrepareWindowKvParams& params) {
  const absl::Status cache = CheckCacheDtype(params.step_k.dtype, "PrepareWindowKv");
  if (!cache.ok() || params.batch->num_rows == 0) return cache;
  if (params.num_kv_heads <= 0 || params.v.cols % params.num_kv_heads != 0) {
    return absl::InvalidArgumentError("PrepareWindowKv: v must have num_kv_heads equal heads");
  }
  KvWrite write =
      CommonPart(params.q, params.k, params.v, params.head_dim, *params.batch);
  write.angles.inv_freq = params.inv_freq;
  write.angles.rotary_dim = params.rotary_dim;
  write.value_scale = params.value_scale;
  write.num_kv_heads = params.num_kv_heads;
  write.v_head_dim = static_cast<int>(params.v.cols / params.num_kv_heads);
  const StepDestination to = {Bf16(params.step_k), params.step_k.row_stride, Bf16(params.step_v),
                              params.step_v.row_stride, Ring(params.ring, *params.batch)};
  return CudaStatus(LaunchPrepareWindowKv(write, to, device.stream()), "PrepareWindowKv");
}

absl::Status StoreWindowKv(CudaDevice& device, const StoreWindowKvParams& params) {
  const WindowKv& ring = params.ring;
  const AttentionBatch& batch = *params.batch;
  const absl::Status cache = CheckCacheDtype(ring.dtype, "StoreWindowKv");
  if (!cache.ok() || batch.num_rows == 0) return cache;
  if (batch.device_row_begin == nullptr || batch.device_first_position == nullptr) {
    return absl::InvalidArgumentError("StoreWindowKv: batch lacks a device array");
  }
  return CudaStatus(LaunchStoreWindowKv({.k = Bf16(params.step_k),
                                         .k_stride = params.step_k.row_stride,
                                         .v = Bf16(params.step_v),
                                         .v_stride = params.step_v.row_stride,
                                         .ring = Ring(ring, batch),
                                         .num_kv_heads = ring.num_kv_heads,
                                         .head_dim = ring.head_dim,
                                         .v_head_dim = ring.v_head_dim,
                                         .row_begin = batch.device_row_begin,
                                         .first_position = batch.device_first_position,
                                         .num_seqs = batch.num_seqs,
                                         .max_rows_per_seq = batch.max_rows_per_seq},
                                        device.stream()),
                    "StoreWindowKv");
}

}  // namespace hyserve::kernels::cuda
