// Pinned host memory that staged messages share: first fit, allocated when first needed. One thread
// only.
#ifndef HYSERVE_KV_TRANSFER_UCX_STAGING_BUFFER_H_
#define HYSERVE_KV_TRANSFER_UCX_STAGING_BUFFER_H_

#include <cstddef>
#include <map>

#include "absl/status/statusor.h"
#include "kv_transfer/device_memory.h"

namespace hyserve::kv_transfer {

class StagingBuffer {
 public:
  StagingBuffer(DeviceMemory* device, size_t capacity_bytes)
      : device_(device), capacity_bytes_(capacity_bytes) {}
  ~StagingBuffer();
  StagingBuffer(const StagingBuffer&) = delete;
  StagingBuffer& operator=(const StagingBuffer&) = delete;

  // Null when there is no room now; RESOURCE_EXHAUSTED when there never will be.
  absl::StatusOr<char*> Take(size_t bytes);
  void Give(char* data);

 private:
  DeviceMemory* const device_;
  const size_t capacity_bytes_;
  char* memory_ = nullptr;
  std::map<size_t, size_t> taken_;  // offset -> bytes
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_UCX_STAGING_BUFFER_H_
