// Sequences of ops that were enqueued once and are enqueued again as CUDA graphs
// (Device::RunRecorded).
#ifndef HYSERVE_ENGINE_TENSOR_CUDA_RECORDINGS_H_
#define HYSERVE_ENGINE_TENSOR_CUDA_RECORDINGS_H_

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace hyserve::tensor {

// The first run under a key is direct, so that workspaces grow and libraries load; the second is
// recorded, later ones replay. Of the keys only the kMostKeys used last are remembered. Not
// thread-safe.
class CudaRecordings {
 public:
  static constexpr size_t kMostKeys = 64;

  CudaRecordings() = default;
  CudaRecordings(const CudaRecordings&) = delete;
  CudaRecordings& operator=(const CudaRecordings&) = delete;
  ~CudaRecordings() { Clear(); }

  // `allocations` grows whenever memory is allocated: recordings made before are forgotten. What
  // cannot be recorded runs directly.
  absl::Status Run(const std::vector<int64_t>& key, const std::atomic<int64_t>& allocations,
                   cudaStream_t stream, absl::FunctionRef<absl::Status()> enqueue);

  // Forgets all; the device must still be there.
  void Clear();

  // While this is so, nothing may be allocated, waited for or exchanged with the host.
  bool recording() const { return recording_; }
  // Runs that replayed a recording.
  int64_t num_replays() const { return num_replays_; }

 private:
  struct Entry {
    std::vector<int64_t> key;
    int64_t allocations = -1;  // at the end of the first run
    cudaGraphExec_t graph = nullptr;
    bool refused = false;  // could not be recorded
  };
  using Entries = std::list<Entry>;

  Entry& Find(const std::vector<int64_t>& key);
  // False: nothing was recorded.
  bool Record(Entry& entry, cudaStream_t stream, absl::FunctionRef<absl::Status()> enqueue);
  static void Forget(Entry& entry);

  Entries entries_;  // the one used last first
  std::map<std::vector<int64_t>, Entries::iterator> index_;
  bool recording_ = false;
  int64_t num_replays_ = 0;
};

}  // namespace hyserve::tensor

#endif  // HYSERVE_ENGINE_TENSOR_CUDA_RECORDINGS_H_
