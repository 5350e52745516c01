// The transport between processes: UCX active messages with rendezvous, over connections made
// through a listener, with peer error handling on. The only public header of the only code that
// includes ucp.h.
//
// Why a listener and not worker addresses: a connection then is one pair of endpoints that both
// sides hold, so each side can close it by force and the other is told; the port is known, so a
// network policy can name it; and the address that travels is "ip:port", readable in logs.
#ifndef HYSERVE_KV_TRANSFER_UCX_UCX_TRANSPORT_H_
#define HYSERVE_KV_TRANSFER_UCX_UCX_TRANSPORT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kv_transfer/transport.h"

namespace hyserve::kv_transfer {

// How device memory may travel.
enum class DevicePathPolicy : uint8_t {
  kAuto,    // directly where a check of the connection finds a fast path, else staged
  kDirect,  // directly or not at all: sends fail with FAILED_PRECONDITION
  kStaged,  // always through our own pinned memory
};

struct UcxOptions {
  std::string listen_address = "127.0.0.1";  // numeric IPv4 or IPv6
  int port = 0;                              // of the listener; 0: any free one
  std::string advertise_address;             // numeric; empty: listen_address
  // Comma lists as UCX understands them. Shared-memory transports of UCX refuse peer error
  // handling, so the default is TCP; on RDMA hosts e.g. "rc,tcp". With a device, "cuda_copy,
  // cuda_ipc" is appended unless the list names a CUDA transport itself.
  std::string transports = "tcp";
  std::string net_devices;     // e.g. "eth0" or "mlx5_0:1"; empty: all
  std::string tcp_port_range;  // of data connections, e.g. "7600-7699"; empty: any
  size_t rendezvous_threshold_bytes = 16384;  // smaller data messages are copied by UCX
  // Payload of one data message: 0 chooses by transport (host memory over TCP 1 MiB: fits the
  // caches that the copies go through; others 16 MiB: a message costs tens of microseconds however
  // small).
  size_t message_bytes = 0;
  absl::Duration spin = absl::Microseconds(20);  // busy-polling while operations are in flight
  // The device whose memory will be registered; null: host memory only.
  std::shared_ptr<DeviceMemory> device;
  DevicePathPolicy device_path = DevicePathPolicy::kAuto;
  // A direct path that is slower than this in the check is UCX's own way through the host (0.4
  // GB/s), not a path between devices.
  double min_direct_bytes_per_second = 2e9;
  // Pinned memory for staged messages, for each direction; allocated when first needed. Limits the
  // size of one message.
  size_t staging_bytes = size_t{128} << 20;
  // Called on the progress thread whenever a connection's path for device memory was chosen: to be
  // logged.
  std::function<void(const PathReport&)> on_path;
  // Any other UCX setting, without the UCX_ prefix: {"MAX_RNDV_RAILS", "1"}. Applied last. UCX 1.13
  // takes unknown names without an error and only warns in its log.
  std::vector<std::pair<std::string, std::string>> settings;
};

// Starts the progress thread and the listener. INVALID_ARGUMENT for an address or a setting,
// UNAVAILABLE when UCX cannot start with these transports or the port is taken.
absl::StatusOr<std::unique_ptr<Transport>> CreateUcxTransport(const UcxOptions& options);

// Removes every UCX_* variable from the environment and returns "NAME=value" of each, to be logged:
// what UCX does is decided by UcxOptions alone. Call at the start of main(), before other threads.
// UCX_LOG_LEVEL and UCX_HANDLE_ERRORS are left alone: UCX has read them already.
std::vector<std::string> ClearUcxEnvironment();

// "1.13.1", of the library that is loaded.
std::string UcxVersion();

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_UCX_UCX_TRANSPORT_H_
