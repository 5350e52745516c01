// Jobs of a DeviceMemory with what shall happen at their end. One thread only: the progress thread.
#ifndef HYSERVE_KV_TRANSFER_DEVICE_JOBS_H_
#define HYSERVE_KV_TRANSFER_DEVICE_JOBS_H_

#include <cstdint>
#include <deque>
#include <functional>

#include "kv_transfer/device_memory.h"
#include "kv_transfer/transport.h"

namespace hyserve::kv_transfer {

class DeviceJobs {
 public:
  // `crc` as DeviceMemory::Poll gives it; 0 with an error.
  using Done = std::function<void(const absl::Status& status, uint32_t crc)>;

  // With a transport, polls by its timers: at once for a while, then every 100 us. Without one, the
  // owner calls Poll().
  DeviceJobs(DeviceMemory* device, Transport* transport) : device_(device), transport_(transport) {}

  // `job` as a Start function of the device returned it. `done` comes from Poll(), never from here.
  void Add(const absl::StatusOr<DeviceMemory::JobId>& job, Done done);
  // Calls back the jobs that have ended; true if there was any.
  bool Poll();
  bool idle() const { return jobs_.empty(); }

 private:
  struct Job {
    absl::StatusOr<DeviceMemory::JobId> id;
    Done done;
  };
  void Arm();

  DeviceMemory* const device_;
  Transport* const transport_;
  std::deque<Job> jobs_;
  bool armed_ = false;
  ClockTime eager_until_;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_DEVICE_JOBS_H_
