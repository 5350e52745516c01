// y = x W^T: skinny_gemm.h up to kSkinnyMaxRows rows, cuBLASLt above. Up to there a row's bits do
// not depend on the number of rows; above, equal calls give equal bits, and since K is never split
// the bits were the same for all numbers of rows wherever that was measured. Operands that do not
// lie as the kernels need them go through the workspace.
#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "engine/kernels/cuda/blas_gemm.h"
#include "engine/kernels/cuda/cuda_ops.h"
#include "engine/kernels/cuda/operand.h"
#include "engine/kernels/cuda/packed_matrix.h"
#include "engine/kernels/cuda/skinny_gemm.h"

namespace hyserve::kernels::cuda {
namespace {

using tensor::CudaStatus;
using tensor::DType;

// Of x and of y each, where they are staged; more rows take several calls.
constexpr int64_t kStagingBytes = int64_t{32} << 20;

// Where a call's operands are staged, and how many rows at once. Never less than a call of fewer
// rows needs.
struct LinearStaging {
  bool stage_x = false;
  bool stage_y = false;
  int64_t rows = 0;
  int64_t y_stride = 0;
  size_t y_offset_bytes = 0;   // in the workspace, behind cuBLASLt's part and x
  size_t workspace_bytes = 0;  // 0: none
};

LinearStaging PlanStaging(const CudaPackedMatrix& weight, const LinearParams& params) {
  const int64_t rows = params.x.rows;
  LinearStaging staging;
  staging.stage_x = !IsVectorOperand(params.x);
  staging.stage_y = rows > kSkinnyMaxRows && !HasAlignedRows(params.y);
  staging.rows = rows;
  staging.y_stride = PaddedColumns(params.y.cols);
  if (!staging.stage_x && rows <= kSkinnyMaxRows) return staging;
  // Of one operand; takes back rows that do not fit.
  const auto stage = [&](int64_t row_bytes) {
    const int64_t fitting = std::max<int64_t>(1, kStagingBytes / row_bytes);
    staging.rows = std::min(staging.rows, fitting);
    return (std::min(rows, fitting) * row_bytes + 255) / 256 * 256;
  };
  staging.y_offset_bytes = kBlasWorkspaceBytes;
  if (staging.stage_x) staging.y_offset_bytes += stage(weight.row_stride() * 2);
  staging.workspace_bytes = staging.y_offset_bytes;
  if (staging.stage_y) {
    staging.workspace_bytes +=
        stage(staging.y_stride * static_cast<int64_t>(tensor::SizeOf(params.y.dtype)));
  }
  return staging;
}

absl::Status RunRows(CudaDevice& device, const CudaPackedMatrix& weight, const void* x,
                     int64_t x_stride, const TensorView& y, std::byte* workspace) {
  if (y.rows <= kSkinnyMaxRows) {
    return CudaStatus(LaunchSkinnyGemm({.weight = weight.data(),
                                        .weight_stride = weight.row_stride(),
                                        .x = x,
                                        .x_stride = x_stride,
                                        .y = y.data,
                                        .y_stride = y.row_stride,
                                        .y_is_f32 = y.dtype == DType::kF32,
                                        .rows = static_cast<int>(y.rows),
                                        .out_features = weight.out_features(),
                                        .in_features = static_cast<int>(weight.in_features())},
                                       device.stream()),
                      "Linear");
  }
  // Padding columns are zero on both sides, and a multiple of 8 columns keeps fast algorithms open.
  const cublasStatus_t status = RunBlasGemm(device.blas(),
                                            {.weight = weight.data(),
                                             .weight_stride = weight.row_stride(),
                                             .x = x,
                                             .x_stride = x_stride,
                                             .y = y.data,
                                             .y_stride = y.row_stride,
                                             .y_is_f32 = y.dtype == DType::kF32,
                                             .rows = y.rows,
                                             .out_features = weight.out_features(),
                                             .in_features = weight.row_stride()},
                                            workspace, device.stream());
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("Linear [", y.rows, ", ", weight.in_features(), "] x [",
                                          weight.out_features(), "]: cuBLASLt status ",
                                          static_cast<int>(status)));
}

}  // namespace

absl::Status LinearSwiGlu(CudaDevice& device, const LinearSwiGluParams& params) {
  const auto& weight = static_cast<const CudaPackedMatrix&>(*params.weight);
  if (params.x.rows == 0) return absl::OkStatus();
  if (params.x.rows > kSkinnyMaxRows || !IsVectorOperand(params.x)) {
    absl::Status status = Linear(device, {params.x, params.weight, params.gate_up});
    return status.ok() ? SwiGlu(device, {params.gate_up, params.out}) : status;
  }
  return CudaStatus(LaunchSkinnyGemm({.weight = weight.data(),
                                      .weight_stride = weight.row_stride(),
                                      .x = params.x.data,
                                      .x_stride = params.x.row_stride,
                                      .y = params.out.data,
                                      .y_stride = params.out.row_stride,
                                      .swiglu = true,
                                      .rows = static_cast<int>(params.x.rows),
                                      .out_features = params.out.cols,
                                      .in_features = static_cast<int>(weight.in_features())},
                                     device.stream()),
                    "LinearSwiGlu");
}

absl::Status Linear(CudaDevice& device, const LinearParams& params) {
  const auto& weight = static_cast<const CudaPackedMatrix&>(*params.weight);
  const int64_t rows = params.x.rows;
  if (rows == 0) return absl::OkStatus();
  const LinearStaging staging = PlanStaging(weight, params);
  std::byte* workspace = nullptr;
  if (staging.workspace_bytes > 0) {
    const absl::StatusOr<std::byte*> memory =
        device.Workspace(CudaDevice::WorkspaceSlot::kGemm, staging.workspace_bytes);
    if (!memory.ok()) return memory.status();
    workspace = *memory;
  }
  std::byte* const x_staging = workspace + kBlasWorkspaceBytes;
  std::byte* const y_staging = workspace + staging.y_offset_bytes;

  for (int64_t begin = 0; begin < rows; begin += staging.rows) {
    const int64_t count = std::min(staging.rows, rows - begin);
    const TensorView x = params.x.Rows(begin, count);
    const TensorView y = params.y.Rows(begin, count);
    if (staging.stage_x) {
      if (absl::Status status = StageVectorOperand(device, x, x_staging); !status.ok()) {
        return status;
      }
    }
    const TensorView target =
        staging.stage_y ? TensorView{y_staging, y.dtype, count, y.cols, staging.y_stride} : y;
    if (absl::Status status =
            RunRows(device, weight, staging.stage_x ? x_staging : x.data,
                    staging.stage_x ? weight.row_stride() : x.row_stride, target, workspace);
        !status.ok()) {
      return status;
    }
    if (!staging.stage_y) continue;
    const auto element = static_cast<int64_t>(tensor::SizeOf(y.dtype));
    const cudaError_t error = cudaMemcpy2DAsync(
        y.data, y.row_stride * element, y_staging, staging.y_stride * element, y.cols * element,
        count, cudaMemcpyDeviceToDevice, device.stream());
    if (absl::Status status = CudaStatus(error, "Linear: copy of y"); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ReserveLinear(CudaDevice& device, const LinearParams& params) {
  const auto& weight = static_cast<const CudaPackedMatrix&>(*params.weight);
  const LinearStaging staging = PlanStaging(weight, params);
  if (staging.workspace_bytes == 0) return absl::OkStatus();
  return device.ReserveWorkspace(CudaDevice::WorkspaceSlot::kGemm, staging.workspace_bytes);
}

}  // namespace hyserve::kernels::cuda
