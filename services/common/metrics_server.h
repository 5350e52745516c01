// GET /metrics, /livez and /readyz over plain HTTP. Everything else is 404 or 405.
#ifndef HYSERVE_SERVICES_COMMON_METRICS_SERVER_H_
#define HYSERVE_SERVICES_COMMON_METRICS_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "services/common/metrics.h"

namespace hyserve::common {

class MetricsServer {
 public:
  // `address` is host:port (port 0: any). `not_ready_reason` is empty while the process can take
  // work, else one line; it and `before_scrape` (brings gauges up to date) are called on the
  // server's threads. `metrics` must outlive the server. UNAVAILABLE names the address that could
  // not be bound.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(
      const std::string& address, Metrics* metrics, std::function<std::string()> not_ready_reason,
      std::function<void()> before_scrape = nullptr);
  ~MetricsServer();  // stops

  int port() const;

 private:
  struct Impl;
  explicit MetricsServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace hyserve::common

#endif  // HYSERVE_SERVICES_COMMON_METRICS_SERVER_H_
