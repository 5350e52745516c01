// Life cycle of a gRPC server: bind, health (grpc.health.v1), reflection, keepalive, limits, drain.
#ifndef HYSERVE_SERVICES_COMMON_SERVER_H_
#define HYSERVE_SERVICES_COMMON_SERVER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace grpc {
class ChannelArguments;
class Service;
}  // namespace grpc

namespace hyserve::common {

struct ServerOptions {
  std::string address;     // host:port; port 0: any
  bool internal = true;    // keepalive 1 s / 1 s between our processes, else 30 s / 10 s
  int64_t max_receive_bytes = int64_t{8} << 20;
  int64_t max_metadata_bytes = 8 << 10;
  int32_t max_streams_per_connection = 1000;
  bool reflection = true;
};

class GrpcServer {
 public:
  // Serves `services` (they must outlive the server). Health is NOT_SERVING until SetServing(true).
  // UNAVAILABLE names the address that could not be bound.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(
      const ServerOptions& options, const std::vector<grpc::Service*>& services);
  ~GrpcServer();  // Shutdown at once

  int port() const;
  // "host:port" with the port that was bound.
  std::string address() const;
  // Health of all services, or of one ("hyserve.v1.Inference"). From any thread; NOT_SERVING for
  // good once Shutdown() was called.
  void SetServing(bool serving);
  void SetServing(const std::string& service, bool serving);
  // Refuses new calls, waits up to `grace` for running ones, then cancels them. Blocks. From one
  // thread only.
  void Shutdown(absl::Duration grace);

 private:
  struct Impl;
  explicit GrpcServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Keepalive and message limits of a client channel between our processes (1 s / 1 s: a frozen peer
// is noticed in about 2 s).
void SetInternalChannelArguments(grpc::ChannelArguments* arguments);

}  // namespace hyserve::common

#endif  // HYSERVE_SERVICES_COMMON_SERVER_H_
