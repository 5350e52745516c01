// Weights in the layout of the CPU's GEMM: panels [ceil(N / panel_cols)][K][panel_cols], with
// zero-padded columns. bf16 panels interleave their two halves, or, where the device multiplies
// pairs of bf16, hold pairs along K: [ceil(K / 2)][panel_cols][2] (simd_kernels.h).
#ifndef HYSERVE_ENGINE_KERNELS_CPU_PACKED_MATRIX_H_
#define HYSERVE_ENGINE_KERNELS_CPU_PACKED_MATRIX_H_

#include <cstdint>
#include <utility>

#include "engine/kernels/ops.h"
#include "engine/tensor/buffer.h"

namespace hyserve::kernels::cpu {

class CpuPackedMatrix final : public PackedMatrix {
 public:
  CpuPackedMatrix(int64_t out_features, int64_t in_features, tensor::DType dtype, int panel_cols,
                  bool pairs, tensor::Buffer panels)
      : out_features_(out_features),
        in_features_(in_features),
        dtype_(dtype),
        panel_cols_(panel_cols),
        pairs_(pairs),
        panels_(std::move(panels)) {}

  int64_t out_features() const override { return out_features_; }
  int64_t in_features() const override { return in_features_; }
  tensor::DType dtype() const override { return dtype_; }
  size_t size_bytes() const override { return panels_.size_bytes(); }

  int panel_cols() const { return panel_cols_; }
  bool pairs() const { return pairs_; }
  int64_t num_panels() const { return (out_features_ + panel_cols_ - 1) / panel_cols_; }
  const void* data() const { return panels_.data(); }

 private:
  const int64_t out_features_;
  const int64_t in_features_;
  const tensor::DType dtype_;  // f32 or bf16
  const int panel_cols_;
  const bool pairs_;
  const tensor::Buffer panels_;
};

}  // namespace hyserve::kernels::cpu

#endif  // HYSERVE_ENGINE_KERNELS_CPU_PACKED_MATRIX_H_
