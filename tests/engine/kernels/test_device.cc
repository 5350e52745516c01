#include "tests/engine/kernels/test_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <stdexcept>

#include "engine/tensor/convert.h"
#include "engine/tensor/cpu_device.h"

namespace hyserve::kernels::testing {

using tensor::DType;
using tensor::TensorView;

namespace {

void Encode(float value, DType dtype, void* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, &value, sizeof(value));
  } else {
    const uint16_t bits = tensor::FloatToBf16(value);
    std::memcpy(out, &bits, sizeof(bits));
  }
}

float Decode(const void* data, DType dtype) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, data, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, data, sizeof(bits));
  return dtype == DType::kBF16 ? tensor::Bf16ToFloat(bits) : tensor::F16ToFloat(bits);
}

}  // namespace

std::vector<tensor::DeviceOptions> TestDevices() {
  const char* variable = std::getenv("HYSERVE_TEST_DEVICES");
  const std::string wanted = variable == nullptr ? "" : variable;
  std::vector<tensor::DeviceOptions> devices;
  const tensor::Isa best = tensor::DetectIsa();
  for (tensor::Isa isa : tensor::kAllIsas) {
    if (isa > best || wanted == "cuda") continue;
    for (int threads : {1, 2}) {
      devices.push_back({"cpu", threads, std::string(tensor::Name(isa))});
    }
  }
  const tensor::DeviceOptions gpu = {"cuda", 1, "auto"};
  if (wanted == "cuda" || (wanted != "cpu" && tensor::Device::Create(gpu).ok())) {
    devices.push_back(gpu);
  }
  return devices;
}

bool IsCuda(const tensor::DeviceOptions& options) { return options.name.starts_with("cuda"); }

std::string DeviceName(const tensor::DeviceOptions& options) {
  std::string name = options.name + "_" + options.isa + "_" + std::to_string(options.num_threads);
  for (char& c : name) {
    if (c == ':') c = '_';
  }
  return name;
}

bool RoundsActivations(const tensor::DeviceOptions& options, DType weight_dtype) {
  return IsCuda(options) || (weight_dtype == DType::kBF16 && options.isa == "avx512_bf16");
}

DType WeightDType(const tensor::DeviceOptions& options, DType dtype) {
  if (IsCuda(options)) return DType::kBF16;
  return dtype == DType::kF16 ? DType::kF32 : dtype;
}

std::vector<float> Rounded(std::vector<float> values, DType dtype) {
  if (dtype == DType::kBF16) {
    for (float& value : values) value = tensor::Bf16ToFloat(tensor::FloatToBf16(value));
  }
  return values;
}

TestDevice::TestDevice(const tensor::DeviceOptions& options) {
  absl::StatusOr<std::unique_ptr<tensor::Device>> device = tensor::Device::Create(options);
  if (!device.ok()) throw std::runtime_error(std::string(device.status().message()));
  device_ = *std::move(device);
}

void* TestDevice::AllocateBytes(size_t bytes) {
  absl::StatusOr<tensor::Buffer> buffer = device_->Allocate(bytes + 64);
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  buffers_.push_back(*std::move(buffer));
  return buffers_.back().data();
}

void TestDevice::CopyTo(void* device_dst, const void* src, size_t bytes) {
  EXPECT_TRUE(device_->CopyToDevice(device_dst, src, bytes).ok());
}

void TestDevice::CopyFrom(void* dst, const void* device_src, size_t bytes) {
  EXPECT_TRUE(device_->CopyToHost(dst, device_src, bytes).ok());
}

TensorView TestDevice::Upload(const std::vector<float>& values, int64_t rows, int64_t cols,
                              DType dtype) {
  EXPECT_EQ(static_cast<int64_t>(values.size()), rows * cols);
  const size_t size = tensor::SizeOf(dtype);
  const int64_t stride = cols + extra_stride_;
  std::vector<char> bytes(rows * stride * size, 0);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < stride; ++col) {
      const float value = col < cols ? values[row * cols + col]
                                     : std::numeric_limits<float>::quiet_NaN();
      Encode(value, dtype, bytes.data() + (row * stride + col) * size);
    }
  }
  return {UploadArray(bytes), dtype, rows, cols, stride};
}

TensorView TestDevice::Output(int64_t rows, int64_t cols, DType dtype) {
  return Upload(std::vector<float>(rows * cols, std::numeric_limits<float>::quiet_NaN()), rows,
                cols, dtype);
}

std::vector<float> TestDevice::Download(const TensorView& view) {
  const size_t size = tensor::SizeOf(view.dtype);
  const std::vector<char> bytes =
      DownloadArray(static_cast<const char*>(view.data), view.rows * view.row_stride * size);
  std::vector<float> values;
  for (int64_t row = 0; row < view.rows; ++row) {
    for (int64_t col = 0; col < view.cols; ++col) {
      values.push_back(Decode(bytes.data() + (row * view.row_stride + col) * size, view.dtype));
    }
  }
  return values;
}

HostMatrix::HostMatrix(const std::vector<float>& values, int64_t rows, int64_t cols, DType dtype) {
  const size_t size = tensor::SizeOf(dtype);
  memory_.resize((values.size() * size + 3) / 4);
  char* bytes = reinterpret_cast<char*>(memory_.data());
  for (size_t i = 0; i < values.size(); ++i) Encode(values[i], dtype, bytes + i * size);
  view_ = {memory_.data(), dtype, rows, cols, cols};
}

std::vector<float> Random::Normal(int64_t count, float deviation) {
  std::normal_distribution<float> distribution(0.0f, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = distribution(engine_);
  return values;
}

std::string FirstRowDifference(const std::vector<float>& got, const std::vector<double>& want,
                               int64_t cols, double relative) {
  if (got.size() != want.size() || want.size() % cols != 0) return "sizes differ";
  for (size_t begin = 0; begin < want.size(); begin += cols) {
    double magnitude = 1e-30;  // below it, bf16 has nothing but zero and subnormals
    for (int64_t i = 0; i < cols; ++i) magnitude = std::max(magnitude, std::abs(want[begin + i]));
    const std::string difference =
        FirstDifference(std::vector<float>(got.begin() + begin, got.begin() + begin + cols),
                        std::vector<double>(want.begin() + begin, want.begin() + begin + cols), 0,
                        relative * magnitude);
    if (!difference.empty()) {
      return "row " + std::to_string(begin / cols) + " " + difference + ", largest " +
             std::to_string(magnitude);
    }
  }
  return "";
}

std::string FirstDifference(const std::vector<float>& got, const std::vector<double>& want,
                            double relative, double absolute) {
  if (got.size() != want.size()) return "sizes differ";
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(std::abs(got[i] - want[i]) <= relative * std::abs(want[i]) + absolute)) {
      return "element " + std::to_string(i) + ": got " + std::to_string(got[i]) + ", want " +
             std::to_string(want[i]);
    }
  }
  return "";
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace hyserve::kernels::testing
