// Measures the link to a peer over the same transport and the same kind of messages as hand-offs:
// the peer sends, this side receives into its own memory, of the kind that hand-offs use (device
// memory when the transport has a device). Used at registration and by `hyserve
// doctor`. Every worker owns one LinkProbe; it answers the peers' probes as well.
#ifndef HYSERVE_KV_TRANSFER_LINK_PROBE_H_
#define HYSERVE_KV_TRANSFER_LINK_PROBE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kv_transfer/ticket.h"
#include "kv_transfer/transport.h"

namespace hyserve::kv_transfer {

struct LinkProbeOptions {
  size_t message_bytes = size_t{16} << 20;  // 1 .. 64 MiB
  int32_t messages = 16;                    // 1 .. 256
  int32_t messages_in_flight = 4;           // 1 .. 16
  int32_t round_trips = 32;                 // 1 .. 1000: for the latency
  absl::Duration timeout = absl::Seconds(10);
};

struct LinkReport {
  double bytes_per_second = 0;  // payload, first announcement to last byte
  double latency_us = 0;        // half of the median round trip of a small message
  std::string connection;       // what the transport chose ("tcp/eth0")
  DataPath path = DataPath::kUnknown;  // how the payload came; kStaged: no direct path was found
};
using LinkCallback = std::function<void(absl::StatusOr<LinkReport>)>;

class LinkProbe {
 public:
  // Takes the probe channel of the transport, which must outlive it. `max_answers`: probes of peers
  // that are answered at the same time; further ones are refused.
  static std::unique_ptr<LinkProbe> Create(Transport* transport, int32_t max_answers = 2);
  // Ends running probes with CANCELLED. Not to be called on the progress thread.
  virtual ~LinkProbe() = default;

  // The callback comes once, on the progress thread: INVALID_ARGUMENT, UNAVAILABLE (peer lost,
  // refused or unreachable), DEADLINE_EXCEEDED. Allocates messages_in_flight x message_bytes
  // meanwhile.
  virtual void Measure(const PeerAddress& peer, const LinkProbeOptions& options,
                       LinkCallback callback) = 0;
  // The same, waiting. Not on the progress thread.
  absl::StatusOr<LinkReport> MeasureAndWait(const PeerAddress& peer,
                                            const LinkProbeOptions& options);
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_LINK_PROBE_H_
