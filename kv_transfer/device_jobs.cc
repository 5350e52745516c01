#include "kv_transfer/device_jobs.h"

#include <thread>
#include <utility>
#include <vector>

namespace hyserve::kv_transfer {
namespace {
constexpr absl::Duration kEager = absl::Microseconds(300);
constexpr absl::Duration kEagerInterval = absl::Microseconds(1);
constexpr absl::Duration kLazyInterval = absl::Microseconds(100);
}  // namespace

absl::Status CopyAndWait(DeviceMemory& device, DeviceMemory::Direction direction, void* to,
                         const void* from, size_t bytes) {
  const absl::StatusOr<DeviceMemory::JobId> job = device.StartCopy(direction, to, from, bytes);
  if (!job.ok()) return job.status();
  while (true) {
    const std::optional<absl::StatusOr<uint32_t>> end = device.Poll(*job);
    if (end) return end->status();
    std::this_thread::yield();
  }
}

void DeviceJobs::Add(const absl::StatusOr<DeviceMemory::JobId>& job, Done done) {
  jobs_.push_back(Job{job, std::move(done)});
  if (transport_ == nullptr) return;
  eager_until_ = transport_->Now() + kEager;
  Arm();
}

void DeviceJobs::Arm() {
  if (armed_) return;
  armed_ = true;
  const ClockTime now = transport_->Now();
  transport_->RunAt(now + (now < eager_until_ ? kEagerInterval : kLazyInterval), [this] {
    armed_ = false;
    Poll();
    if (!jobs_.empty()) Arm();
  });
}

bool DeviceJobs::Poll() {
  struct Ended {
    absl::StatusOr<uint32_t> result;
    Done done;
  };
  std::vector<Ended> ended;  // a callback may add jobs
  for (auto it = jobs_.begin(); it != jobs_.end();) {
    std::optional<absl::StatusOr<uint32_t>> end;
    if (it->id.ok()) {
      end = device_->Poll(*it->id);
    } else {
      end = it->id.status();
    }
    if (!end) {
      ++it;
      continue;
    }
    ended.push_back({*std::move(end), std::move(it->done)});
    it = jobs_.erase(it);
  }
  for (const Ended& job : ended) {
    job.done(job.result.status(), job.result.ok() ? *job.result : 0);
  }
  return !ended.empty();
}

}  // namespace hyserve::kv_transfer
