#include "services/prefill_worker/prefill_worker.h"

#include <utility>

#include "services/worker/setup.h"

namespace hyserve::prefill_worker {

absl::StatusOr<std::unique_ptr<PrefillWorker>> PrefillWorker::Start(
    std::unique_ptr<worker::WorkerCore> core, std::unique_ptr<kv_transfer::Transport> transport,
    bool registers) {
  std::unique_ptr<PrefillWorker> worker(new PrefillWorker());
  PrefillWorker* const self = worker.get();
  self->core_ = std::move(core);
  self->transport_ = std::move(transport);
  self->probe_ = kv_transfer::LinkProbe::Create(self->transport_.get());

  const kv_transfer::MemoryKind kind = worker::ToMemoryKind(self->core_->settings());
  auto exporter = kv_transfer::Exporter::Create(
      self->transport_.get(), worker::ToRegions(self->core_->engine(), kind),
      worker::ToExporterOptions(self->core_->config().transfer, *self->transport_),
      [self](const kv_transfer::TransferId& id, kv_transfer::ReleaseReason reason) {
        self->offers_.Release(id, reason);
      });
  if (!exporter.ok()) return exporter.status();
  self->exporter_ = *std::move(exporter);

  self->context_ = {.core = self->core_.get(),
                    .exporter = self->exporter_.get(),
                    .transport = self->transport_.get(),
                    .offers = &self->offers_};
  self->service_ = std::make_unique<PrefillService>(&self->context_);
  auto host = worker::WorkerHost::Start({.core = self->core_.get(),
                                         .transport = self->transport_.get(),
                                         .probe = self->probe_.get(),
                                         .stats = &self->exporter_->stats(),
                                         .invariants = [self] { return self->Invariants(); },
                                         .service = self->service_.get(),
                                         .registers = registers});
  if (!host.ok()) return host.status();
  self->host_ = *std::move(host);
  return worker;
}

PrefillWorker::~PrefillWorker() = default;

v1::GetInvariantsResponse PrefillWorker::Invariants() const {
  v1::GetInvariantsResponse response = core_->Invariants(&exporter_->stats());
  response.set_open_offers(exporter_->open_offers());
  return response;
}

}  // namespace hyserve::prefill_worker
