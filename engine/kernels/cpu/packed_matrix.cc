#include "engine/kernels/cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/kernels/cpu/cpu_ops.h"
#include "engine/tensor/convert.h"

namespace hyserve::kernels::cpu {
namespace {

using tensor::DType;

// One row of a weight matrix goes to one column of its panel.
void PackF32Row(const TensorView& part, int64_t row, int64_t panel_cols, float* column) {
  const int64_t k = part.cols;
  if (part.dtype == DType::kF32) {
    const float* source = part.Row<const float>(row);
    for (int64_t i = 0; i < k; ++i) column[i * panel_cols] = source[i];
  } else {
    const uint16_t* source = part.Row<const uint16_t>(row);
    for (int64_t i = 0; i < k; ++i) column[i * panel_cols] = tensor::F16ToFloat(source[i]);
  }
}

// step: elements from one k to the next.
void PackBf16Row(const TensorView& part, int64_t row, int64_t step, uint16_t* column) {
  const uint16_t* source = part.Row<const uint16_t>(row);
  for (int64_t i = 0; i < part.cols; ++i) column[i * step] = source[i];
}

void PackBf16PairsRow(const TensorView& part, int64_t row, int64_t panel_cols, uint16_t* column) {
  const uint16_t* source = part.Row<const uint16_t>(row);
  for (int64_t i = 0; i < part.cols; ++i) column[i / 2 * panel_cols * 2 + i % 2] = source[i];
}

struct PanelLayout {
  DType dtype;  // f32 or bf16
  int panel_cols;
  bool pairs;
  int64_t depth;  // rows of a panel
  int64_t num_panels;
  size_t bytes;

  PanelLayout(const SimdKernels& simd, const PackedMatrixShape& shape)
      : dtype(shape.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32),
        panel_cols(simd.panel_cols),
        pairs(dtype == DType::kBF16 && simd.gemm_packed_pairs != nullptr),
        depth(pairs ? (shape.in_features + 1) / 2 * 2 : shape.in_features),
        num_panels((shape.out_features + panel_cols - 1) / panel_cols),
        bytes(static_cast<size_t>(num_panels * panel_cols * depth) * tensor::SizeOf(dtype)) {}
};

}  // namespace

absl::StatusOr<size_t> PackedMatrixBytes(CpuDevice& device, const PackedMatrixShape& shape) {
  return PanelLayout(KernelsOf(device), shape).bytes;
}

absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(CpuDevice& device,
                                                         std::span<const TensorView> host_parts) {
  const int64_t k = host_parts[0].cols;
  int64_t n = 0;
  for (const TensorView& part : host_parts) n += part.rows;
  const PanelLayout layout(KernelsOf(device), {n, k, host_parts[0].dtype});
  const DType dtype = layout.dtype;
  const int64_t panel_cols = layout.panel_cols;
  const int64_t depth = layout.depth;
  absl::StatusOr<tensor::Buffer> buffer = device.Allocate(layout.bytes);
  if (!buffer.ok()) return buffer.status();
  void* panels = buffer->data();

  device.pool().ParallelFor(layout.num_panels, [&](int64_t panel, int) {
    const int64_t begin = panel * panel_cols;
    int64_t part_begin = 0;
    for (const TensorView& part : host_parts) {
      const int64_t first = std::max(begin, part_begin);
      const int64_t last = std::min(begin + panel_cols, part_begin + part.rows);
      for (int64_t row = first; row < last; ++row) {
        const int64_t column = row - begin;
        if (dtype == DType::kF32) {
          PackF32Row(part, row - part_begin, panel_cols,
                     static_cast<float*>(panels) + begin * k + column);
        } else if (layout.pairs) {
          PackBf16PairsRow(part, row - part_begin, panel_cols,
                           static_cast<uint16_t*>(panels) + begin * depth + 2 * column);
        } else {
          const int64_t half = panel_cols / 2;
          const int64_t place = column < half ? 2 * column : 2 * (column - half) + 1;
          PackBf16Row(part, row - part_begin, panel_cols,
                      static_cast<uint16_t*>(panels) + begin * k + place);
        }
      }
      part_begin += part.rows;
    }
  });
  return std::make_unique<CpuPackedMatrix>(n, k, dtype, layout.panel_cols, layout.pairs,
                                           *std::move(buffer));
}

}  // namespace hyserve::kernels::cpu
