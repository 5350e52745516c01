#include "engine/model/workspace.h"

#include <utility>

namespace hyserve::model {

absl::Status Workspace::Grow(tensor::Buffer& buffer, size_t bytes) {
  if (buffer.size_bytes() >= bytes) return absl::OkStatus();
  buffer = tensor::Buffer();
  absl::StatusOr<tensor::Buffer> larger = device_.Allocate(bytes);
  if (!larger.ok()) return larger.status();
  buffer = *std::move(larger);
  return absl::OkStatus();
}

absl::StatusOr<tensor::TensorView> Workspace::Get(Slot slot, tensor::DType dtype, int64_t rows,
                                                  int64_t cols) {
  tensor::Buffer& buffer = buffers_[slot];
  if (absl::Status status = Grow(buffer, rows * cols * tensor::SizeOf(dtype)); !status.ok()) {
    return status;
  }
  return buffer.View(dtype, rows, cols);
}

absl::StatusOr<int32_t*> Workspace::Selection(int oracle, int64_t count) {
  if (selections_.size() <= static_cast<size_t>(oracle)) selections_.resize(oracle + 1);
  if (absl::Status status = Grow(selections_[oracle], count * sizeof(int32_t)); !status.ok()) {
    return status;
  }
  return static_cast<int32_t*>(selections_[oracle].data());
}

}  // namespace hyserve::model
