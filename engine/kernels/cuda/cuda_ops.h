// The CUDA implementations behind ops.h, for sm_90a. Shapes and dtypes have been checked by the
// caller; what a kernel cannot do is refused with INVALID_ARGUMENT and the reason. Every op only
// enqueues on the device's stream.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_CUDA_OPS_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_CUDA_OPS_H_

#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kernels/ops.h"
#include "engine/kernels/reserve.h"
#include "engine/tensor/cuda_device.h"

namespace hyserve::kernels::cuda {

using tensor::CudaDevice;

absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(CudaDevice& device,
                                                         std::span<const TensorView> host_parts);
absl::StatusOr<size_t> PackedMatrixBytes(CudaDevice& device, const PackedMatrixShape& shape);
absl::Status EmbedTokens(CudaDevice& device, const EmbedTokensParams& params);
absl::Status AddRmsNorm(CudaDevice& device, const AddRmsNormParams& params);
absl::Status Linear(CudaDevice& device, const LinearParams& params);
absl::Status SwiGlu(CudaDevice& device, const SwiGluParams& params);
absl::Status LinearSwiGlu(CudaDevice& device, const LinearSwiGluParams& params);
absl::Status GatherRows(CudaDevice& device, const GatherRowsParams& params);
absl::Status SampleTokens(CudaDevice& device, const SampleTokensParams& params);
absl::Status MixtureOfExperts(CudaDevice& device, const MoeParams& params);
absl::Status Rotary(CudaDevice& device, const RotaryParams& params);
absl::Status AppendPagedKv(CudaDevice& device, const AppendPagedKvParams& params);
absl::Status PrepareWindowKv(CudaDevice& device, const PrepareWindowKvParams& params);
absl::Status StoreWindowKv(CudaDevice& device, const StoreWindowKvParams& params);
absl::Status FullAttention(CudaDevice& device, const FullAttentionParams& params);
absl::Status WindowSparseAttention(CudaDevice& device, const WindowSparseAttentionParams& params);

absl::Status ReserveLinear(CudaDevice& device, const LinearParams& params);
absl::Status ReserveMixtureOfExperts(CudaDevice& device, const MoeParams& params);
absl::Status ReserveFullAttention(CudaDevice& device, const AttentionLimits& limits);
absl::Status ReserveWindowSparseAttention(CudaDevice& device, const AttentionLimits& limits);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_CUDA_OPS_H_
