// Weights on a GPU: row-major bf16 [out_features, in_features], each row padded with zeros to a
// multiple of 8 columns, so that rows start at multiples of 16 bytes. f32 and f16 weights are
// rounded to bf16.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_PACKED_MATRIX_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_PACKED_MATRIX_H_

#include <cuda.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include "engine/kernels/cuda/expert_table.h"
#include "engine/kernels/ops.h"
#include "engine/tensor/buffer.h"

namespace hyserve::kernels::cuda {

class CudaPackedMatrix final : public PackedMatrix {
 public:
  // map: of [out_features, in_features] in boxes of kMoeBoxRows rows by 64 columns.
  CudaPackedMatrix(int64_t out_features, int64_t in_features, int64_t row_stride,
                   tensor::Buffer rows, const CUtensorMap& map)
      : id_(next_id_.fetch_add(1)),
        out_features_(out_features),
        in_features_(in_features),
        row_stride_(row_stride),
        rows_(std::move(rows)),
        map_(map) {}
  ~CudaPackedMatrix() override { num_destroyed_.fetch_add(1); }

  int64_t out_features() const override { return out_features_; }
  int64_t in_features() const override { return in_features_; }
  tensor::DType dtype() const override { return tensor::DType::kBF16; }
  size_t size_bytes() const override { return rows_.size_bytes(); }

  const void* data() const { return rows_.data(); }
  int64_t row_stride() const { return row_stride_; }
  const CUtensorMap& map() const { return map_; }

  // Different for every matrix of the process.
  uint64_t id() const { return id_; }
  // Grows whenever a matrix of the process goes: while it stays, pointers to matrices stay valid.
  static uint64_t NumDestroyed() { return num_destroyed_.load(); }
  // Of the group of experts whose first matrix this is.
  ExpertTableCache& expert_table() const { return expert_table_; }

 private:
  inline static std::atomic<uint64_t> next_id_{0};
  inline static std::atomic<uint64_t> num_destroyed_{0};

  const uint64_t id_;
  const int64_t out_features_;
  const int64_t in_features_;
  const int64_t row_stride_;  // elements
  const tensor::Buffer rows_;
  const CUtensorMap map_;
  mutable ExpertTableCache expert_table_;
};

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_PACKED_MATRIX_H_
