// What every kernel test needs: the devices to run on, and arrays that travel to a device and back.
#ifndef HYSERVE_TESTS_ENGINE_KERNELS_TEST_DEVICE_H_
#define HYSERVE_TESTS_ENGINE_KERNELS_TEST_DEVICE_H_

#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/tensor/device.h"
#include "engine/tensor/tensor.h"

namespace hyserve::kernels::testing {

// Every device and instruction set that this machine has, with one and with two threads. A new kind
// of device joins the parity tests by joining this list.
std::vector<tensor::DeviceOptions> TestDevices();
std::string DeviceName(const tensor::DeviceOptions& options);

// True for devices that round the activations of a product with bf16 weights to bf16.
bool RoundsActivations(const tensor::DeviceOptions& options, tensor::DType weight_dtype);

// values rounded to dtype.
std::vector<float> Rounded(std::vector<float> values, tensor::DType dtype);

// A device and the arrays of one test; all freed together.
class TestDevice {
 public:
  explicit TestDevice(const tensor::DeviceOptions& options);

  tensor::Device& get() { return *device_; }
  tensor::DType activation() const { return device_->activation_dtype(); }

  // A matrix with a row stride larger than its columns, so that no op may assume a dense one.
  tensor::TensorView Upload(const std::vector<float>& values, int64_t rows, int64_t cols,
                            tensor::DType dtype);
  tensor::TensorView Activations(const std::vector<float>& values, int64_t rows, int64_t cols) {
    return Upload(values, rows, cols, activation());
  }
  // Filled with NaN.
  tensor::TensorView Output(int64_t rows, int64_t cols, tensor::DType dtype);
  std::vector<float> Download(const tensor::TensorView& view);

  template <typename T>
  T* UploadArray(const std::vector<T>& values) {
    void* data = AllocateBytes(values.size() * sizeof(T));
    if (!values.empty()) CopyTo(data, values.data(), values.size() * sizeof(T));
    return static_cast<T*>(data);
  }
  template <typename T>
  std::vector<T> DownloadArray(const T* data, int64_t count) {
    std::vector<T> values(count);
    CopyFrom(values.data(), data, count * sizeof(T));
    return values;
  }

 private:
  void* AllocateBytes(size_t bytes);
  void CopyTo(void* device_dst, const void* src, size_t bytes);
  void CopyFrom(void* dst, const void* device_src, size_t bytes);

  std::unique_ptr<tensor::Device> device_;
  std::vector<tensor::Buffer> buffers_;
};

// A matrix in host memory, for PackMatrix.
class HostMatrix {
 public:
  HostMatrix(const std::vector<float>& values, int64_t rows, int64_t cols, tensor::DType dtype);
  const tensor::TensorView& view() const { return view_; }

 private:
  std::vector<uint32_t> memory_;
  tensor::TensorView view_;
};

// Random numbers of one test, from a fixed seed.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  std::vector<float> Normal(int64_t count, float deviation = 1.0f);
  int Int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  std::mt19937_64& engine() { return engine_; }

 private:
  std::mt19937_64 engine_;
};

// |a - b| <= relative * |b| + absolute for all elements, as a message when not.
std::string FirstDifference(const std::vector<float>& got, const std::vector<double>& want,
                            double relative, double absolute);
// True when both have the same bits.
bool SameBits(const std::vector<float>& a, const std::vector<float>& b);

}  // namespace hyserve::kernels::testing

#endif  // HYSERVE_TESTS_ENGINE_KERNELS_TEST_DEVICE_H_
