// Rotary embedding and writes to the caches.
#include <algorithm>
#include <cstring>
#include <vector>

#include "engine/kernels/cpu/cpu_ops.h"

namespace hyserve::kernels::cpu {
namespace {

using tensor::DType;

// The rotation of one position, for all heads.
class AngleTable {
 public:
  AngleTable(const SimdKernels& simd, const double* inv_freq, int pairs)
      : simd_(simd), inv_freq_(inv_freq), cos_(pairs), sin_(pairs) {}

  void Set(int32_t position) {
    simd_.angles(position, inv_freq_, cos_.data(), sin_.data(), static_cast<int64_t>(cos_.size()));
  }
  void Rotate(float* head) const {
    const int64_t pairs = static_cast<int64_t>(cos_.size());
    simd_.rotate(head, head + pairs, cos_.data(), sin_.data(), pairs);
  }

 private:
  const SimdKernels& simd_;
  const double* inv_freq_;
  std::vector<float> cos_;
  std::vector<float> sin_;
};

// Multiply-adds that a row's table costs, for the size of a work item.
constexpr int64_t kWorkPerAngle = 4;

void StoreHead(const SimdKernels& simd, const float* x, int64_t n, DType dtype, void* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, x, n * sizeof(float));
  } else {
    simd.f32_to_bf16(x, static_cast<uint16_t*>(out), n);
  }
}

absl::Status RotateQueries(CpuDevice& device, const TensorView& q, int head_dim, int rotary_dim,
                           const double* inv_freq, const AttentionBatch& batch) {
  if (q.empty()) return absl::OkStatus();
  return Rotary(device, {.x = q,
                         .num_heads = static_cast<int>(q.cols / head_dim),
                         .head_dim = head_dim,
                         .rotary_dim = rotary_dim,
                         .inv_freq = inv_freq,
                         .positions = batch.positions});
}

}  // namespace

absl::Status Rotary(CpuDevice& device, const RotaryParams& params) {
  if (params.rotary_dim == 0) return absl::OkStatus();
  const SimdKernels& simd = KernelsOf(device);
  const int64_t work = params.x.cols + kWorkPerAngle * params.rotary_dim;
  ForEachRowGroup(device, params.x.rows, work, [&](int64_t begin, int64_t end) {
    AngleTable angles(simd, params.inv_freq, params.rotary_dim / 2);
    for (int64_t row = begin; row < end; ++row) {
      angles.Set(params.positions[row]);
      for (int head = 0; head < params.num_heads; ++head) {
        angles.Rotate(params.x.Row<float>(row) + head * params.head_dim);
      }
    }
  });
  return absl::OkStatus();
}

absl::Status AppendPagedKv(CpuDevice& device, const AppendPagedKvParams& params) {
  const SimdKernels& simd = KernelsOf(device);
  const AttentionBatch& batch = *params.batch;
  const PagedKv& kv = params.kv;
  const int64_t size = static_cast<int64_t>(tensor::SizeOf(kv.dtype));
  const int64_t k_slice = static_cast<int64_t>(kv.num_kv_heads) * kBlockTokens * kv.head_dim;
  const int64_t slice =
      k_slice + static_cast<int64_t>(kv.num_kv_heads) * kBlockTokens * kv.v_head_dim;
  const int64_t work = params.k.cols + params.v.cols + kWorkPerAngle * params.rotary_dim;
  ForEachRowGroup(device, batch.num_rows, work, [&](int64_t begin, int64_t end) {
    AngleTable angles(simd, params.inv_freq, params.rotary_dim / 2);
    std::vector<float> scaled(kv.v_head_dim);
    for (int64_t row = begin; row < end; ++row) {
      const int32_t position = batch.positions[row];
      const int64_t block = batch.page_table[static_cast<int64_t>(batch.row_seq[row]) *
                                                 batch.page_table_stride +
                                             position / kBlockTokens];
      char* base = static_cast<char*>(kv.data) + block * slice * size;
      const int64_t slot = position % kBlockTokens;
      if (params.rotary_dim > 0) angles.Set(position);
      for (int64_t g = 0; g < kv.num_kv_heads; ++g) {
        float* k = params.k.Row<float>(row) + g * kv.head_dim;
        if (params.rotary_dim > 0) angles.Rotate(k);
        StoreHead(simd, k, kv.head_dim, kv.dtype,
                  base + (g * kBlockTokens + slot) * kv.head_dim * size);
        simd.scale(params.v.Row<const float>(row) + g * kv.v_head_dim, params.value_scale,
                   scaled.data(), kv.v_head_dim);
        StoreHead(simd, scaled.data(), kv.v_head_dim, kv.dtype,
                  base + (k_slice + (g * kBlockTokens + slot) * kv.v_head_dim) * size);
      }
    }
  });
  return RotateQueries(device, params.q, kv.head_dim, params.rotary_dim, params.inv_freq, batch);
}

absl::Status PrepareWindowKv(CpuDevice& device, const PrepareWindowKvParams& params) {
  const SimdKernels& simd = KernelsOf(device);
  const DType dtype = params.step_k.dtype;
  const int64_t work = params.k.cols + params.v.cols + kWorkPerAngle * params.rotary_dim;
  ForEachRowGroup(device, params.batch->num_rows, work, [&](int64_t begin, int64_t end) {
    AngleTable angles(simd, params.inv_freq, params.rotary_dim / 2);
    std::vector<float> scaled(params.v.cols);
    for (int64_t row = begin; row < end; ++row) {
      float* k = params.k.Row<float>(row);
      if (params.rotary_dim > 0) {
        angles.Set(params.batch->positions[row]);
        for (int g = 0; g < params.num_kv_heads; ++g) {
          angles.Rotate(k + g * params.head_dim);
        }
      }
      StoreHead(simd, k, params.k.cols, dtype, params.step_k.Rows(row, 1).data);
      simd.scale(params.v.Row<const float>(row), params.value_scale, scaled.data(),
                 params.v.cols);
      StoreHead(simd, scaled.data(), params.v.cols, dtype, params.step_v.Rows(row, 1).data);
    }
  });
  if (params.ring.data != nullptr) {
    const absl::Status status =
        StoreWindowKv(device, {params.step_k, params.step_v, params.batch, params.ring});
    if (!status.ok()) return status;
  }
  return RotateQueries(device, params.q, params.head_dim, params.rotary_dim, params.inv_freq,
                       *params.batch);
}

absl::Status StoreWindowKv(CpuDevice& device, const StoreWindowKvParams& params) {
  const AttentionBatch& batch = *params.batch;
  const WindowKv& ring = params.ring;
  const int64_t size = static_cast<int64_t>(tensor::SizeOf(ring.dtype));
  const int64_t k_bytes = ring.head_dim * size;
  const int64_t v_bytes = ring.v_head_dim * size;
  device.pool().ParallelFor(batch.num_seqs, [&](int64_t seq, int) {
    char* slab = static_cast<char*>(ring.data) + batch.slab_index[seq] * ring.slab_stride_bytes;
    const int64_t end = batch.row_begin[seq + 1];
    const int64_t begin = std::max<int64_t>(batch.row_begin[seq], end - ring.window);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t position = batch.first_position[seq] + (row - batch.row_begin[seq]);
      const int64_t slot = position % ring.window;
      const char* k = static_cast<const char*>(params.step_k.Rows(row, 1).data);
      const char* v = static_cast<const char*>(params.step_v.Rows(row, 1).data);
      for (int64_t g = 0; g < ring.num_kv_heads; ++g) {
        std::memcpy(slab + ring.k_offset_bytes + (g * ring.window + slot) * k_bytes,
                    k + g * k_bytes, k_bytes);
        std::memcpy(slab + ring.v_offset_bytes + (g * ring.window + slot) * v_bytes,
                    v + g * v_bytes, v_bytes);
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace hyserve::kernels::cpu
