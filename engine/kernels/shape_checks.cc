#include "engine/kernels/shape_checks.h"

#include "absl/strings/str_cat.h"

namespace hyserve::kernels {
namespace {

using tensor::DType;

std::string Describe(DType dtype, int64_t rows, int64_t cols) {
  return absl::StrCat(std::string(tensor::Name(dtype)), " [", rows, ", ", cols, "]");
}

}  // namespace

void ShapeCheck::Fail(const std::string& what) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(op_, ": ", what));
}

ShapeCheck& ShapeCheck::Require(bool condition, std::string_view what) {
  if (!condition) Fail(std::string(what));
  return *this;
}

ShapeCheck& ShapeCheck::Matrix(std::string_view name, const tensor::TensorView& view, int64_t rows,
                               int64_t cols, DType dtype) {
  const bool fits = view.dtype == dtype && view.rows == rows && view.cols == cols &&
                    view.row_stride >= view.cols && (view.data != nullptr || rows == 0);
  if (!fits) {
    Fail(absl::StrCat(std::string(name), " must be ", Describe(dtype, rows, cols), ", is ",
                      Describe(view.dtype, view.rows, view.cols), " with row stride ",
                      view.row_stride, view.data == nullptr ? " and no data" : ""));
  }
  return *this;
}

ShapeCheck& ShapeCheck::Cached(std::string_view name, DType dtype) {
  if (dtype != DType::kF32 && dtype != DType::kBF16) {
    Fail(absl::StrCat(std::string(name), " must be f32 or bf16, is ",
                      std::string(tensor::Name(dtype))));
  }
  return *this;
}

ShapeCheck& ShapeCheck::Batch(const AttentionBatch* batch, int64_t num_rows) {
  if (batch == nullptr) {
    Fail("no batch");
  } else if (batch->num_rows != num_rows) {
    Fail(absl::StrCat("batch has ", batch->num_rows, " rows, the tensors have ", num_rows));
  } else if (num_rows > 0 && (batch->row_begin == nullptr || batch->first_position == nullptr ||
                              batch->positions == nullptr || batch->row_seq == nullptr)) {
    Fail("batch lacks an array");
  }
  return *this;
}

}  // namespace hyserve::kernels
