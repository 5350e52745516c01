// One NVIDIA GPU as a device: bf16 activations, one stream on which every op runs in order, and the
// memory and library handles that ops share.
//
// Ops only enqueue; nothing inside a step waits for the GPU. An error of a kernel shows at the next
// call that checks (CudaStatus) or synchronises; after a fault of the GPU itself every later call
// fails with INTERNAL and the engine must be made anew.
#ifndef HYSERVE_ENGINE_TENSOR_CUDA_DEVICE_H_
#define HYSERVE_ENGINE_TENSOR_CUDA_DEVICE_H_

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tensor/cuda_recordings.h"
#include "engine/tensor/device.h"

namespace hyserve::tensor {

// OK, RESOURCE_EXHAUSTED (out of memory) or INTERNAL; the message is "<what>: <CUDA's text>".
absl::Status CudaStatus(cudaError_t error, std::string_view what);

class CudaDevice : public Device {
 public:
  // options.name is "cuda" (device 0) or "cuda:N". INVALID_ARGUMENT: no such GPU;
  // FAILED_PRECONDITION: no usable driver, or a GPU of another architecture than 9.0, named with
  // what was expected.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Create(const DeviceOptions& options);
  ~CudaDevice() override;

  DeviceKind kind() const override { return DeviceKind::kCuda; }
  std::string Description() const override;  // "cuda:0 NVIDIA H200, 132 SMs, 139.8 GiB"
  absl::StatusOr<Buffer> Allocate(size_t bytes) override;  // plain cudaMalloc, zero-filled
  absl::StatusOr<size_t> FreeBytes() const override;
  DType activation_dtype() const override { return DType::kBF16; }
  absl::Status CopyToDevice(void* device_dst, const void* host_src, size_t bytes) override;
  absl::Status CopyToHost(void* host_dst, const void* device_src, size_t bytes) override;
  absl::Status CopyOnDevice(void* dst, const void* src, size_t bytes) override;
  absl::StatusOr<int64_t> Mark() override;
  absl::StatusOr<bool> Reached(int64_t marker) override;
  absl::Status WaitFor(int64_t marker) override;
  absl::Status RunRecorded(const std::vector<int64_t>& key,
                           absl::FunctionRef<absl::Status()> enqueue) override;
  absl::Status Synchronize() override;

  int ordinal() const { return ordinal_; }
  int num_sms() const { return num_sms_; }
  cudaStream_t stream() const { return stream_; }
  cublasLtHandle_t blas() const { return blas_; }
  const CudaRecordings& recordings() const { return recordings_; }

  // Device memory that ops reuse from call to call: contents are undefined, 256-byte aligned, valid
  // for kernels enqueued before the next call with the same slot. Grows by synchronising and
  // allocating anew, so ops ask for bounded sizes. RESOURCE_EXHAUSTED when it cannot grow.
  // kTickets is zero when it is allocated, and every op that uses it leaves it zero.
  enum class WorkspaceSlot : uint8_t { kGemm, kMoe, kAttention, kTickets, kNumSlots };
  absl::StatusOr<std::byte*> Workspace(WorkspaceSlot slot, size_t bytes);
  // So that calls of Workspace for up to `bytes` do not allocate.
  absl::Status ReserveWorkspace(WorkspaceSlot slot, size_t bytes);
  // Calls of Allocate so far, and so of all that took memory here. Thread-safe.
  int64_t num_allocations() const { return num_allocations_.load(); }

 private:
  class Staging;

  CudaDevice(int ordinal, int num_sms);
  absl::Status MakeCurrent() const;
  // As MakeCurrent; FAILED_PRECONDITION for what a recording cannot hold.
  absl::Status CheckNotRecording() const;

  const int ordinal_;
  const int num_sms_;
  std::string name_;
  size_t memory_bytes_ = 0;
  cudaStream_t stream_ = nullptr;
  cublasLtHandle_t blas_ = nullptr;
  std::unique_ptr<Staging> uploads_;
  std::unique_ptr<Staging> downloads_;
  std::array<Buffer, static_cast<size_t>(WorkspaceSlot::kNumSlots)> workspaces_;
  std::atomic<int64_t> num_allocations_{0};
  CudaRecordings recordings_;
  // Marker m is the event m % kMarkers, created when first used.
  std::array<cudaEvent_t, kMarkers> markers_{};
  int64_t next_marker_ = 0;
};

}  // namespace hyserve::tensor

#endif  // HYSERVE_ENGINE_TENSOR_CUDA_DEVICE_H_
