#include "engine/kernels/cuda/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "engine/kernels/cuda/cuda_ops.h"
#include "engine/kernels/cuda/matrix_map.h"
#include "engine/tensor/convert.h"

namespace hyserve::kernels::cuda {
namespace {

using tensor::DType;

constexpr int64_t kStagingElements = int64_t{8} << 20;

void ConvertRow(const TensorView& part, int64_t row, uint16_t* out) {
  if (part.dtype == DType::kBF16) {
    std::memcpy(out, part.Row<const uint16_t>(row), part.cols * sizeof(uint16_t));
  } else if (part.dtype == DType::kF32) {
    const float* const source = part.Row<const float>(row);
    for (int64_t i = 0; i < part.cols; ++i) out[i] = tensor::FloatToBf16(source[i]);
  } else {
    const uint16_t* const source = part.Row<const uint16_t>(row);
    for (int64_t i = 0; i < part.cols; ++i) {
      out[i] = tensor::FloatToBf16(tensor::F16ToFloat(source[i]));
    }
  }
}

}  // namespace

absl::StatusOr<size_t> PackedMatrixBytes(CudaDevice& device, const PackedMatrixShape& shape) {
  return static_cast<size_t>(shape.out_features * PaddedColumns(shape.in_features)) *
         sizeof(uint16_t);
}

absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(CudaDevice& device,
                                                         std::span<const TensorView> host_parts) {
  const int64_t in_features = host_parts[0].cols;
  const int64_t stride = PaddedColumns(in_features);
  int64_t out_features = 0;
  for (const TensorView& part : host_parts) out_features += part.rows;
  const absl::StatusOr<size_t> bytes =
      PackedMatrixBytes(device, {out_features, in_features, host_parts[0].dtype});
  if (!bytes.ok()) return bytes.status();
  absl::StatusOr<tensor::Buffer> buffer = device.Allocate(*bytes);
  if (!buffer.ok()) return buffer.status();

  auto* destination = static_cast<uint16_t*>(buffer->data());
  std::vector<uint16_t> staging;  // zeros in the columns that pad a row
  for (const TensorView& part : host_parts) {
    if (part.dtype == DType::kBF16 && part.row_stride == stride && part.cols == stride) {
      const absl::Status status = device.CopyToDevice(
          destination, part.data, static_cast<size_t>(part.rows * stride) * sizeof(uint16_t));
      if (!status.ok()) return status;
      destination += part.rows * stride;
      continue;
    }
    const int64_t rows_at_once = std::max<int64_t>(1, kStagingElements / stride);
    staging.resize(std::min(rows_at_once, part.rows) * stride);
    for (int64_t begin = 0; begin < part.rows; begin += rows_at_once) {
      const int64_t count = std::min(rows_at_once, part.rows - begin);
      for (int64_t row = 0; row < count; ++row) {
        ConvertRow(part, begin + row, staging.data() + row * stride);
      }
      const absl::Status status = device.CopyToDevice(
          destination, staging.data(), static_cast<size_t>(count * stride) * sizeof(uint16_t));
      if (!status.ok()) return status;
      destination += count * stride;
    }
  }
  CUtensorMap map;
  if (absl::Status status = tensor::CudaStatus(
          EncodeMatrixMap(buffer->data(), out_features, in_features, stride, kMoeBoxRows, &map),
          "PackMatrix: tensor map");
      !status.ok()) {
    return status;
  }
  return std::make_unique<CudaPackedMatrix>(out_features, in_features, stride, *std::move(buffer),
                                            map);
}

}  // namespace hyserve::kernels::cuda
