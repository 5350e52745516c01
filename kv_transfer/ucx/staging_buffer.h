// Memory that staged messages share: first fit, allocated when first needed. One thread only.
#ifndef HYSERVE_KV_TRANSFER_UCX_STAGING_BUFFER_H_
#define HYSERVE_KV_TRANSFER_UCX_STAGING_BUFFER_H_

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"

namespace hyserve::kv_transfer {

class StagingBuffer {
 public:
  using Allocate = std::function<absl::StatusOr<std::shared_ptr<char>>(size_t bytes)>;
  StagingBuffer(size_t capacity_bytes, Allocate allocate)
      : capacity_bytes_(capacity_bytes), allocate_(std::move(allocate)) {}
  StagingBuffer(const StagingBuffer&) = delete;
  StagingBuffer& operator=(const StagingBuffer&) = delete;

  // Allocates now. RESOURCE_EXHAUSTED.
  absl::Status Reserve();
  // Null when there is no room now; RESOURCE_EXHAUSTED when there never will be.
  absl::StatusOr<char*> Take(size_t bytes);
  void Give(char* data);
  // Frees the memory. REQUIRES: nothing is taken.
  void Release() { memory_.reset(); }

 private:
  const size_t capacity_bytes_;
  const Allocate allocate_;
  std::shared_ptr<char> memory_;
  std::map<size_t, size_t> taken_;  // offset -> bytes
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_UCX_STAGING_BUFFER_H_
