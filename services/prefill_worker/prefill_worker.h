// A prefill worker: engine, transport, exporter and services, put together in order.
#ifndef HYSERVE_SERVICES_PREFILL_WORKER_PREFILL_WORKER_H_
#define HYSERVE_SERVICES_PREFILL_WORKER_PREFILL_WORKER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kv_transfer/exporter.h"
#include "kv_transfer/link_probe.h"
#include "kv_transfer/transport.h"
#include "services/prefill_worker/offer_registry.h"
#include "services/prefill_worker/prefill_service.h"
#include "services/worker/worker_core.h"
#include "services/worker/worker_host.h"

namespace hyserve::prefill_worker {

class PrefillWorker {
 public:
  // Serves on the address of the core's settings and, unless told otherwise, registers at the
  // router. Errors of Exporter::Create and WorkerHost::Start.
  static absl::StatusOr<std::unique_ptr<PrefillWorker>> Start(
      std::unique_ptr<worker::WorkerCore> core, std::unique_ptr<kv_transfer::Transport> transport,
      bool registers = true);
  // Cancels what runs, waits until nothing of it is held.
  ~PrefillWorker();

  worker::WorkerHost& host() { return *host_; }
  worker::WorkerCore& core() { return *core_; }
  const kv_transfer::Exporter& exporter() const { return *exporter_; }
  v1::GetInvariantsResponse Invariants() const;

 private:
  PrefillWorker() = default;

  // Destroyed in reverse; the context after everything that a sequence can be alive in.
  PrefillContext context_;
  std::unique_ptr<worker::WorkerCore> core_;
  std::unique_ptr<kv_transfer::Transport> transport_;
  std::unique_ptr<kv_transfer::LinkProbe> probe_;
  OfferRegistry offers_;
  std::unique_ptr<kv_transfer::Exporter> exporter_;
  std::unique_ptr<PrefillService> service_;
  std::unique_ptr<worker::WorkerHost> host_;
};

}  // namespace hyserve::prefill_worker

#endif  // HYSERVE_SERVICES_PREFILL_WORKER_PREFILL_WORKER_H_
