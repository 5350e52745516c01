#include "engine/tensor/cuda_recordings.h"

#include "engine/tensor/cuda_device.h"

namespace hyserve::tensor {

void CudaRecordings::Clear() {
  for (Entry& entry : entries_) Forget(entry);
  entries_.clear();
  index_.clear();
}

void CudaRecordings::Forget(Entry& entry) {
  if (entry.graph != nullptr) cudaGraphExecDestroy(entry.graph);
  entry.graph = nullptr;
  entry.refused = false;
}

CudaRecordings::Entry& CudaRecordings::Find(const std::vector<int64_t>& key) {
  const auto found = index_.find(key);
  if (found != index_.end()) {
    entries_.splice(entries_.begin(), entries_, found->second);
    return entries_.front();
  }
  if (entries_.size() >= kMostKeys) {
    Forget(entries_.back());
    index_.erase(entries_.back().key);
    entries_.pop_back();
  }
  entries_.push_front({.key = key});
  index_[key] = entries_.begin();
  return entries_.front();
}

bool CudaRecordings::Record(Entry& entry, cudaStream_t stream,
                            absl::FunctionRef<absl::Status()> enqueue) {
  if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  recording_ = true;
  const absl::Status status = enqueue();
  recording_ = false;
  cudaGraph_t graph = nullptr;
  cudaError_t error = cudaStreamEndCapture(stream, &graph);
  if (error == cudaSuccess && status.ok()) {
    error = cudaGraphInstantiate(&entry.graph, graph, 0);
  }
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (error != cudaSuccess) {
    cudaGetLastError();  // the direct run tells what is wrong, if that fails too
    entry.graph = nullptr;
  }
  return entry.graph != nullptr;
}

absl::Status CudaRecordings::Run(const std::vector<int64_t>& key,
                                 const std::atomic<int64_t>& allocations, cudaStream_t stream,
                                 absl::FunctionRef<absl::Status()> enqueue) {
  Entry& entry = Find(key);
  if (entry.allocations != allocations.load()) {
    Forget(entry);
    const absl::Status status = enqueue();
    entry.allocations = status.ok() ? allocations.load() : -1;
    return status;
  }
  if (entry.graph == nullptr && !entry.refused) entry.refused = !Record(entry, stream, enqueue);
  if (entry.refused) return enqueue();
  ++num_replays_;
  return CudaStatus(cudaGraphLaunch(entry.graph, stream), "launching recorded kernels");
}

}  // namespace hyserve::tensor
