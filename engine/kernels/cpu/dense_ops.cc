// Embedding, normalisation, activation and gathering: ops whose rows are independent and cheap.
#include <algorithm>
#include <cstring>

#include "engine/kernels/cpu/cpu_ops.h"

namespace hyserve::kernels::cpu {

using tensor::DType;

const SimdKernels& KernelsOf(const CpuDevice& device) {
  switch (device.isa()) {
    case tensor::Isa::kAvx512Bf16: return Avx512Bf16Kernels();
    case tensor::Isa::kAvx512: return Avx512Kernels();
    case tensor::Isa::kAvx2: return Avx2Kernels();
    case tensor::Isa::kScalar: break;
  }
  return PortableKernels();
}

int64_t RowsPerItem(int64_t work_per_row) {
  constexpr int64_t kWorkPerItem = 16 << 10;
  return std::max<int64_t>(1, kWorkPerItem / std::max<int64_t>(1, work_per_row));
}

void ForEachRowGroup(CpuDevice& device, int64_t num_rows, int64_t work_per_row,
                     absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
  const int64_t rows = RowsPerItem(work_per_row);
  device.pool().ParallelFor((num_rows + rows - 1) / rows, [&](int64_t item, int) {
    body(item * rows, std::min(num_rows, (item + 1) * rows));
  });
}

absl::Status EmbedTokens(CpuDevice& device, const EmbedTokensParams& params) {
  const SimdKernels& simd = KernelsOf(device);
  const int64_t cols = params.table.cols;
  ForEachRowGroup(device, params.out.rows, cols, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t token = params.token_ids[row];
      float* out = params.out.Row<float>(row);
      if (params.table.dtype == DType::kF32) {
        std::memcpy(out, params.table.Row<const float>(token), cols * sizeof(float));
      } else {
        simd.bf16_to_f32(params.table.Row<const uint16_t>(token), out, cols);
      }
    }
  });
  return absl::OkStatus();
}

absl::Status AddRmsNorm(CpuDevice& device, const AddRmsNormParams& params) {
  const SimdKernels& simd = KernelsOf(device);
  ForEachRowGroup(device, params.hidden.rows, 2 * params.hidden.cols,
                  [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      simd.add_rms_norm(params.hidden.Row<float>(row),
                        params.delta.empty() ? nullptr : params.delta.Row<const float>(row),
                        params.weight, params.epsilon,
                        params.out.empty() ? nullptr : params.out.Row<float>(row),
                        params.hidden.cols);
    }
  });
  return absl::OkStatus();
}

absl::Status SwiGlu(CpuDevice& device, const SwiGluParams& params) {
  const SimdKernels& simd = KernelsOf(device);
  const int64_t cols = params.out.cols;
  ForEachRowGroup(device, params.out.rows, 4 * cols, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* gate_up = params.gate_up.Row<const float>(row);
      simd.swiglu(gate_up, gate_up + cols, params.out.Row<float>(row), cols);
    }
  });
  return absl::OkStatus();
}

absl::Status LinearSwiGlu(CpuDevice& device, const LinearSwiGluParams& params) {
  if (absl::Status status = Linear(device, {params.x, params.weight, params.gate_up});
      !status.ok()) {
    return status;
  }
  return SwiGlu(device, {params.gate_up, params.out});
}

absl::Status GatherRows(CpuDevice& device, const GatherRowsParams& params) {
  const int64_t bytes = params.out.cols * static_cast<int64_t>(tensor::SizeOf(params.out.dtype));
  ForEachRowGroup(device, params.out.rows, params.out.cols, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const TensorView source = params.x.Rows(params.rows[row], 1);
      std::memcpy(params.out.Rows(row, 1).data, source.data, bytes);
    }
  });
  return absl::OkStatus();
}

}  // namespace hyserve::kernels::cpu
