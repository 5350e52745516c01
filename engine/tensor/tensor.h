// Element types and non-owning views of memory on a device.
//
// A view is two-dimensional, because everything that the engine computes is: activations are
// [num_rows, num_cols] with heads flattened into columns. A view never owns; Buffer (buffer.h)
// does. Views are plain values and may be copied between threads; the memory they point to is
// guarded by its owner.
#ifndef HYSERVE_ENGINE_TENSOR_TENSOR_H_
#define HYSERVE_ENGINE_TENSOR_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hyserve::tensor {

enum class DType : uint8_t { kF32, kBF16, kF16, kI32 };

constexpr size_t SizeOf(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kI32 ? 4 : 2;
}

constexpr std::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "f32";
    case DType::kBF16: return "bf16";
    case DType::kF16: return "f16";
    case DType::kI32: return "i32";
  }
  return "unknown";
}

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;  // elements from one row to the next, >= cols

  bool empty() const { return data == nullptr; }
  template <typename T>
  T* Row(int64_t row) const {
    return static_cast<T*>(data) + row * row_stride;
  }
  // Columns [begin, begin + count) of every row.
  TensorView Columns(int64_t begin, int64_t count) const {
    return {static_cast<char*>(data) + begin * static_cast<int64_t>(SizeOf(dtype)), dtype, rows,
            count, row_stride};
  }
  // Rows [begin, begin + count).
  TensorView Rows(int64_t begin, int64_t count) const {
    return {static_cast<char*>(data) + begin * row_stride * static_cast<int64_t>(SizeOf(dtype)),
            dtype, count, cols, row_stride};
  }
};

}  // namespace hyserve::tensor

#endif  // HYSERVE_ENGINE_TENSOR_TENSOR_H_
