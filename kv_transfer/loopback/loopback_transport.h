// A transport inside one process: for single-process serving and for tests. Same contract as every
// other transport (transport.h), same kinds of endings.
//
// Threaded: every transport has its own progress thread. Manual: no threads; a test calls RunOne()
// and chooses which of the waiting events happens next, so every interleaving can be produced and
// repeated.
#ifndef HYSERVE_KV_TRANSFER_LOOPBACK_LOOPBACK_TRANSPORT_H_
#define HYSERVE_KV_TRANSFER_LOOPBACK_LOOPBACK_TRANSPORT_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "kv_transfer/transport.h"

namespace hyserve::kv_transfer {

class LoopbackTransport : public Transport {
 public:
  // Manual mode only. Number of network events that could happen next.
  virtual size_t num_events() const = 0;
  // Manual mode only. Runs posted jobs and due timers, then event `choice % num_events()`, if any.
  // False when there was nothing at all to do. What it runs must not call SetHandler().
  virtual bool RunOne(uint64_t choice) = 0;
};

// The transports that can reach each other. Outlives them. Thread-safe.
class LoopbackNetwork {
 public:
  struct Options {
    bool manual = false;
    std::function<ClockTime()> clock = nullptr;  // null: steady time; must be set in manual mode
    size_t message_bytes = size_t{4} << 20;
    // Of memory of kind kCuda; null: host memory only. Copies then run on the device.
    std::shared_ptr<DeviceMemory> device = nullptr;
  };
  explicit LoopbackNetwork(Options options);
  ~LoopbackNetwork();

  std::unique_ptr<LoopbackTransport> NewTransport();

  struct Shared;

 private:
  std::shared_ptr<Shared> shared_;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_LOOPBACK_LOOPBACK_TRANSPORT_H_
