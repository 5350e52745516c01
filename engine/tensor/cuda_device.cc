#include "engine/tensor/cuda_device.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace hyserve::tensor {
namespace {

constexpr int kMajor = 9;
constexpr int kMinor = 0;
constexpr size_t kAlignment = 256;

// Frees on the buffer's own device and leaves the caller's current device as it was.
void FreeOn(int ordinal, void* data) {
  int current = ordinal;
  cudaGetDevice(&current);
  cudaSetDevice(ordinal);
  cudaFree(data);
  cudaSetDevice(current);
}

absl::Status BlasStatus(cublasStatus_t status, std::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const std::string message =
      absl::StrCat(std::string(what), ": ", cublasLtGetStatusString(status));
  return status == CUBLAS_STATUS_ALLOC_FAILED ? absl::ResourceExhaustedError(message)
                                              : absl::InternalError(message);
}

std::string Version(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

// A driver that can run this build, and how many GPUs it shows.
absl::StatusOr<int> CountGpus() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  if (driver == 0) {
    cudaGetLastError();
    return absl::FailedPreconditionError("device: this machine has no NVIDIA driver");
  }
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) return count;
  cudaGetLastError();
  if (error == cudaErrorNoDevice) return 0;
  if (error == cudaErrorInsufficientDriver) {
    return absl::FailedPreconditionError(
        absl::StrCat("device: the NVIDIA driver supports CUDA ", Version(driver),
                     ", this build needs ", Version(CUDART_VERSION)));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("device: the NVIDIA driver fails: ", cudaGetErrorString(error)));
}

absl::StatusOr<int> ParseOrdinal(const std::string& name) {
  int ordinal = 0;
  if (name == "cuda") return 0;
  std::string_view number = name;
  number.remove_prefix(std::min(number.size(), std::string_view("cuda:").size()));
  if (!absl::SimpleAtoi(absl::string_view(number.data(), number.size()), &ordinal) ||
      ordinal < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("device: must be 'cuda' or 'cuda:N'; got '", name, "'"));
  }
  return ordinal;
}

}  // namespace

absl::Status CudaStatus(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();  // so that the next check does not report this error again
  const std::string message = absl::StrCat(std::string(what), ": ", cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message)
                                            : absl::InternalError(message);
}

// Pinned host memory through which pageable memory travels: chunks, each with the event after which
// it may be used again. A ring for uploads; for downloads, chunks in turn.
class CudaDevice::Staging {
 public:
  static constexpr size_t kChunkBytes = size_t{4} << 20;
  static constexpr int kNumChunks = 4;

  static absl::StatusOr<std::unique_ptr<Staging>> Create() {
    auto staging = std::make_unique<Staging>();
    for (Chunk& chunk : staging->chunks_) {
      absl::Status status = CudaStatus(
          cudaHostAlloc(reinterpret_cast<void**>(&chunk.data), kChunkBytes, cudaHostAllocDefault),
          "pinned memory for copies");
      if (status.ok()) {
        status = CudaStatus(cudaEventCreateWithFlags(&chunk.event, cudaEventDisableTiming),
                            "creating an event");
      }
      if (!status.ok()) return status;
    }
    return staging;
  }
  Staging() = default;
  Staging(const Staging&) = delete;
  ~Staging() {
    for (Chunk& chunk : chunks_) {
      if (chunk.event != nullptr) cudaEventDestroy(chunk.event);
      if (chunk.data != nullptr) cudaFreeHost(chunk.data);
    }
  }

  // Returns once host_src has been read; the copy itself is enqueued.
  absl::Status Upload(std::byte* device_dst, const std::byte* host_src, size_t bytes,
                      cudaStream_t stream) {
    while (bytes > 0) {
      if (used_ > 0 && used_ + std::min(bytes, kChunkBytes) > kChunkBytes) {
        absl::Status status =
            CudaStatus(cudaEventRecord(chunks_[current_].event, stream), "recording an event");
        if (!status.ok()) return status;
        current_ = (current_ + 1) % kNumChunks;
        used_ = 0;
        status = CudaStatus(cudaEventSynchronize(chunks_[current_].event), "waiting for a copy");
        if (!status.ok()) return status;
      }
      const size_t count = std::min(bytes, kChunkBytes - used_);
      std::byte* staged = chunks_[current_].data + used_;
      std::memcpy(staged, host_src, count);
      const absl::Status status =
          CudaStatus(cudaMemcpyAsync(device_dst, staged, count, cudaMemcpyHostToDevice, stream),
                     "copying to the GPU");
      if (!status.ok()) return status;
      used_ = std::min(kChunkBytes, (used_ + count + kAlignment - 1) / kAlignment * kAlignment);
      device_dst += count;
      host_src += count;
      bytes -= count;
    }
    return absl::OkStatus();
  }

  // Returns when the bytes are in host_dst. The GPU fills chunks ahead of the host.
  absl::Status Download(std::byte* host_dst, const std::byte* device_src, size_t bytes,
                        cudaStream_t stream) {
    const size_t num_pieces = (bytes + kChunkBytes - 1) / kChunkBytes;
    const auto piece_bytes = [&](size_t piece) {
      return std::min(kChunkBytes, bytes - piece * kChunkBytes);
    };
    size_t enqueued = 0;
    for (size_t piece = 0; piece < num_pieces; ++piece) {
      for (; enqueued < std::min(num_pieces, piece + kNumChunks); ++enqueued) {
        const Chunk& chunk = chunks_[enqueued % kNumChunks];
        absl::Status status = CudaStatus(
            cudaMemcpyAsync(chunk.data, device_src + enqueued * kChunkBytes, piece_bytes(enqueued),
                            cudaMemcpyDeviceToHost, stream),
            "copying from the GPU");
        if (status.ok()) {
          status = CudaStatus(cudaEventRecord(chunk.event, stream), "recording an event");
        }
        if (!status.ok()) return status;
      }
      const Chunk& chunk = chunks_[piece % kNumChunks];
      const absl::Status status =
          CudaStatus(cudaEventSynchronize(chunk.event), "copying from the GPU");
      if (!status.ok()) return status;
      std::memcpy(host_dst + piece * kChunkBytes, chunk.data, piece_bytes(piece));
    }
    return absl::OkStatus();
  }

 private:
  struct Chunk {
    std::byte* data = nullptr;
    cudaEvent_t event = nullptr;
  };
  Chunk chunks_[kNumChunks];
  int current_ = 0;   // uploads: the chunk being filled
  size_t used_ = 0;   // of it
};

CudaDevice::CudaDevice(int ordinal, int num_sms) : ordinal_(ordinal), num_sms_(num_sms) {}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Create(const DeviceOptions& options) {
  const absl::StatusOr<int> ordinal = ParseOrdinal(options.name);
  if (!ordinal.ok()) return ordinal.status();
  const absl::StatusOr<int> count = CountGpus();
  if (!count.ok()) return count.status();
  if (*count == 0) {
    return absl::FailedPreconditionError("device: the NVIDIA driver shows no GPU");
  }
  if (*ordinal >= *count) {
    return absl::InvalidArgumentError(absl::StrCat("device: there is no '", options.name,
                                                   "'; this machine has ", *count, " GPUs"));
  }
  cudaDeviceProp properties;
  absl::Status status = CudaStatus(cudaGetDeviceProperties(&properties, *ordinal),
                                   "reading the GPU's properties");
  if (!status.ok()) return status;
  if (properties.major != kMajor || properties.minor != kMinor) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "device: '%s' is %s of compute capability %d.%d; this build has kernels for %d.%d (H100, "
        "H200) only",
        options.name, properties.name, properties.major, properties.minor, kMajor, kMinor));
  }

  auto device =
      std::unique_ptr<CudaDevice>(new CudaDevice(*ordinal, properties.multiProcessorCount));
  device->name_ = properties.name;
  device->memory_bytes_ = properties.totalGlobalMem;
  status = device->MakeCurrent();
  if (!status.ok()) return status;
  status = CudaStatus(cudaStreamCreateWithFlags(&device->stream_, cudaStreamNonBlocking),
                      "creating a stream");
  if (!status.ok()) return status;
  status = BlasStatus(cublasLtCreate(&device->blas_), "creating a cuBLASLt handle");
  if (!status.ok()) return status;
  for (std::unique_ptr<Staging>* staging : {&device->uploads_, &device->downloads_}) {
    absl::StatusOr<std::unique_ptr<Staging>> created = Staging::Create();
    if (!created.ok()) return created.status();
    *staging = *std::move(created);
  }
  return device;
}

CudaDevice::~CudaDevice() {
  if (!MakeCurrent().ok()) return;
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  recordings_.Clear();
  uploads_.reset();
  downloads_.reset();
  for (const cudaEvent_t event : markers_) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  if (blas_ != nullptr) cublasLtDestroy(blas_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
  cudaGetLastError();
}

absl::Status CudaDevice::MakeCurrent() const {
  return CudaStatus(cudaSetDevice(ordinal_), "choosing the GPU");
}

absl::Status CudaDevice::CheckNotRecording() const {
  if (recordings_.recording()) {
    return absl::FailedPreconditionError("device: not while ops are recorded");
  }
  return MakeCurrent();
}

std::string CudaDevice::Description() const {
  return absl::StrFormat("cuda:%d %s, %d SMs, %.1f GiB", ordinal_, name_, num_sms_,
                         static_cast<double>(memory_bytes_) / (1 << 30));
}

absl::StatusOr<size_t> CudaDevice::FreeBytes() const {
  absl::Status status = MakeCurrent();
  if (!status.ok()) return status;
  size_t free_bytes = 0, total_bytes = 0;
  status = CudaStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for free memory");
  if (!status.ok()) return status;
  return free_bytes;
}

absl::StatusOr<Buffer> CudaDevice::Allocate(size_t bytes) {
  if (bytes == 0) return Buffer();
  absl::Status status = CheckNotRecording();
  if (!status.ok()) return status;
  num_allocations_.fetch_add(1);
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes on cuda:",
                                                     ordinal_, ": ", free_bytes, " of ",
                                                     total_bytes, " are free"));
  }
  status = CudaStatus(error, absl::StrCat("allocating ", bytes, " bytes"));
  if (!status.ok()) return status;
  Buffer buffer(data, bytes, [ordinal = ordinal_](void* freed, size_t) { FreeOn(ordinal, freed); });
  // Waited for, since others than this stream may use the memory: peers, other streams.
  status = CudaStatus(cudaMemsetAsync(data, 0, bytes, stream_), "clearing memory");
  if (status.ok()) status = CudaStatus(cudaStreamSynchronize(stream_), "clearing memory");
  if (!status.ok()) return status;
  return buffer;
}

absl::Status CudaDevice::CopyToDevice(void* device_dst, const void* host_src, size_t bytes) {
  const absl::Status status = CheckNotRecording();
  if (!status.ok()) return status;
  return uploads_->Upload(static_cast<std::byte*>(device_dst),
                          static_cast<const std::byte*>(host_src), bytes, stream_);
}

absl::Status CudaDevice::CopyToHost(void* host_dst, const void* device_src, size_t bytes) {
  const absl::Status status = CheckNotRecording();
  if (!status.ok()) return status;
  return downloads_->Download(static_cast<std::byte*>(host_dst),
                              static_cast<const std::byte*>(device_src), bytes, stream_);
}

absl::Status CudaDevice::CopyOnDevice(void* dst, const void* src, size_t bytes) {
  if (bytes == 0) return absl::OkStatus();
  const absl::Status status = MakeCurrent();
  if (!status.ok()) return status;
  return CudaStatus(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, stream_),
                    "copying on the GPU");
}

absl::StatusOr<int64_t> CudaDevice::Mark() {
  absl::Status status = CheckNotRecording();
  cudaEvent_t& event = markers_[next_marker_ % kMarkers];
  if (status.ok() && event == nullptr) {
    status = CudaStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming),
                        "creating an event");
  }
  if (status.ok()) status = CudaStatus(cudaEventRecord(event, stream_), "recording an event");
  if (!status.ok()) return status;
  return next_marker_++;
}

absl::StatusOr<bool> CudaDevice::Reached(int64_t marker) {
  const cudaError_t error = cudaEventQuery(markers_[marker % kMarkers]);
  if (error == cudaErrorNotReady) return false;
  const absl::Status status = CudaStatus(error, "asking for an event");
  if (!status.ok()) return status;
  return true;
}

absl::Status CudaDevice::WaitFor(int64_t marker) {
  return CudaStatus(cudaEventSynchronize(markers_[marker % kMarkers]), "waiting for the GPU");
}

absl::Status CudaDevice::RunRecorded(const std::vector<int64_t>& key,
                                     absl::FunctionRef<absl::Status()> enqueue) {
  const absl::Status status = MakeCurrent();
  if (!status.ok()) return status;
  return recordings_.Run(key, num_allocations_, stream_, enqueue);
}

absl::Status CudaDevice::Synchronize() {
  const absl::Status status = CheckNotRecording();
  if (!status.ok()) return status;
  return CudaStatus(cudaStreamSynchronize(stream_), "waiting for the GPU");
}

absl::Status CudaDevice::ReserveWorkspace(WorkspaceSlot slot, size_t bytes) {
  Buffer& buffer = workspaces_[static_cast<size_t>(slot)];
  if (!buffer.empty() && buffer.size_bytes() >= bytes) return absl::OkStatus();
  const absl::Status status = Synchronize();  // kernels may still use what is freed here
  if (!status.ok()) return status;
  buffer = Buffer();
  absl::StatusOr<Buffer> grown = Allocate(std::max(bytes, size_t{1} << 20));
  if (!grown.ok()) return grown.status();
  buffer = *std::move(grown);
  return absl::OkStatus();
}

absl::StatusOr<std::byte*> CudaDevice::Workspace(WorkspaceSlot slot, size_t bytes) {
  const Buffer& buffer = workspaces_[static_cast<size_t>(slot)];
  if (buffer.empty() || buffer.size_bytes() < bytes) {
    // Half as large again, so that what grows little by little seldom moves.
    const size_t wanted = std::max(bytes, buffer.size_bytes() + buffer.size_bytes() / 2);
    const absl::Status status = ReserveWorkspace(slot, wanted);
    if (!status.ok()) return status;
  }
  return static_cast<std::byte*>(buffer.data());
}

}  // namespace hyserve::tensor
