// Keeps one timer of a transport armed for a table's next deadline. Progress thread only.
#ifndef HYSERVE_KV_TRANSFER_TABLE_TIMER_H_
#define HYSERVE_KV_TRANSFER_TABLE_TIMER_H_

#include <functional>
#include <utility>

#include "absl/time/clock.h"
#include "kv_transfer/transport.h"

namespace hyserve::kv_transfer {

class TableTimer {
 public:
  TableTimer(Transport* transport, std::function<void()> fire)
      : transport_(*transport), fire_(std::move(fire)) {}

  // Fires at `when` or earlier; a later time than the armed one is left to the early firing.
  void ArmBefore(ClockTime when) {
    if (when >= armed_) return;
    Disarm();
    armed_ = when;
    handle_ = transport_.RunAt(when, [this] {
      armed_ = absl::InfiniteDuration();
      fire_();
    });
  }
  void Disarm() {
    if (armed_ == absl::InfiniteDuration()) return;
    transport_.CancelTimer(handle_);
    armed_ = absl::InfiniteDuration();
  }

 private:
  Transport& transport_;
  const std::function<void()> fire_;
  ClockTime armed_ = absl::InfiniteDuration();
  uint64_t handle_ = 0;
};

// A wall-clock deadline of a request as clock time; computed once, where the request enters.
inline ClockTime ToClockTime(absl::Time deadline, ClockTime now) {
  return deadline == absl::InfiniteFuture() ? absl::InfiniteDuration()
                                            : now + (deadline - absl::Now());
}

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_TABLE_TIMER_H_
