// A growing array that is filled on the host and copied to a device once per step.
//
// Not thread-safe. Device pointers are valid from Upload until the next Reset; they move only when
// an upload is larger than all before it and what was reserved.
#ifndef HYSERVE_ENGINE_ATTENTION_STAGED_ARRAY_H_
#define HYSERVE_ENGINE_ATTENTION_STAGED_ARRAY_H_

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tensor/buffer.h"
#include "engine/tensor/device.h"

namespace hyserve::attention {

template <typename T>
class StagedArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  void Reset() { host_.clear(); }
  // Appends `count` zeros and returns their offset.
  size_t Extend(size_t count) {
    const size_t offset = host_.size();
    host_.resize(offset + count);
    return offset;
  }
  void Push(const T& value) { host_.push_back(value); }
  void Append(std::span<const T> values) {
    host_.insert(host_.end(), values.begin(), values.end());
  }
  size_t size() const { return host_.size(); }

  T* host(size_t offset) { return host_.data() + offset; }
  const T* host(size_t offset) const { return host_.data() + offset; }
  // REQUIRES: Upload succeeded after the last change.
  const T* device(size_t offset) const { return static_cast<const T*>(buffer_.data()) + offset; }

  absl::Status Upload(tensor::Device& device) {
    const size_t bytes = host_.size() * sizeof(T);
    if (bytes == 0) return absl::OkStatus();
    if (buffer_.size_bytes() < bytes) {
      const size_t doubled = 2 * buffer_.size_bytes() / sizeof(T);
      if (absl::Status status = Reserve(device, std::max(host_.size(), doubled)); !status.ok()) {
        return status;
      }
    }
    return device.CopyToDevice(buffer_.data(), host_.data(), bytes);
  }
  // So that uploads of up to `size` values do not allocate.
  absl::Status Reserve(tensor::Device& device, size_t size) {
    if (buffer_.size_bytes() >= size * sizeof(T)) return absl::OkStatus();
    absl::StatusOr<tensor::Buffer> larger = device.Allocate(size * sizeof(T));
    if (!larger.ok()) return larger.status();
    buffer_ = *std::move(larger);
    return absl::OkStatus();
  }

 private:
  std::vector<T> host_;
  tensor::Buffer buffer_;
};

}  // namespace hyserve::attention

#endif  // HYSERVE_ENGINE_ATTENTION_STAGED_ARRAY_H_
