// The CPU implementations behind ops.h. Shapes and dtypes have been checked by the caller.
#ifndef HYSERVE_ENGINE_KERNELS_CPU_CPU_OPS_H_
#define HYSERVE_ENGINE_KERNELS_CPU_CPU_OPS_H_

#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kernels/cpu/simd_kernels.h"
#include "engine/kernels/ops.h"
#include "engine/tensor/cpu_device.h"

namespace hyserve::kernels::cpu {

using tensor::CpuDevice;

const SimdKernels& KernelsOf(const CpuDevice& device);

absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(CpuDevice& device,
                                                         std::span<const TensorView> host_parts);
absl::StatusOr<size_t> PackedMatrixBytes(CpuDevice& device, const PackedMatrixShape& shape);
absl::Status EmbedTokens(CpuDevice& device, const EmbedTokensParams& params);
absl::Status AddRmsNorm(CpuDevice& device, const AddRmsNormParams& params);
absl::Status Linear(CpuDevice& device, const LinearParams& params);
absl::Status SwiGlu(CpuDevice& device, const SwiGluParams& params);
absl::Status LinearSwiGlu(CpuDevice& device, const LinearSwiGluParams& params);
absl::Status GatherRows(CpuDevice& device, const GatherRowsParams& params);
absl::Status SampleTokens(CpuDevice& device, const SampleTokensParams& params);
absl::Status MixtureOfExperts(CpuDevice& device, const MoeParams& params);
absl::Status Rotary(CpuDevice& device, const RotaryParams& params);
absl::Status AppendPagedKv(CpuDevice& device, const AppendPagedKvParams& params);
absl::Status PrepareWindowKv(CpuDevice& device, const PrepareWindowKvParams& params);
absl::Status StoreWindowKv(CpuDevice& device, const StoreWindowKvParams& params);
absl::Status FullAttention(CpuDevice& device, const FullAttentionParams& params);
absl::Status WindowSparseAttention(CpuDevice& device, const WindowSparseAttentionParams& params);

// Rows of work_per_row multiply-adds each are handed to threads in groups of this many, so that a
// group is worth the hand-over.
int64_t RowsPerItem(int64_t work_per_row);
// Calls body(first_row, end_row) over groups of rows on the device's threads.
void ForEachRowGroup(CpuDevice& device, int64_t num_rows, int64_t work_per_row,
                     absl::FunctionRef<void(int64_t begin, int64_t end)> body);

}  // namespace hyserve::kernels::cpu

#endif  // HYSERVE_ENGINE_KERNELS_CPU_CPU_OPS_H_
