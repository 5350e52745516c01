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
  const bool stage_x = !IsVectorOperand(params.x);
  const bool stage_y = rows > kSkinnyMaxRows && !HasAlignedRows(params.y);
  const int64_t x_row_bytes = weight.row_stride() * 2;
  const auto y_element = static_cast<int64_t>(tensor::SizeOf(params.y.dtype));
  const int64_t y_stride = PaddedColumns(params.y.cols);
  int64_t at_once = rows;
  if (stage_x) at_once = std::min(at_once, std::max<int64_t>(1, kStagingBytes / x_row_bytes));
  if (stage_y) {
    at_once = std::min(at_once, std::max<int64_t>(1, kStagingBytes / (y_stride * y_element)));
  }
  const int64_t x_bytes = stage_x ? at_once * x_row_bytes : 0;
  const int64_t y_bytes = stage_y ? at_once * y_stride * y_element : 0;
  std::byte* workspace = nullptr;
  if (stage_x || rows > kSkinnyMaxRows) {
    const absl::StatusOr<std::byte*> memory =
        device.Workspace(CudaDevice::WorkspaceSlot::kGemm,
                         kBlasWorkspaceBytes + (x_bytes + 255) / 256 * 256 + y_bytes);
    if (!memory.ok()) return memory.status();
    workspace = *memory;
  }
  std::byte* const x_staging = workspace + kBlasWorkspaceBytes;
  std::byte* const y_staging = x_staging + (x_bytes + 255) / 256 * 256;

  for (int64_t begin = 0; begin < rows; begin += at_once) {
    const int64_t count = std::min(at_once, rows - begin);
    const TensorView x = params.x.Rows(begin, count);
    const TensorView y = params.y.Rows(begin, count);
    if (stage_x) {
      if (absl::Status status = StageVectorOperand(device, x, x_staging); !status.ok()) {
        return status;
      }
    }
    const TensorView target =
        stage_y ? TensorView{y_staging, y.dtype, count, y.cols, y_stride} : y;
    if (absl::Status status =
            RunRows(device, weight, stage_x ? x_staging : x.data,
                    stage_x ? weight.row_stride() : x.row_stride, target, workspace);
        !status.ok()) {
      return status;
    }
    if (!stage_y) continue;
    const cudaError_t error = cudaMemcpy2DAsync(
        y.data, y.row_stride * y_element, y_staging, y_stride * y_element, y.cols * y_element,
        count, cudaMemcpyDeviceToDevice, device.stream());
    if (absl::Status status = CudaStatus(error, "Linear: copy of y"); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace hyserve::kernels::cuda
