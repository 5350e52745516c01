// Row-major bf16 matrices whose rows are padded to multiples of 16 bytes, and their tensor maps in
// boxes of 64 columns. Plain host code.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_MATRIX_MAP_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_MATRIX_MAP_H_

#include <cstdint>

#include "engine/kernels/cuda/hopper/tensor_map.h"

namespace hyserve::kernels::cuda {

inline constexpr int64_t PaddedColumns(int64_t cols) { return (cols + 7) / 8 * 8; }

// stride: elements, a multiple of 8. Columns from cols on read as zeros. Errors: EncodeTensorMap.
inline cudaError_t EncodeMatrixMap(const void* data, int64_t rows, int64_t cols, int64_t stride,
                                   int box_rows, CUtensorMap* map) {
  hopper::TensorMapShape shape;
  shape.data = data;
  shape.rank = 2;
  shape.extents[0] = static_cast<uint64_t>(cols);
  shape.extents[1] = static_cast<uint64_t>(rows);
  shape.strides_bytes[0] = static_cast<uint64_t>(stride) * 2;
  shape.box[0] = 64;
  shape.box[1] = static_cast<uint32_t>(box_rows);
  return hopper::EncodeTensorMap(shape, map);
}

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_MATRIX_MAP_H_
