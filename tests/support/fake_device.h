// A device in host memory that fails when told to. Models that compute need a real one; the fake
// model does not.
#ifndef HYSERVE_TESTS_SUPPORT_FAKE_DEVICE_H_
#define HYSERVE_TESTS_SUPPORT_FAKE_DEVICE_H_

#include <cstring>
#include <new>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/tensor/device.h"

namespace hyserve::testing_support {

class FakeDevice final : public tensor::Device {
 public:
  // From now on Synchronize() and copies on the device answer `error`. Thread-safe.
  void Break(const absl::Status& error) {
    absl::MutexLock lock(&mutex_);
    error_ = error;
  }
  // So much can be allocated from now on, and FreeBytes() tells; what is freed does not come back.
  void SetFreeBytes(size_t bytes) {
    absl::MutexLock lock(&mutex_);
    free_bytes_ = bytes;
  }
  // As if so much were allocated. RESOURCE_EXHAUSTED when there is not so much.
  absl::Status Take(size_t bytes) {
    absl::MutexLock lock(&mutex_);
    if (!free_bytes_.has_value()) return absl::OkStatus();
    if (bytes > *free_bytes_) return absl::ResourceExhaustedError("the fake device is full");
    *free_bytes_ -= bytes;
    return absl::OkStatus();
  }

  tensor::DeviceKind kind() const override { return tensor::DeviceKind::kCpu; }
  std::string Description() const override { return "fake"; }
  tensor::DType activation_dtype() const override { return tensor::DType::kF32; }
  absl::StatusOr<tensor::Buffer> Allocate(size_t bytes) override {
    if (absl::Status status = Take(bytes); !status.ok()) return status;
    void* const data = ::operator new(bytes, std::align_val_t{64});
    std::memset(data, 0, bytes);
    return tensor::Buffer(data, bytes, [](void* freed, size_t) {
      ::operator delete(freed, std::align_val_t{64});
    });
  }
  absl::StatusOr<size_t> FreeBytes() const override {
    absl::MutexLock lock(&mutex_);
    if (free_bytes_.has_value()) return *free_bytes_;
    return Device::FreeBytes();
  }
  absl::Status CopyToDevice(void* dst, const void* src, size_t bytes) override {
    return Copy(dst, src, bytes);
  }
  absl::Status CopyToHost(void* dst, const void* src, size_t bytes) override {
    return Copy(dst, src, bytes);
  }
  absl::Status CopyOnDevice(void* dst, const void* src, size_t bytes) override {
    return Copy(dst, src, bytes);
  }
  absl::Status Synchronize() override {
    absl::MutexLock lock(&mutex_);
    return error_;
  }

 private:
  absl::Status Copy(void* dst, const void* src, size_t bytes) {
    absl::MutexLock lock(&mutex_);
    if (error_.ok()) std::memcpy(dst, src, bytes);
    return error_;
  }

  mutable absl::Mutex mutex_;
  absl::Status error_ ABSL_GUARDED_BY(mutex_);
  std::optional<size_t> free_bytes_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hyserve::testing_support

#endif  // HYSERVE_TESTS_SUPPORT_FAKE_DEVICE_H_
