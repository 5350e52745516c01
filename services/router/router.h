// The router process, put together: everything between configuration and the two gRPC servers.
#ifndef HYSERVE_SERVICES_ROUTER_ROUTER_H_
#define HYSERVE_SERVICES_ROUTER_ROUTER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/common/config.h"
#include "services/common/metrics.h"

namespace hyserve::router {

class TextModel;

class Router {
 public:
  // Serves at once; health and readiness turn good with the first pair of workers.
  // UNAVAILABLE: an address cannot be bound.
  static absl::StatusOr<std::unique_ptr<Router>> Start(const common::Config& config,
                                                       std::unique_ptr<TextModel> text);
  // Without grace.
  ~Router();

  std::string address() const;           // public API, with the port that was bound
  std::string registry_address() const;  // for workers
  int metrics_port() const;              // 0: none
  common::Metrics* metrics();
  // Empty while requests can be served, else why not.
  std::string NotReadyReason() const;
  // Workers whose load is known.
  int usable_workers() const;
  // Requests that hold a booking at a worker or a place in the queue; 0 when idle.
  int64_t open_bookings() const;

  // Refuses new requests, waits for running ones up to `soft`, ends them, and stops within `hard`.
  void Drain(absl::Duration soft, absl::Duration hard);

 private:
  struct Impl;
  explicit Router(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_ROUTER_H_
