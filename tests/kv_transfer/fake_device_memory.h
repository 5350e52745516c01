// A pretended device on the host. Its memory has two addresses: the one that it gives out cannot be
// touched, so a host that reads or writes "device memory" by itself dies; copies use the other one.
// Jobs happen at the last moment: when they are polled for the third time.
#ifndef HYSERVE_TESTS_KV_TRANSFER_FAKE_DEVICE_MEMORY_H_
#define HYSERVE_TESTS_KV_TRANSFER_FAKE_DEVICE_MEMORY_H_

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "kv_transfer/crc32c.h"
#include "kv_transfer/device_memory.h"

namespace hyserve::kv_transfer {

class FakeDeviceMemory final : public DeviceMemory {
 public:
  ~FakeDeviceMemory() override {
    while (!ranges_.empty()) Unmap(ranges_.begin());
  }

  std::string name() const override { return "fake:0"; }
  absl::Status MakeCurrent() override { return absl::OkStatus(); }
  absl::Status CheckRange(const void* data, size_t bytes) override {
    absl::MutexLock lock(&mutex_);
    if (Backing(data, bytes) != nullptr) return absl::OkStatus();
    return absl::InvalidArgumentError("not memory of fake:0");
  }
  bool Shareable(const void*) override { return true; }

  absl::StatusOr<char*> Allocate(Space space, size_t bytes) override {
    if (space == Space::kPinnedHost) {
      absl::MutexLock lock(&mutex_);
      pinned_bytes_ += bytes;
      return new char[bytes];
    }
    const int file = memfd_create("fake device", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) {
      return absl::ResourceExhaustedError("fake device memory");
    }
    void* given = mmap(nullptr, bytes, PROT_NONE, MAP_SHARED, file, 0);
    void* backing = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (given == MAP_FAILED || backing == MAP_FAILED) std::abort();
    absl::MutexLock lock(&mutex_);
    ranges_[static_cast<char*>(given)] = Range{static_cast<char*>(backing), bytes};
    return static_cast<char*>(given);
  }
  void Free(Space space, char* data) override {
    absl::MutexLock lock(&mutex_);
    if (space == Space::kPinnedHost) {
      delete[] data;
    } else {
      Unmap(ranges_.find(data));
    }
  }

  absl::StatusOr<JobId> StartCopy(Direction direction, void* to, const void* from,
                                  size_t bytes) override {
    return StartGather(direction, static_cast<char*>(to),
                       {{static_cast<char*>(const_cast<void*>(from)), bytes}});
  }
  absl::StatusOr<JobId> StartGather(Direction direction, char* to,
                                    const std::vector<MemoryPart>& from) override {
    absl::MutexLock lock(&mutex_);
    Job job;
    for (const MemoryPart& part : from) {
      job.copies.push_back({direction == Direction::kToHost ? to : Backing(to, part.bytes),
                            direction == Direction::kToDevice ? part.data
                                                              : Backing(part.data, part.bytes),
                            part.bytes});
      to += part.bytes;
    }
    return Start(job);
  }
  absl::StatusOr<JobId> StartScatter(Direction direction, const std::vector<MemoryPart>& to,
                                     const char* from) override {
    absl::MutexLock lock(&mutex_);
    Job job;
    for (const MemoryPart& part : to) {
      job.copies.push_back(
          {Backing(part.data, part.bytes),
           direction == Direction::kToDevice ? from : Backing(from, part.bytes), part.bytes});
      from += part.bytes;
    }
    return Start(job);
  }
  absl::StatusOr<JobId> StartChecksum(const std::vector<MemoryPart>& parts,
                                      uint32_t* each) override {
    absl::MutexLock lock(&mutex_);
    Job job{.checksum = true, .each = each};
    for (const MemoryPart& part : parts) {
      job.copies.push_back({nullptr, Backing(part.data, part.bytes), part.bytes});
    }
    return Start(job);
  }
  std::optional<absl::StatusOr<uint32_t>> Poll(JobId id) override {
    absl::MutexLock lock(&mutex_);
    const auto it = jobs_.find(id);
    if (it == jobs_.end()) return absl::StatusOr<uint32_t>(absl::InternalError("no such job"));
    if (++it->second.polls < 3) return std::nullopt;
    const Job job = it->second;
    jobs_.erase(it);
    if (broken_) return absl::StatusOr<uint32_t>(absl::InternalError("the fake device is broken"));
    uint32_t crc = 0;
    for (size_t i = 0; i < job.copies.size(); ++i) {
      const Copy& copy = job.copies[i];
      if (job.checksum) {
        crc = Crc32c(copy.from, copy.bytes, job.each == nullptr ? crc : 0);
        if (job.each != nullptr) job.each[i] = crc;
      } else {
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
    }
    return absl::StatusOr<uint32_t>(crc);
  }
  absl::Status Synchronize() override { return absl::OkStatus(); }

  // Every job fails from now on.
  void Break() {
    absl::MutexLock lock(&mutex_);
    broken_ = true;
  }
  size_t pinned_bytes() const {
    absl::MutexLock lock(&mutex_);
    return pinned_bytes_;
  }

 private:
  struct Range {
    char* backing = nullptr;
    size_t bytes = 0;
  };
  struct Copy {
    char* to;
    const char* from;
    size_t bytes;
  };
  struct Job {
    bool checksum = false;
    uint32_t* each = nullptr;
    std::vector<Copy> copies = {};
    int polls = 0;
  };
  using RangeMap = std::map<char*, Range>;

  absl::StatusOr<JobId> Start(const Job& job) {
    if (job.copies.size() > kMaxParts) return absl::InternalError("too many pieces");
    for (const Copy& copy : job.copies) {
      if (copy.from == nullptr || (copy.to == nullptr && !job.checksum)) {
        return absl::InternalError("outside of the device's memory");
      }
    }
    jobs_.emplace(next_job_, job);
    return next_job_++;
  }
  char* Backing(const void* data, size_t bytes) {
    auto it = ranges_.upper_bound(static_cast<char*>(const_cast<void*>(data)));
    if (it == ranges_.begin()) return nullptr;
    --it;
    const auto offset = static_cast<size_t>(static_cast<const char*>(data) - it->first);
    if (offset > it->second.bytes || bytes > it->second.bytes - offset) return nullptr;
    return it->second.backing + offset;
  }
  void Unmap(RangeMap::iterator it) {
    munmap(it->first, it->second.bytes);
    munmap(it->second.backing, it->second.bytes);
    ranges_.erase(it);
  }

  mutable absl::Mutex mutex_;
  RangeMap ranges_;
  std::map<JobId, Job> jobs_;
  JobId next_job_ = 1;
  bool broken_ = false;
  size_t pinned_bytes_ = 0;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_TESTS_KV_TRANSFER_FAKE_DEVICE_MEMORY_H_
