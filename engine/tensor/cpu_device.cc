#include "engine/tensor/cpu_device.h"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace hyserve::tensor {
namespace {

int AvailableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

// The kernel promises more memory than there is; a request beyond the machine's is refused here.
size_t PhysicalBytes() {
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

constexpr size_t kHugePageBytes = size_t{2} << 20;

}  // namespace

std::string_view Name(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return "scalar";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx512Bf16: return "avx512_bf16";
  }
  return "unknown";
}

Isa DetectIsa() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
  return Isa::kScalar;
}

absl::StatusOr<std::unique_ptr<CpuDevice>> CpuDevice::Create(const DeviceOptions& options) {
  Isa isa = DetectIsa();
  if (options.isa != "auto") {
    const Isa best = isa;
    const auto* named = std::find_if(std::begin(kAllIsas), std::end(kAllIsas),
                                     [&](Isa known) { return Name(known) == options.isa; });
    if (named == std::end(kAllIsas)) {
      return absl::InvalidArgumentError(
          absl::StrCat("isa: must be auto, avx512_bf16, avx512, avx2 or scalar; got '",
                       options.isa, "'"));
    }
    isa = *named;
    if (isa > best) {
      return absl::InvalidArgumentError(absl::StrCat("isa: this machine has no ", options.isa));
    }
  }
  if (options.num_threads < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads: must not be negative; got ", options.num_threads));
  }
  const int threads = options.num_threads == 0 ? AvailableCores() : options.num_threads;
  return std::unique_ptr<CpuDevice>(new CpuDevice(isa, threads));
}

std::string CpuDevice::Description() const {
  return absl::StrCat("cpu ", std::string(Name(isa_)), " ", pool_.num_threads(), " threads");
}

absl::StatusOr<Buffer> CpuDevice::Allocate(size_t bytes) {
  if (bytes == 0) return Buffer();
  if (bytes > PhysicalBytes()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes, " bytes: this machine has ", PhysicalBytes()));
  }
  // Fresh anonymous pages are zero and cost memory only when touched. Large buffers start at a huge
  // page, so that all of them can be huge pages.
  const size_t slack = bytes >= kHugePageBytes ? kHugePageBytes : 0;
  void* mapping = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                       -1, 0);
  if (mapping == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes, " bytes of memory: ", strerror(errno)));
  }
  char* data = static_cast<char*>(mapping);
  if (slack != 0) {
    const size_t offset = reinterpret_cast<uintptr_t>(data) % kHugePageBytes;
    data += offset == 0 ? 0 : kHugePageBytes - offset;
    madvise(data, bytes, MADV_HUGEPAGE);
  }
  return Buffer(data, bytes, [mapping, mapped = bytes + slack](void*, size_t) {
    munmap(mapping, mapped);
  });
}

absl::StatusOr<std::byte*> CpuDevice::Grow(Buffer& buffer, size_t bytes) {
  if (buffer.empty() || buffer.size_bytes() < bytes) {
    const size_t wanted = std::max({bytes, buffer.size_bytes() + buffer.size_bytes() / 2,
                                    size_t{1} << 16});
    buffer = Buffer();  // its contents are not kept, so it need not exist beside the new one
    absl::StatusOr<Buffer> grown = Allocate(wanted);
    if (!grown.ok()) return grown.status();
    buffer = *std::move(grown);
  }
  return static_cast<std::byte*>(buffer.data());
}

absl::StatusOr<std::byte*> CpuDevice::Workspace(WorkspaceSlot slot, size_t bytes) {
  return Grow(workspaces_[static_cast<int>(slot)], bytes);
}

absl::StatusOr<CpuDevice::ThreadScratch> CpuDevice::Scratch(size_t bytes_per_thread) {
  const size_t stride = (bytes_per_thread + 63) / 64 * 64;
  absl::StatusOr<std::byte*> data = Grow(scratch_, stride * pool_.num_threads());
  if (!data.ok()) return data.status();
  return ThreadScratch{*data, stride};
}

absl::Status CpuDevice::CopyToDevice(void* device_dst, const void* host_src, size_t bytes) {
  std::memcpy(device_dst, host_src, bytes);
  return absl::OkStatus();
}

absl::Status CpuDevice::CopyToHost(void* host_dst, const void* device_src, size_t bytes) {
  std::memcpy(host_dst, device_src, bytes);
  return absl::OkStatus();
}

absl::Status CpuDevice::CopyOnDevice(void* dst, const void* src, size_t bytes) {
  std::memcpy(dst, src, bytes);
  return absl::OkStatus();
}

}  // namespace hyserve::tensor
