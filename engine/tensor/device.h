// A device: where buffers live and ops run. One Device per engine; the engine loop's thread is the
// only caller of everything here, except where a comment says otherwise.
//
// The CPU device ("cpu") owns the thread pool that its ops use. A CUDA device owns a stream: ops
// are enqueued in order and Synchronize() waits for them; on the CPU an op has finished when its
// function returns.
#ifndef HYSERVE_ENGINE_TENSOR_DEVICE_H_
#define HYSERVE_ENGINE_TENSOR_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tensor/buffer.h"
#include "engine/tensor/tensor.h"

namespace hyserve::tensor {

enum class DeviceKind { kCpu, kCuda };

struct DeviceOptions {
  std::string name = "cpu";  // "cpu", "cuda" (the first GPU) or "cuda:N"
  int num_threads = 0;       // CPU only; 0 = one per core that the process may run on
  std::string isa = "auto";  // CPU only: "auto", "avx512_bf16", "avx512", "avx2", "scalar"
};

class Device {
 public:
  // INVALID_ARGUMENT: unknown name or isa, an isa or GPU that this machine lacks, or a GPU in a
  // build without CUDA. FAILED_PRECONDITION: no driver, or a GPU that has no kernels here.
  static absl::StatusOr<std::unique_ptr<Device>> Create(const DeviceOptions& options);
  virtual ~Device() = default;

  virtual DeviceKind kind() const = 0;
  // For logs: "cpu avx512 2 threads".
  virtual std::string Description() const = 0;

  // Zero-filled memory, aligned to at least 64 bytes. RESOURCE_EXHAUSTED when there is not enough.
  // Thread-safe, but not beside RunRecorded.
  virtual absl::StatusOr<Buffer> Allocate(size_t bytes) = 0;

  // What Allocate() could still give, in bytes. UNIMPLEMENTED where the device does not know (the
  // CPU). Thread-safe.
  virtual absl::StatusOr<size_t> FreeBytes() const {
    return absl::UnimplementedError("the device does not say how much memory is free");
  }

  // Dtype in which activations are kept: f32 on the CPU, bf16 on a GPU.
  virtual DType activation_dtype() const = 0;

  // Copies between host memory and this device; ordered with the ops. ToHost returns when the
  // bytes are there. Regions must not overlap.
  virtual absl::Status CopyToDevice(void* device_dst, const void* host_src, size_t bytes) = 0;
  virtual absl::Status CopyToHost(void* host_dst, const void* device_src, size_t bytes) = 0;
  virtual absl::Status CopyOnDevice(void* dst, const void* src, size_t bytes) = 0;
  // Names this point among the enqueued ops and copies: a marker is reached when everything before
  // it has finished. Markers are reached in order; the last kMarkers may be asked about. On devices
  // whose ops finish when their functions return, every marker is reached.
  static constexpr int64_t kMarkers = 64;
  virtual absl::StatusOr<int64_t> Mark() { return 0; }
  virtual absl::StatusOr<bool> Reached(int64_t marker) { return true; }
  virtual absl::Status WaitFor(int64_t marker) { return absl::OkStatus(); }
  // Runs `enqueue`, which calls ops. Under the same key it must always enqueue the same: `key`
  // names all that the ops depend on, addresses, shapes and numbers of the host; what memory holds
  // may differ. So the device may keep what it enqueued and enqueue that again without calling
  // `enqueue`, at less cost. Recordings are forgotten when memory is allocated: it may lie where
  // the recorded ops' memory was.
  virtual absl::Status RunRecorded(const std::vector<int64_t>& key,
                                   absl::FunctionRef<absl::Status()> enqueue) {
    return enqueue();
  }
  // An error that stays, call after call, means that the device is lost.
  virtual absl::Status Synchronize() = 0;
};

}  // namespace hyserve::tensor

#endif  // HYSERVE_ENGINE_TENSOR_DEVICE_H_
