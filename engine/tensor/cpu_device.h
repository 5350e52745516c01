// The CPU as a device: f32 activations, a thread pool, and the instruction set that its ops use.
#ifndef HYSERVE_ENGINE_TENSOR_CPU_DEVICE_H_
#define HYSERVE_ENGINE_TENSOR_CPU_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tensor/device.h"
#include "engine/tensor/thread_pool.h"

namespace hyserve::tensor {

// Each includes those before it. kAvx512Bf16 differs from kAvx512 in products with bf16 weights:
// their activations are rounded to bf16 too, at twice the speed.
enum class Isa : uint8_t { kScalar, kAvx2, kAvx512, kAvx512Bf16 };
inline constexpr Isa kAllIsas[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};

std::string_view Name(Isa isa);
// The best that this machine has.
Isa DetectIsa();

class CpuDevice : public Device {
 public:
  // INVALID_ARGUMENT: isa unknown or not on this machine, threads negative.
  static absl::StatusOr<std::unique_ptr<CpuDevice>> Create(const DeviceOptions& options);

  DeviceKind kind() const override { return DeviceKind::kCpu; }
  std::string Description() const override;
  absl::StatusOr<Buffer> Allocate(size_t bytes) override;
  DType activation_dtype() const override { return DType::kF32; }
  absl::Status CopyToDevice(void* device_dst, const void* host_src, size_t bytes) override;
  absl::Status CopyToHost(void* host_dst, const void* device_src, size_t bytes) override;
  absl::Status CopyOnDevice(void* dst, const void* src, size_t bytes) override;
  absl::Status Synchronize() override { return absl::OkStatus(); }

  Isa isa() const { return isa_; }
  ThreadPool& pool() { return pool_; }

  // Memory that ops reuse from call to call: contents are undefined, 64-byte aligned, valid until
  // the next call with the same slot. RESOURCE_EXHAUSTED when it cannot grow. Not thread-safe.
  enum class WorkspaceSlot : uint8_t { kGemm, kOp };
  absl::StatusOr<std::byte*> Workspace(WorkspaceSlot slot, size_t bytes);
  // The same, one region per thread of the pool: region t at result + t * stride_bytes, where
  // stride_bytes is bytes_per_thread rounded up to whole cache lines and set by the call.
  struct ThreadScratch {
    std::byte* data = nullptr;
    size_t stride_bytes = 0;
    std::byte* of(int thread) const { return data + thread * stride_bytes; }
  };
  absl::StatusOr<ThreadScratch> Scratch(size_t bytes_per_thread);

 protected:
  CpuDevice(Isa isa, int num_threads) : isa_(isa), pool_(num_threads) {}

 private:
  absl::StatusOr<std::byte*> Grow(Buffer& buffer, size_t bytes);

  const Isa isa_;
  Buffer workspaces_[2];
  Buffer scratch_;
  ThreadPool pool_;
};

}  // namespace hyserve::tensor

#endif  // HYSERVE_ENGINE_TENSOR_CPU_DEVICE_H_
