// bf16 matrices as the product kernels read them: rows at multiples of 16 bytes, and a multiple of
// 8 columns, so that every access is one of 16 bytes.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_OPERAND_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_OPERAND_H_

#include <cstdint>

#include "absl/status/status.h"
#include "engine/kernels/cuda/matrix_map.h"
#include "engine/tensor/cuda_device.h"
#include "engine/tensor/tensor.h"

namespace hyserve::kernels::cuda {

inline bool HasAlignedRows(const tensor::TensorView& view) {
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
         view.row_stride * static_cast<int64_t>(tensor::SizeOf(view.dtype)) % 16 == 0;
}

inline bool IsVectorOperand(const tensor::TensorView& view) {
  return HasAlignedRows(view) && view.cols % 8 == 0;
}

// Enqueues the copy of a bf16 view to `to`, [rows, PaddedColumns(cols)] without gaps, with zeros in
// the columns that pad a row.
inline absl::Status StageVectorOperand(tensor::CudaDevice& device, const tensor::TensorView& view,
                                       void* to) {
  const int64_t pitch = PaddedColumns(view.cols) * 2;
  cudaError_t error = cudaMemset2DAsync(static_cast<char*>(to) + view.cols * 2, pitch, 0,
                                        pitch - view.cols * 2, view.rows, device.stream());
  if (error == cudaSuccess) {
    error = cudaMemcpy2DAsync(to, pitch, view.data, view.row_stride * 2, view.cols * 2, view.rows,
                              cudaMemcpyDeviceToDevice, device.stream());
  }
  return tensor::CudaStatus(error, "copy of unaligned activations");
}

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_OPERAND_H_
