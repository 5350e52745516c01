#include "kv_transfer/cuda/cuda_memory.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kv_transfer/cuda/crc32c_launch.h"
#include "kv_transfer/cuda/crc32c_maps.h"

namespace hyserve::kv_transfer::cuda {
namespace {

constexpr size_t kMaxPartials = 16384;  // of one launch: 1 GiB
constexpr int kMaxBatches = 2;          // launched at a time; the others gather

absl::Status ToStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text = absl::StrCat(what, ": ", cudaGetErrorString(error));
  cudaGetLastError();  // a failed call must not show up as the next launch's error
  switch (error) {
    case cudaErrorMemoryAllocation: return absl::ResourceExhaustedError(text);
    case cudaErrorInvalidDevice: return absl::InvalidArgumentError(text);
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary: return absl::FailedPreconditionError(text);
    default: return absl::InternalError(text);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaMemory>> CudaMemory::Create(int ordinal) {
  std::unique_ptr<CudaMemory> memory(new CudaMemory(ordinal));
  absl::Status status = memory->Initialize();
  if (!status.ok()) return status;
  return memory;
}

absl::Status CudaMemory::Initialize() {
  int count = 0;
  absl::Status status = ToStatus(cudaGetDeviceCount(&count), "looking for GPUs");
  if (!status.ok()) return status;
  if (ordinal_ >= count) {
    return absl::InvalidArgumentError(absl::StrCat(name(), ": this host has ", count, " GPUs"));
  }
  status = MakeCurrent();
  if (!status.ok()) return status;
  int least = 0;
  int greatest = 0;
  status = ToStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest), "stream priorities");
  for (int i = 0; i < kNumStreams && status.ok(); ++i) {
    status = ToStatus(
        cudaStreamCreateWithPriority(&streams_[i], cudaStreamNonBlocking, greatest), "stream");
  }
  if (!status.ok()) return status;
  return ToStatus(Crc32cUploadTables(&tables_, streams_[kChecksumStream]), "checksum tables");
}

CudaMemory::~CudaMemory() {
  if (!MakeCurrent().ok()) return;
  for (cudaStream_t stream : streams_) {
    if (stream == nullptr) continue;
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }
  absl::MutexLock lock(&mutex_);
  for (const auto& [id, job] : jobs_) {
    if (job.event != nullptr) cudaEventDestroy(job.event);
  }
  for (cudaEvent_t event : free_events_) cudaEventDestroy(event);
  for (uint32_t* partials : all_partials_) cudaFreeHost(partials);
  if (tables_ != nullptr) cudaFree(const_cast<void*>(tables_));
}

std::string CudaMemory::name() const { return absl::StrCat("cuda:", ordinal_); }

absl::Status CudaMemory::MakeCurrent() {
  return ToStatus(cudaSetDevice(ordinal_), "cudaSetDevice");
}

absl::Status CudaMemory::CheckRange(const void* data, size_t bytes) {
  absl::Status status = MakeCurrent();
  if (!status.ok()) return status;
  for (const char* byte : {static_cast<const char*>(data),
                           static_cast<const char*>(data) + (bytes == 0 ? 0 : bytes - 1)}) {
    cudaPointerAttributes attributes{};
    status = ToStatus(cudaPointerGetAttributes(&attributes, byte), "looking memory up");
    if (!status.ok()) return status;
    if (attributes.type != cudaMemoryTypeDevice || attributes.device != ordinal_) {
      return absl::InvalidArgumentError(absl::StrCat("not memory of ", name()));
    }
  }
  return absl::OkStatus();
}

bool CudaMemory::Shareable(const void* data) {
  if (!MakeCurrent().ok()) return false;
  cudaIpcMemHandle_t handle;
  return ToStatus(cudaIpcGetMemHandle(&handle, const_cast<void*>(data)), "").ok();
}

absl::StatusOr<char*> CudaMemory::Allocate(Space space, size_t bytes) {
  absl::Status status = MakeCurrent();
  if (!status.ok()) return status;
  void* data = nullptr;
  status = space == Space::kDevice
               ? ToStatus(cudaMalloc(&data, bytes), "device memory for transfers")
               : ToStatus(cudaHostAlloc(&data, bytes, cudaHostAllocPortable),
                          "pinned memory for transfers");
  if (!status.ok()) return status;
  return static_cast<char*>(data);
}

void CudaMemory::Free(Space space, char* data) {
  if (!MakeCurrent().ok()) return;
  if (space == Space::kDevice) {
    cudaFree(data);
  } else {
    cudaFreeHost(data);
  }
}

absl::StatusOr<cudaEvent_t> CudaMemory::TakeEvent() {
  cudaEvent_t event = nullptr;
  if (!free_events_.empty()) {
    event = free_events_.back();
    free_events_.pop_back();
    return event;
  }
  absl::Status status = ToStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
  if (!status.ok()) return status;
  return event;
}

absl::StatusOr<DeviceMemory::JobId> CudaMemory::StartCopies(Direction direction,
                                                            const std::vector<CopyPart>& copies) {
  absl::Status status = MakeCurrent();
  if (!status.ok()) return status;
  const cudaMemcpyKind kind = direction == Direction::kToHost     ? cudaMemcpyDeviceToHost
                              : direction == Direction::kToDevice ? cudaMemcpyHostToDevice
                                                                  : cudaMemcpyDeviceToDevice;
  cudaStream_t stream = streams_[static_cast<int>(direction)];
  const auto count = static_cast<int>(copies.size());
  absl::MutexLock lock(&mutex_);
  const absl::StatusOr<cudaEvent_t> event = TakeEvent();
  if (!event.ok()) return event.status();
  if (direction == Direction::kOnDevice && count > 1 && count <= kMaxCopyParts &&
      CopyPartsFit(copies.data(), count)) {
    status = ToStatus(CopyPartsLaunch(copies.data(), count, stream), "copy kernel");
  } else {
    for (const CopyPart& copy : copies) {
      status = ToStatus(cudaMemcpyAsync(copy.to, copy.from, copy.bytes, kind, stream), "copy");
      if (!status.ok()) break;
    }
  }
  if (status.ok()) status = ToStatus(cudaEventRecord(*event, stream), "recording an event");
  if (!status.ok()) {
    cudaStreamSynchronize(stream);  // copies may have begun: their memory must not look free
    free_events_.push_back(*event);
    return status;
  }
  jobs_.emplace(next_job_, Job{.event = *event});
  return next_job_++;
}

absl::StatusOr<DeviceMemory::JobId> CudaMemory::StartCopy(Direction direction, void* to,
                                                          const void* from, size_t bytes) {
  return StartCopies(direction, {{to, from, bytes}});
}

absl::StatusOr<DeviceMemory::JobId> CudaMemory::StartGather(Direction direction, char* to,
                                                            const std::vector<MemoryPart>& from) {
  std::vector<CopyPart> copies;
  for (const MemoryPart& part : from) {
    copies.push_back({to, part.data, part.bytes});
    to += part.bytes;
  }
  return StartCopies(direction, copies);
}

absl::StatusOr<DeviceMemory::JobId> CudaMemory::StartScatter(Direction direction,
                                                             const std::vector<MemoryPart>& to,
                                                             const char* from) {
  std::vector<CopyPart> copies;
  for (const MemoryPart& part : to) {
    copies.push_back({part.data, from, part.bytes});
    from += part.bytes;
  }
  return StartCopies(direction, copies);
}

absl::StatusOr<DeviceMemory::JobId> CudaMemory::StartChecksum(
    const std::vector<MemoryPart>& parts, uint32_t* each) {
  Job job{.parts = parts, .each = each};
  for (const MemoryPart& part : parts) {
    if (part.bytes == 0) return absl::InvalidArgumentError("a checksum of an empty piece");
    job.partials += Crc32cPartials(part.bytes);
  }
  if (job.partials > kMaxPartials || parts.size() > kMaxParts) {
    return absl::InvalidArgumentError(
        absl::StrCat("a checksum of ", parts.size(), " pieces in ", job.partials, " chunks"));
  }
  absl::MutexLock lock(&mutex_);
  jobs_.emplace(next_job_, std::move(job));
  waiting_.push_back(next_job_);
  return next_job_++;
}

absl::StatusOr<uint32_t*> CudaMemory::TakePartials() {
  if (free_partials_.empty()) {
    void* partials = nullptr;
    absl::Status status =
        ToStatus(cudaHostAlloc(&partials, kMaxPartials * sizeof(uint32_t), cudaHostAllocDefault),
                 "pinned memory for checksums");
    if (!status.ok()) return status;
    all_partials_.push_back(static_cast<uint32_t*>(partials));
    return all_partials_.back();
  }
  uint32_t* partials = free_partials_.back();
  free_partials_.pop_back();
  return partials;
}

void CudaMemory::LaunchWaiting() {
  while (running_batches_ < kMaxBatches && !waiting_.empty()) {
    auto batch = std::make_shared<Batch>();
    std::vector<CrcRange> ranges;
    size_t partials = 0;
    while (!waiting_.empty()) {
      Job& job = jobs_.at(waiting_.front());
      if (ranges.size() + job.parts.size() > kMaxCrcRanges) break;
      if (partials + job.partials > kMaxPartials) break;
      job.batch = batch;
      job.first_partial = partials;
      partials += job.partials;
      for (const MemoryPart& part : job.parts) ranges.push_back({part.data, part.bytes});
      ++batch->jobs;
      waiting_.pop_front();
    }
    const absl::Status status = Launch(ranges, *batch);
    if (status.ok() && !ranges.empty()) {
      ++running_batches_;
    } else {
      batch->end = status;
    }
  }
}

absl::Status CudaMemory::Launch(const std::vector<CrcRange>& ranges, Batch& batch) {
  if (ranges.empty()) return absl::OkStatus();
  absl::Status status = MakeCurrent();
  if (!status.ok()) return status;
  const absl::StatusOr<cudaEvent_t> event = TakeEvent();
  if (!event.ok()) return event.status();
  batch.event = *event;
  const absl::StatusOr<uint32_t*> partials = TakePartials();
  if (!partials.ok()) return partials.status();
  batch.partials = *partials;
  cudaStream_t stream = streams_[kChecksumStream];
  status = ToStatus(
      Crc32cLaunch(ranges.data(), static_cast<int>(ranges.size()), tables_, *partials, stream),
      "checksum kernel");
  if (status.ok()) status = ToStatus(cudaEventRecord(batch.event, stream), "recording an event");
  if (!status.ok()) cudaStreamSynchronize(stream);
  return status;
}

void CudaMemory::Query(Batch& batch) {
  if (batch.end) return;
  const cudaError_t state = cudaEventQuery(batch.event);
  if (state == cudaErrorNotReady) {
    cudaGetLastError();
    return;
  }
  batch.end = ToStatus(state, "checksum");
  --running_batches_;
}

std::optional<absl::StatusOr<uint32_t>> CudaMemory::Poll(JobId id) {
  absl::MutexLock lock(&mutex_);
  const auto it = jobs_.find(id);
  if (it == jobs_.end()) return absl::StatusOr<uint32_t>(absl::InternalError("no such job"));
  const Job& job = it->second;
  absl::Status status;
  uint32_t crc = 0;
  if (job.event != nullptr) {
    const cudaError_t state = cudaEventQuery(job.event);
    if (state == cudaErrorNotReady) {
      cudaGetLastError();
      return std::nullopt;
    }
    status = ToStatus(state, "copy");
    free_events_.push_back(job.event);
  } else {
    if (job.batch == nullptr) LaunchWaiting();
    if (job.batch == nullptr) return std::nullopt;
    Batch& batch = *job.batch;
    Query(batch);
    if (!batch.end) return std::nullopt;
    status = *batch.end;
    const uint32_t* partials = batch.partials + job.first_partial;
    for (size_t i = 0; status.ok() && i < job.parts.size(); ++i) {
      const size_t bytes = job.parts[i].bytes;
      if (job.each != nullptr) {
        job.each[i] = Crc32cCombine(partials, bytes);
      } else {
        crc = Crc32cCombine(partials, bytes, crc);
      }
      partials += Crc32cPartials(bytes);
    }
    if (--batch.jobs == 0) {
      if (batch.event != nullptr) free_events_.push_back(batch.event);
      if (batch.partials != nullptr) free_partials_.push_back(batch.partials);
    }
  }
  jobs_.erase(it);
  if (!status.ok()) return absl::StatusOr<uint32_t>(status);
  return absl::StatusOr<uint32_t>(crc);
}

absl::Status CudaMemory::Synchronize() {
  absl::Status status = MakeCurrent();
  if (!status.ok()) return status;
  return ToStatus(cudaDeviceSynchronize(), "synchronising the device");
}

}  // namespace hyserve::kv_transfer::cuda
