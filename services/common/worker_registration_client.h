// Keeps a worker known to a router: one Register stream, re-made with growing pauses when it ends.
#ifndef HYSERVE_SERVICES_COMMON_WORKER_REGISTRATION_CLIENT_H_
#define HYSERVE_SERVICES_COMMON_WORKER_REGISTRATION_CLIENT_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "hyserve/v1/worker.pb.h"

namespace hyserve::common {

struct RegistrationOptions {
  std::string router_address;      // host:port of the router's WorkerRegistry
  v1::Registration registration;   // sent first on every stream
  // Called every report_interval on a thread of the client; must not block. `sequence` is filled
  // in.
  std::function<v1::LoadReport()> load;
  absl::Duration report_interval = absl::Milliseconds(100);
  absl::Duration first_backoff = absl::Milliseconds(100);
  absl::Duration max_backoff = absl::Seconds(2);
  absl::Duration refused_backoff = absl::Seconds(5);  // the router said no: logged, tried again
};

// Thread-safe.
class WorkerRegistrationClient {
 public:
  explicit WorkerRegistrationClient(RegistrationOptions options);
  // Ends the stream; the router counts the worker as gone.
  ~WorkerRegistrationClient();

  // True while the router has accepted the registration.
  bool registered() const;
  // Blocks until registered() or the time is over; for tests and start-up logs.
  bool WaitRegistered(absl::Duration timeout) const;
  // Sends a load report now (a change of state, e.g. draining).
  void ReportNow();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hyserve::common

#endif  // HYSERVE_SERVICES_COMMON_WORKER_REGISTRATION_CLIENT_H_
