// A growing array of int32 that is filled on the host and copied to a device once per step.
//
// Not thread-safe. Device pointers are valid from Upload until the next Reset.
#ifndef HYSERVE_ENGINE_ATTENTION_STAGED_ARRAY_H_
#define HYSERVE_ENGINE_ATTENTION_STAGED_ARRAY_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "engine/tensor/buffer.h"
#include "engine/tensor/device.h"

namespace hyserve::attention {

class StagedArray {
 public:
  void Reset() { host_.clear(); }
  // Appends `count` zeros and returns their offset.
  size_t Extend(size_t count) {
    const size_t offset = host_.size();
    host_.resize(offset + count);
    return offset;
  }
  void Push(int32_t value) { host_.push_back(value); }
  size_t size() const { return host_.size(); }

  int32_t* host(size_t offset) { return host_.data() + offset; }
  const int32_t* host(size_t offset) const { return host_.data() + offset; }
  // REQUIRES: Upload succeeded after the last change.
  const int32_t* device(size_t offset) const {
    return static_cast<const int32_t*>(buffer_.data()) + offset;
  }

  absl::Status Upload(tensor::Device& device);

 private:
  std::vector<int32_t> host_;
  tensor::Buffer buffer_;
};

}  // namespace hyserve::attention

#endif  // HYSERVE_ENGINE_ATTENTION_STAGED_ARRAY_H_
