// Memory that the host cannot read: what a hand-off needs to do with it. Everything runs beside the
// engine's work, on streams of its own; nothing here waits for the engine's kernels, except
// Synchronize(). The CUDA implementation is opened by kv_transfer/cuda/open_device.h.
//
// Thread-safe. A job is a copy or a checksum that was started and not yet answered by Poll().
#ifndef HYSERVE_KV_TRANSFER_DEVICE_MEMORY_H_
#define HYSERVE_KV_TRANSFER_DEVICE_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hyserve::kv_transfer {

// One contiguous piece of memory.
struct MemoryPart {
  char* data = nullptr;
  size_t bytes = 0;
};

class DeviceMemory {
 public:
  // Pieces of one message that a call below takes at most.
  static constexpr size_t kMaxParts = 128;

  using JobId = uint64_t;
  enum class Space : uint8_t { kDevice, kPinnedHost };
  enum class Direction : uint8_t { kToHost, kToDevice, kOnDevice };

  virtual ~DeviceMemory() = default;
  virtual std::string name() const = 0;  // "cuda:0"

  // Makes this device the calling thread's; before the thread lets another library use the device.
  virtual absl::Status MakeCurrent() = 0;
  // INVALID_ARGUMENT unless [data, data + bytes) is memory of this device.
  virtual absl::Status CheckRange(const void* data, size_t bytes) = 0;
  // Other processes of this host can map the memory at `data` (plain cudaMalloc can, pools cannot).
  virtual bool Shareable(const void* data) = 0;

  // RESOURCE_EXHAUSTED. To be freed before this object goes.
  virtual absl::StatusOr<char*> Allocate(Space space, size_t bytes) = 0;
  virtual void Free(Space space, char* data) = 0;

  // Starts a copy; the host side of it must be pinned. Copies of one direction run in order.
  virtual absl::StatusOr<JobId> StartCopy(Direction direction, void* to, const void* from,
                                          size_t bytes) = 0;
  // Starts copying pieces of device memory one after another to `to`, on the device or to the host.
  virtual absl::StatusOr<JobId> StartGather(Direction direction, char* to,
                                            const std::vector<MemoryPart>& from) = 0;
  // The other way round, on the device or from the host.
  virtual absl::StatusOr<JobId> StartScatter(Direction direction,
                                             const std::vector<MemoryPart>& to,
                                             const char* from) = 0;
  // Starts computing the CRC32C of pieces of device memory, one after another. `each`, unless null,
  // gets every piece's own instead, before Poll() answers. 0 pieces: 0.
  virtual absl::StatusOr<JobId> StartChecksum(const std::vector<MemoryPart>& parts,
                                              uint32_t* each) = 0;
  // nullopt while the job runs; else its end, once: the checksum, 0 for copies, or the fault.
  virtual std::optional<absl::StatusOr<uint32_t>> Poll(JobId job) = 0;

  // Waits until everything that this process has enqueued on the device is over, by whomever and on
  // whatever stream. Blocks; for the fence after a failed receive.
  virtual absl::Status Synchronize() = 0;
};

// Starts a copy and waits for it.
absl::Status CopyAndWait(DeviceMemory& device, DeviceMemory::Direction direction, void* to,
                         const void* from, size_t bytes);

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_DEVICE_MEMORY_H_
