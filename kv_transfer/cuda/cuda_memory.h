// DeviceMemory of one NVIDIA GPU: four streams of high priority beside the engine's, one for each
// direction of copies and one for checksums. Checksums that are asked for between two polls, or
// while the device is busy with earlier ones, are computed by one launch: processes that share a
// GPU take turns, and a turn costs far more than a small kernel.
#ifndef HYSERVE_KV_TRANSFER_CUDA_CUDA_MEMORY_H_
#define HYSERVE_KV_TRANSFER_CUDA_CUDA_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "kv_transfer/cuda/copy_parts.h"
#include "kv_transfer/cuda/crc32c_launch.h"
#include "kv_transfer/device_memory.h"

namespace hyserve::kv_transfer::cuda {

class CudaMemory final : public DeviceMemory {
 public:
  // INVALID_ARGUMENT: no such GPU. FAILED_PRECONDITION: no usable driver.
  static absl::StatusOr<std::unique_ptr<CudaMemory>> Create(int ordinal);
  ~CudaMemory() override;

  std::string name() const override;
  absl::Status MakeCurrent() override;
  absl::Status CheckRange(const void* data, size_t bytes) override;
  bool Shareable(const void* data) override;
  absl::StatusOr<char*> Allocate(Space space, size_t bytes) override;
  void Free(Space space, char* data) override;
  absl::StatusOr<JobId> StartCopy(Direction direction, void* to, const void* from,
                                  size_t bytes) override;
  absl::StatusOr<JobId> StartGather(Direction direction, char* to,
                                    const std::vector<MemoryPart>& from) override;
  absl::StatusOr<JobId> StartScatter(Direction direction, const std::vector<MemoryPart>& to,
                                     const char* from) override;
  absl::StatusOr<JobId> StartChecksum(const std::vector<MemoryPart>& parts,
                                      uint32_t* each) override;
  std::optional<absl::StatusOr<uint32_t>> Poll(JobId job) override;
  absl::Status Synchronize() override;

 private:
  static constexpr int kNumStreams = 4;  // the directions, and checksums
  static constexpr int kChecksumStream = 3;

  // One launch of the checksum kernel. Lives until all of its jobs have been answered.
  struct Batch {
    cudaEvent_t event = nullptr;
    uint32_t* partials = nullptr;  // pinned
    std::optional<absl::Status> end;
    int64_t jobs = 0;  // not yet answered
  };
  struct Job {
    cudaEvent_t event = nullptr;  // of a copy
    std::vector<MemoryPart> parts = {};  // of a checksum
    uint32_t* each = nullptr;            // the caller's
    size_t partials = 0;
    std::shared_ptr<Batch> batch = nullptr;  // null: not launched yet
    size_t first_partial = 0;
  };

  explicit CudaMemory(int ordinal) : ordinal_(ordinal) {}
  absl::Status Initialize();
  absl::StatusOr<cudaEvent_t> TakeEvent() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<uint32_t*> TakePartials() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<JobId> StartCopies(Direction direction, const std::vector<CopyPart>& copies);
  void LaunchWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Launch(const std::vector<CrcRange>& ranges, Batch& batch)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Query(Batch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int ordinal_;
  cudaStream_t streams_[kNumStreams] = {};
  const void* tables_ = nullptr;
  absl::Mutex mutex_;
  absl::flat_hash_map<JobId, Job> jobs_ ABSL_GUARDED_BY(mutex_);
  JobId next_job_ ABSL_GUARDED_BY(mutex_) = 1;
  std::vector<cudaEvent_t> free_events_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint32_t*> free_partials_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint32_t*> all_partials_ ABSL_GUARDED_BY(mutex_);  // pinned
  std::deque<JobId> waiting_ ABSL_GUARDED_BY(mutex_);            // checksums to be launched
  int running_batches_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace hyserve::kv_transfer::cuda

#endif  // HYSERVE_KV_TRANSFER_CUDA_CUDA_MEMORY_H_
