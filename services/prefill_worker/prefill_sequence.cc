#include "services/prefill_worker/prefill_sequence.h"

#include <utility>

#include "absl/time/clock.h"
#include "base/strings.h"
#include "services/common/worker_errors.h"
#include "services/worker/handoff_trailer.h"

namespace hyserve::prefill_worker {
namespace {

using sampling::FinishReason;

// A sequence that token 1 ended needs no hand-off, but decode may be pulling. The router ends that
// pull when it has seen token 1; told by us first, decode would report a failed hand-off. So decode
// is told by us only if the router has not ended the pull after this time.
constexpr absl::Duration kNotNeededGrace = absl::Seconds(1);

}  // namespace

grpc::ServerWriteReactor<v1::PrefillEvent>* PrefillSequence::Start(
    const PrefillContext* worker, grpc::CallbackServerContext* context,
    const v1::PrefillRequest& request) {
  const auto sequence = std::make_shared<PrefillSequence>(worker);
  sequence->writer_ = Writer::Create(context, worker->core->StreamOptions(), sequence);
  grpc::ServerWriteReactor<v1::PrefillEvent>* const reactor = sequence->writer_->reactor();
  const absl::Status status = sequence->Accept(request, absl::FromChrono(context->deadline()));
  if (!status.ok()) sequence->Refuse(status);
  return reactor;
}

PrefillSequence::PrefillSequence(const PrefillContext* worker)
    : SequenceCall(worker->core), worker_(worker) {}

absl::Status PrefillSequence::Accept(const v1::PrefillRequest& request, absl::Time deadline) {
  if (absl::Status status = Check(request); !status.ok()) return status;
  auto ticket =
      worker::ParseTicket(request.ticket(), request.id().attempt(),
                          core_.engine().layout().Fingerprint(), worker_->transport->name());
  if (!ticket.ok()) return ticket.status();
  if (ticket->source.incarnation != worker_->transport->incarnation()) {
    return common::StaleIncarnationError("the ticket names an earlier process at this address");
  }
  ticket_ = *std::move(ticket);
  runtime::SequenceRequest sequence =
      MakeSequence(request, runtime::SequenceMode::kPrefill, deadline);
  may_hand_over_ = sequence.sampling.max_tokens > 1;
  return Enter(request.id(), std::move(sequence));
}

// ---- engine -------------------------------------------------------------------------------------

void PrefillSequence::OnAdmitted(const runtime::KvBlocks& kv, int32_t cached_tokens) {
  absl::MutexLock lock(&mutex_);
  admitted_ = absl::Now();
  v1::PrefillEvent event;
  event.mutable_admitted()->set_cached_tokens(cached_tokens);
  event.mutable_admitted()->set_queue_ms(absl::ToDoubleMilliseconds(admitted_ - arrival_));
  writer_->Write(std::move(event));
  if (may_hand_over_ && !cancelled_.has_value()) Offer(kv, cached_tokens);
}

void PrefillSequence::Offer(const runtime::KvBlocks& kv, int32_t cached_tokens) {
  kv_transfer::OfferSpec offer;
  offer.id = ticket_.id;
  offer.epoch = ticket_.epoch;
  offer.num_tokens = static_cast<int64_t>(prompt_.size());
  const auto num_blocks = kv_cache::KvLayout::NumBlocks(offer.num_tokens);
  offer.blocks.assign(kv.blocks.begin(), kv.blocks.begin() + num_blocks);
  offer.slab = kv.slab;
  offer.deadline = deadline_;
  absl::Status status = absl::AlreadyExistsError("the transfer id is in use");
  // Entered first: the offer may be released before Offer() returns.
  if (worker_->offers->Add(ticket_.id, Self())) {
    status = worker_->exporter->Offer(std::move(offer));
    if (!status.ok()) worker_->offers->Remove(ticket_.id);
  }
  if (!status.ok()) return Cancel(status);
  transfer_runs_ = true;
  if (cached_tokens == 0) return;
  const int num_layers = static_cast<int>(core_.engine().layout().full_layers.size());
  for (int slot = 0; slot < num_layers; ++slot) {
    worker_->exporter->LayerReady(ticket_.id, slot, cached_tokens);
  }
}

void PrefillSequence::OnLayerReady(int layer_slot, int32_t num_tokens) {
  absl::MutexLock lock(&mutex_);
  if (transfer_runs_) worker_->exporter->LayerReady(ticket_.id, layer_slot, num_tokens);
}

void PrefillSequence::OnPrefillProgress(int32_t computed_tokens) {
  v1::PrefillEvent event;
  event.mutable_progress()->set_computed_tokens(computed_tokens);
  writer_->Write(std::move(event));
}

void PrefillSequence::OnPromptLogprobs(int32_t first_index,
                                       std::vector<sampling::SampledToken> logprobs) {
  writer_->Write(worker::PromptLogprobsEvent<v1::PrefillEvent>(first_index, logprobs));
}

void PrefillSequence::OnPrefillDone(std::vector<int32_t> selection) {
  absl::MutexLock lock(&mutex_);
  selection_ = std::move(selection);
}

void PrefillSequence::OnTokens(int32_t first_index,
                               const std::vector<sampling::SampledToken>& tokens) {
  absl::MutexLock lock(&mutex_);
  if (first_index == 0 && !tokens.empty()) first_token_ = tokens.front();
}

void PrefillSequence::OnFinished(const absl::Status& status, FinishReason reason,
                                 const runtime::Usage& usage) {
  absl::MutexLock lock(&mutex_);
  computed_ = absl::Now();
  EngineEnded(status.ok() && !first_token_.has_value()
                  ? absl::InternalError("the engine finished a prompt without a token")
                  : status,
              reason);
  if (engine_status_.ok() && !cancelled_.has_value()) {
    WriteFirstToken();
    if (transfer_runs_) HandOver();
  } else if (transfer_runs_) {
    AbortTransfer();
  }
  EndIfNothingRuns();
}

void PrefillSequence::WriteFirstToken() {
  v1::PrefillEvent event;
  v1::PrefillEvent::FirstToken* const first = event.mutable_first_token();
  worker::FillSampledToken(*first_token_, first->mutable_token());
  first->set_finished(finish_reason_ != FinishReason::kNone);
  first->set_finished_by_length(finish_reason_ == FinishReason::kLength);
  first->set_prefill_ms(absl::ToDoubleMilliseconds(computed_ - admitted_));
  writer_->Write(std::move(event), 1);
  core_.metrics().OnHandoffPhase("prefill", computed_ - admitted_);
}

void PrefillSequence::HandOver() {
  if (finish_reason_ == FinishReason::kNone) {
    worker_->exporter->SlabReady(ticket_.id, std::move(selection_),
                                 worker::EncodeTrailer(prompt_, first_token_->token_id));
    return;
  }
  core_.timers().ScheduleAfter(kNotNeededGrace, [self = Self()] {
    absl::MutexLock lock(&self->mutex_);
    if (self->transfer_runs_) self->AbortTransfer();
  });
}

// ---- the ends -----------------------------------------------------------------------------------

void PrefillSequence::OnReleased(kv_transfer::ReleaseReason reason) {
  absl::MutexLock lock(&mutex_);
  transfer_runs_ = false;
  released_ = reason;
  if (reason == kv_transfer::ReleaseReason::kCommitted) {
    core_.metrics().OnPushed(static_cast<int32_t>(prompt_.size()),
                                      absl::Now() - computed_);
  } else if (engine_runs_ && absl::Now() >= deadline_) {
    Cancel(absl::DeadlineExceededError("the deadline passed"));
  } else if (engine_runs_) {
    Cancel(common::HandoffFailedError(
        StrCat("the offer ended while the prompt was computed: ", kv_transfer::Name(reason))));
  }
  EndIfNothingRuns();
}

void PrefillSequence::AbortTransfer() { worker_->exporter->Abort(ticket_.id); }

void PrefillSequence::WriteEnd(const absl::Status& status) {
  if (!status.ok()) return writer_->Finish(status);
  v1::PrefillEvent event;
  event.mutable_handoff_done()->set_reason(
      finish_reason_ != FinishReason::kNone || !released_.has_value()
          ? "not_needed"
          : std::string(kv_transfer::Name(*released_)));
  writer_->WriteAndFinish(std::move(event), status);
}

void PrefillSequence::FillOutcome(worker::RequestOutcome* outcome) {
  outcome->generated_tokens = first_token_.has_value() ? 1 : 0;
  outcome->started = admitted_ != absl::InfinitePast();
  outcome->has_first_token = first_token_.has_value();
  if (!outcome->started) return;
  outcome->queue = admitted_ - arrival_;
  outcome->first_token = computed_ - arrival_;
  outcome->prefill = computed_ - admitted_;
  outcome->inference = outcome->prefill;
}

}  // namespace hyserve::prefill_worker
