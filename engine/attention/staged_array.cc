#include "engine/attention/staged_array.h"

#include <algorithm>
#include <utility>

#include "absl/status/statusor.h"

namespace hyserve::attention {

absl::Status StagedArray::Upload(tensor::Device& device) {
  const size_t bytes = host_.size() * sizeof(int32_t);
  if (bytes == 0) return absl::OkStatus();
  if (buffer_.size_bytes() < bytes) {
    absl::StatusOr<tensor::Buffer> larger =
        device.Allocate(std::max(bytes, buffer_.size_bytes() * 2));
    if (!larger.ok()) return larger.status();
    buffer_ = *std::move(larger);
  }
  return device.CopyToDevice(buffer_.data(), host_.data(), bytes);
}

}  // namespace hyserve::attention
