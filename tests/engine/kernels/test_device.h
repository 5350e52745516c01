// What every kernel test needs: the devices to run on, and arrays that travel to a device and back.
#ifndef HYSERVE_TESTS_ENGINE_KERNELS_TEST_DEVICE_H_
#define HYSERVE_TESTS_ENGINE_KERNELS_TEST_DEVICE_H_

#include <cstdint>
#include <cstring>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "engine/tensor/device.h"
#include "engine/tensor/tensor.h"

namespace hyserve::tensor {
// How GoogleTest names a device in a failure.
inline void PrintTo(const DeviceOptions& options, std::ostream* out) {
  *out << options.name << " " << options.isa << " " << options.num_threads;
}
}  // namespace hyserve::tensor

namespace hyserve::kernels::testing {

// Every instruction set of this machine's CPU, with one and with two threads, and its first GPU. A
// new kind of device joins the parity tests by joining this list. HYSERVE_TEST_DEVICES=cpu or cuda
// keeps one kind; with cuda the GPU is listed even where there is none, so that the tests fail.
std::vector<tensor::DeviceOptions> TestDevices();
std::string DeviceName(const tensor::DeviceOptions& options);
bool IsCuda(const tensor::DeviceOptions& options);

// True for devices that round the activations of a product with bf16 weights to bf16.
bool RoundsActivations(const tensor::DeviceOptions& options, tensor::DType weight_dtype);

// The dtype in which the device keeps weights that it is given in dtype.
tensor::DType WeightDType(const tensor::DeviceOptions& options, tensor::DType dtype);

// values rounded to dtype.
std::vector<float> Rounded(std::vector<float> values, tensor::DType dtype);

// A device and the arrays of one test; all freed together.
class TestDevice {
 public:
  explicit TestDevice(const tensor::DeviceOptions& options);

  tensor::Device& get() { return *device_; }
  tensor::DType activation() const { return device_->activation_dtype(); }

  // Elements by which the row stride of what follows exceeds its columns: 3 unless set.
  void set_extra_stride(int64_t elements) { extra_stride_ = elements; }

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

  int64_t extra_stride_ = 3;  // odd: no op may assume aligned rows either
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

// What a value in bf16 may differ from its double-precision reference, relative to the largest
// magnitude of its row.
inline constexpr double kBf16Tolerance = 1e-2;
// |got - want| <= relative * (largest |want| of the row) for all elements of rows of cols, as a
// message when not.
std::string FirstRowDifference(const std::vector<float>& got, const std::vector<double>& want,
                               int64_t cols, double relative);
// |a - b| <= relative * |b| + absolute for all elements, as a message when not.
std::string FirstDifference(const std::vector<float>& got, const std::vector<double>& want,
                            double relative, double absolute);
// True when both have the same bits.
bool SameBits(const std::vector<float>& a, const std::vector<float>& b);

}  // namespace hyserve::kernels::testing

#endif  // HYSERVE_TESTS_ENGINE_KERNELS_TEST_DEVICE_H_
