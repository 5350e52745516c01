// Owned memory on a device. Move-only; freed by the deleter of the device that allocated it.
#ifndef HYSERVE_ENGINE_TENSOR_BUFFER_H_
#define HYSERVE_ENGINE_TENSOR_BUFFER_H_

#include <cstddef>
#include <functional>
#include <utility>

#include "engine/tensor/tensor.h"

namespace hyserve::tensor {

class Buffer {
 public:
  using Deleter = std::function<void(void* data, size_t bytes)>;

  Buffer() = default;
  Buffer(void* data, size_t bytes, Deleter deleter)
      : data_(data), bytes_(bytes), deleter_(std::move(deleter)) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      Reset();
      data_ = std::exchange(other.data_, nullptr);
      bytes_ = std::exchange(other.bytes_, 0);
      deleter_ = std::move(other.deleter_);
    }
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { Reset(); }

  void* data() const { return data_; }
  size_t size_bytes() const { return bytes_; }
  bool empty() const { return data_ == nullptr; }

  // The first rows * cols elements as a contiguous matrix. REQUIRES: they fit.
  TensorView View(DType dtype, int64_t rows, int64_t cols) const {
    return {data_, dtype, rows, cols, cols};
  }

 private:
  void Reset() {
    if (data_ != nullptr && deleter_) deleter_(data_, bytes_);
    data_ = nullptr;
    bytes_ = 0;
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
  Deleter deleter_;
};

}  // namespace hyserve::tensor

#endif  // HYSERVE_ENGINE_TENSOR_BUFFER_H_
