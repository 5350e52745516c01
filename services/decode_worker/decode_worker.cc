#include "services/decode_worker/decode_worker.h"

#include <utility>

#include "services/worker/setup.h"

namespace hyserve::decode_worker {

absl::StatusOr<std::unique_ptr<DecodeWorker>> DecodeWorker::Start(
    std::unique_ptr<worker::WorkerCore> core, std::unique_ptr<kv_transfer::Transport> transport,
    bool registers) {
  std::unique_ptr<DecodeWorker> worker(new DecodeWorker());
  DecodeWorker* const self = worker.get();
  self->core_ = std::move(core);
  self->transport_ = std::move(transport);
  const bool monolithic = self->core_->settings().role == "monolithic";
  if (monolithic != (self->transport_ == nullptr)) {
    return absl::InvalidArgumentError("a monolithic worker, and no other, has no transport");
  }
  if (!monolithic) {
    absl::Status status = self->CreateImporter();
    if (!status.ok()) return status;
  }
  self->context_ = {.core = self->core_.get(),
                    .importer = self->importer_.get(),
                    .transport = self->transport_.get(),
                    .probe = self->probe_.get(),
                    .links = self->links_.get()};
  self->service_ = std::make_unique<DecodeService>(&self->context_);
  auto host = worker::WorkerHost::Start(
      {.core = self->core_.get(),
       .transport = self->transport_.get(),
       .probe = self->probe_.get(),
       .stats = monolithic ? nullptr : &self->importer_->stats(),
       .invariants = [self] { return self->Invariants(); },
       .service = self->service_.get(),
       .registers = registers});
  if (!host.ok()) return host.status();
  self->host_ = *std::move(host);
  return worker;
}

absl::Status DecodeWorker::CreateImporter() {
  if (const double floor = core_->config().transfer.min_link_bytes_per_second; floor > 0) {
    links_ = std::make_unique<LinkGuard>(LinkGuardOptions{.floor_bytes_per_second = floor,
                                                          .worker = core_->settings().name,
                                                          .metrics = &core_->metrics()});
  }
  probe_ = kv_transfer::LinkProbe::Create(transport_.get());
  const kv_transfer::MemoryKind kind = worker::ToMemoryKind(core_->settings());
  auto importer = kv_transfer::Importer::Create(
      transport_.get(), worker::ToRegions(core_->engine(), kind),
      worker::ToImporterOptions(core_->config().transfer));
  if (!importer.ok()) return importer.status();
  importer_ = *std::move(importer);
  return absl::OkStatus();
}

DecodeWorker::~DecodeWorker() = default;

v1::GetInvariantsResponse DecodeWorker::Invariants() const {
  v1::GetInvariantsResponse response =
      core_->Invariants(importer_ == nullptr ? nullptr : &importer_->stats());
  if (importer_ != nullptr) response.set_open_imports(importer_->open_pulls());
  return response;
}

}  // namespace hyserve::decode_worker
