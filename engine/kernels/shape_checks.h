// Shape checks that the ops share. Every message names the op and the shape that does not fit.
#ifndef HYSERVE_ENGINE_KERNELS_SHAPE_CHECKS_H_
#define HYSERVE_ENGINE_KERNELS_SHAPE_CHECKS_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "engine/kernels/attention_batch.h"
#include "engine/tensor/tensor.h"

namespace hyserve::kernels {

// Collects the first violation of one op.
class ShapeCheck {
 public:
  explicit ShapeCheck(std::string_view op) : op_(op) {}

  // condition, else "op: what".
  ShapeCheck& Require(bool condition, std::string_view what);
  // A view of rows x cols with that dtype; rows == 0 is fine.
  ShapeCheck& Matrix(std::string_view name, const tensor::TensorView& view, int64_t rows,
                     int64_t cols, tensor::DType dtype);
  // f32 or bf16.
  ShapeCheck& Cached(std::string_view name, tensor::DType dtype);
  ShapeCheck& Batch(const AttentionBatch* batch, int64_t num_rows);

  const absl::Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }

 private:
  void Fail(const std::string& what);

  const std::string op_;
  absl::Status status_;
};

}  // namespace hyserve::kernels

#endif  // HYSERVE_ENGINE_KERNELS_SHAPE_CHECKS_H_
