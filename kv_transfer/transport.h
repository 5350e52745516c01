// A narrow way to move bytes between workers, with one property that everything else rests on: the
// RECEIVER of a data message decides where it lands, or drops it. No address of one process is ever
// used on the word of another.
//
// Two kinds of messages. Control messages are small, copied and delivered whole. Data messages are
// a small header and a large payload; the receiver sees the header first and answers with an
// address in its own memory. Delivery is reliable while an endpoint lives; order is not promised.
//
// Threads: every transport owns one progress thread. All handler calls happen on it, one at a time.
// Functions marked [progress thread] may be called on it only (from a handler, a posted job or a
// timer); the others from any thread. The thread blocks when there is nothing to do.
//
// Endings: an endpoint ends exactly once, by Close(), by the peer or by an error, and in all three
// cases the transport first ends every operation on it (OnSent / OnReceived with an error) and only
// then calls OnEndpointClosed. After OnReceived or OnSent of an operation its memory is not touched
// any more. A successful OnSent proves nothing about delivery.
#ifndef HYSERVE_KV_TRANSFER_TRANSPORT_H_
#define HYSERVE_KV_TRANSFER_TRANSPORT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kv_transfer/data_path.h"
#include "kv_transfer/device_memory.h"
#include "kv_transfer/ticket.h"

namespace hyserve::kv_transfer {

using EndpointId = uint64_t;   // one connection, never reused within a process; 0 is none
using OperationId = uint64_t;  // chosen by the caller, unique per channel among live operations

// Who a message is for. One handler per channel.
enum class Channel : uint8_t { kExporter = 0, kImporter = 1, kProbe = 2 };
inline constexpr int kNumChannels = 3;

inline constexpr size_t kMaxControlBytes = size_t{1} << 20;
inline constexpr size_t kMaxDataHeaderBytes = 128;

// Where a data message shall land: `length` bytes of the message at `data`.
struct ReceiveTarget {
  void* data = nullptr;
  OperationId id = 0;  // for OnReceived
  // Instead of `data`, with CanGather(): device memory, in order, together as long as the message.
  std::vector<MemoryPart> parts = {};
};

class TransportHandler {
 public:
  virtual ~TransportHandler() = default;
  virtual void OnControl(EndpointId from, std::string_view message) = 0;
  // A data message of `length` bytes is announced. nullopt drops it. `header` and `length` are the
  // peer's word: to be checked.
  virtual std::optional<ReceiveTarget> OnData(EndpointId from, std::string_view header,
                                              size_t length) = 0;
  virtual void OnReceived(OperationId id, const absl::Status& status) = 0;
  virtual void OnSent(OperationId id, const absl::Status& status) = 0;
  // Told to all handlers, for endpoints that this side connected and for those it accepted. OK
  // never; CANCELLED after Close(), UNAVAILABLE when the peer is gone or unreachable.
  virtual void OnEndpointClosed(EndpointId endpoint, const absl::Status& status) = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;

  // "ucx" or "loopback": the same on both sides of a pair.
  virtual std::string_view name() const = 0;
  // What a peer passes to Connect(); travels in registration and tickets.
  virtual std::string local_address() const = 0;
  // Random, drawn at construction, never 0.
  virtual uint64_t incarnation() const = 0;
  // Effective settings and the transports chosen, for logs and `hyserve doctor`; several lines.
  virtual std::string Description() const = 0;
  // Payload size of one data message at which this transport is fast.
  virtual size_t preferred_message_bytes() const = 0;

  // The device of memory of kind kCuda, null when the transport was made for host memory only.
  virtual DeviceMemory* device() const { return nullptr; }
  // What travelled which way so far. Any thread.
  virtual const PathCounters& paths() const = 0;

  // Makes memory known before transfers use it; once, at start. Memory must outlive the transport's
  // operations on it. INVALID_ARGUMENT for kCuda when it is not memory of device().
  virtual absl::Status RegisterMemory(void* data, size_t bytes, MemoryKind kind) = 0;
  // Memory of the kind that this transport's hand-offs use, for measuring a link; contents are
  // undefined. RESOURCE_EXHAUSTED. To be let go before the transport.
  virtual absl::StatusOr<std::shared_ptr<char>> AllocateScratch(size_t bytes) {
    return std::shared_ptr<char>(new char[bytes], std::default_delete<char[]>());
  }
  // Sets (or with nullptr removes) the handler of a channel. Returns after the change took effect
  // on the progress thread; not to be called on it.
  virtual void SetHandler(Channel channel, TransportHandler* handler) = 0;

  // Runs `job` on the progress thread, in order of posting. Not run any more after destruction
  // began.
  virtual void Post(std::function<void()> job) = 0;
  // Steady clock of the progress thread (a fake one in tests).
  virtual ClockTime Now() const = 0;
  // [progress thread] Runs `job` once, at `when` or soon after; returns a handle for CancelTimer.
  virtual uint64_t RunAt(ClockTime when, std::function<void()> job) = 0;
  // [progress thread] No effect on a timer that ran.
  virtual void CancelTimer(uint64_t timer) = 0;

  // [progress thread] Starts connecting; messages may be sent at once. INVALID_ARGUMENT for an
  // address that cannot be parsed; every later failure arrives as OnEndpointClosed.
  virtual absl::StatusOr<EndpointId> Connect(std::string_view address) = 0;
  // [progress thread] Copies `message` (1 .. kMaxControlBytes). No completion; lost when the
  // endpoint ends. Messages to an ended or unknown endpoint are dropped.
  virtual void SendControl(EndpointId endpoint, Channel to, std::string_view message) = 0;
  // [progress thread] Copies `header` (1 .. kMaxDataHeaderBytes). [data, data + length) must not
  // change until OnSent(id), which is called on the handler of channel `from`, never inside this
  // call.
  virtual void SendData(EndpointId endpoint, Channel from, Channel to, OperationId id,
                        std::string_view header, const void* data, size_t length) = 0;
  // Messages may be gathered from and scattered to several pieces of device memory.
  virtual bool CanGather() const { return false; }
  // [progress thread] SendData of 1 .. DeviceMemory::kMaxParts pieces. REQUIRES: CanGather().
  virtual void SendParts(EndpointId endpoint, Channel from, Channel to, OperationId id,
                         std::string_view header, const std::vector<MemoryPart>& parts) {
    SendData(endpoint, from, to, id, header, parts[0].data, parts[0].bytes);
  }
  // [progress thread] Ends an endpoint by force. Idempotent; OnEndpointClosed follows, never inside
  // this call.
  virtual void Close(EndpointId endpoint) = 0;
  // [progress thread] What was chosen for this connection ("tcp/lo"), empty if unknown.
  virtual std::string EndpointDescription(EndpointId endpoint) const = 0;
  // [progress thread] How data travels on it: as this side's check chose for sends, else as the
  // last message arrived.
  virtual DataPath EndpointPath(EndpointId endpoint) const = 0;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_TRANSPORT_H_
