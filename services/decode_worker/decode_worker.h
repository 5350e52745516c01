// A decode worker: engine, transport, importer and services, put together in order. With the role
// "monolithic" it computes prompts itself and has neither transport nor importer.
#ifndef HYSERVE_SERVICES_DECODE_WORKER_DECODE_WORKER_H_
#define HYSERVE_SERVICES_DECODE_WORKER_DECODE_WORKER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kv_transfer/importer.h"
#include "kv_transfer/link_probe.h"
#include "kv_transfer/transport.h"
#include "services/decode_worker/decode_service.h"
#include "services/decode_worker/link_guard.h"
#include "services/worker/worker_core.h"
#include "services/worker/worker_host.h"

namespace hyserve::decode_worker {

class DecodeWorker {
 public:
  // Serves on the address of the core's settings and, unless told otherwise, registers at the
  // router. `transport` is null exactly for a monolithic worker. Errors of Importer::Create and
  // WorkerHost::Start.
  static absl::StatusOr<std::unique_ptr<DecodeWorker>> Start(
      std::unique_ptr<worker::WorkerCore> core, std::unique_ptr<kv_transfer::Transport> transport,
      bool registers = true);
  // Cancels what runs, waits until nothing of it is held.
  ~DecodeWorker();

  worker::WorkerHost& host() { return *host_; }
  worker::WorkerCore& core() { return *core_; }
  v1::GetInvariantsResponse Invariants() const;

 private:
  DecodeWorker() = default;
  absl::Status CreateImporter();

  // Destroyed in reverse; the context after everything that a sequence can be alive in.
  DecodeContext context_;
  std::unique_ptr<worker::WorkerCore> core_;
  std::unique_ptr<kv_transfer::Transport> transport_;
  std::unique_ptr<LinkGuard> links_;  // null: no floor
  std::unique_ptr<kv_transfer::LinkProbe> probe_;
  std::unique_ptr<kv_transfer::Importer> importer_;
  std::unique_ptr<DecodeService> service_;
  std::unique_ptr<worker::WorkerHost> host_;
};

}  // namespace hyserve::decode_worker

#endif  // HYSERVE_SERVICES_DECODE_WORKER_DECODE_WORKER_H_
