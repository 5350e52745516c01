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
// pull when it has seen token 1; told by us first, decode would report a failed hand-off. So decode is
// told by us only if the router has not ended the pull after this time.
constexpr absl::Duration kNotNeededGrace = absl::Seconds(1);

}  // namespace

grpc::ServerWriteReactor<v1::PrefillEvent>* PrefillSequence::Start(
    const PrefillContext* worker, grpc::CallbackServerContext* context,
    const v1::PrefillRequest& request) {
  const auto sequence = std::make_shared<PrefillSequence>(worker);
  sequence->writer_ = Writer::Create(context, worker->core->StreamOptions(), sequence);
  grpc::ServerWriteReactor<v1::PrefillEvent>* const reactor = sequence->writer_->reactor();
  worker->core->streams().Enter();
  worker->core->sequences().Enter();
  sequence->Begin(request, absl::FromChrono(context->deadline()));
  return reactor;
}

PrefillSequence::PrefillSequence(const PrefillContext* worker)
    : worker_(worker), arrival_(absl::Now()) {}

// ---- start ----------------------------------------------------------------------------------------

void PrefillSequence::Begin(const v1::PrefillRequest& request, absl::Time deadline) {
  const absl::Status status = Accept(request, deadline);
  if (status.ok()) return;
  worker_->core->metrics().OnRejected(ToStd(absl::StatusCodeToString(status.code())));
  absl::MutexLock lock(&mutex_);
  computing_ = false;
  if (!cancelled_.has_value()) cancelled_ = status;
  EndIfNothingRuns();
}

absl::Status PrefillSequence::Accept(const v1::PrefillRequest& request, absl::Time deadline) {
  worker::WorkerCore& core = *worker_->core;
  if (absl::Status status = core.CheckAcceptsWork(); !status.ok()) return status;
  if (absl::Status status = worker::CheckRequestId(request.id()); !status.ok()) return status;
  if (absl::Status status = worker::CheckCacheScope(request.cache_scope()); !status.ok()) {
    return status;
  }
  auto ticket =
      worker::ParseTicket(request.ticket(), request.id().attempt(),
                          core.engine().layout().Fingerprint(), worker_->transport->name());
  if (!ticket.ok()) return ticket.status();
  if (ticket->source.incarnation != worker_->transport->incarnation()) {
    return common::StaleIncarnationError("the ticket names an earlier process at this address");
  }
  ticket_ = *std::move(ticket);
  id_ = core.NextSequenceId();
  deadline_ = worker::ClampDeadline(deadline, core.config().limits.max_deadline);
  prompt_.assign(request.prompt().begin(), request.prompt().end());

  runtime::SequenceRequest sequence;
  sequence.id = id_;
  sequence.mode = runtime::SequenceMode::kPrefill;
  sequence.prompt = prompt_;
  sequence.sampling = worker::ToSamplingParams(request.sampling());
  sequence.num_prompt_logprobs = request.num_prompt_logprobs();
  sequence.use_prefix_cache = request.use_prefix_cache();
  sequence.cache_scope = request.cache_scope();
  sequence.deadline = deadline_;
  may_hand_over_ = sequence.sampling.max_tokens > 1;

  if (absl::Status status = core.attempts().Enter(request.id().request_id(),
                                                  request.id().attempt(), shared_from_this());
      !status.ok()) {
    core.metrics().OnStaleAttempt();
    return status;
  }
  {
    absl::MutexLock lock(&mutex_);
    request_id_ = request.id().request_id();
    if (cancelled_.has_value()) return *cancelled_;  // between Enter() and here
    computing_ = true;
  }
  absl::Status status = core.engine().Submit(std::move(sequence), shared_from_this());
  if (!status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  // A cancel that came before Submit() found nothing to cancel.
  if (cancelled_.has_value() && computing_) core.engine().Cancel(id_);
  return absl::OkStatus();
}

// ---- engine ---------------------------------------------------------------------------------------

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
  if (worker_->offers->Add(ticket_.id, shared_from_this())) {
    status = worker_->exporter->Offer(std::move(offer));
    if (!status.ok()) worker_->offers->Remove(ticket_.id);
  }
  if (!status.ok()) return Cancel(status);
  offered_ = true;
  if (cached_tokens == 0) return;
  const int num_layers = static_cast<int>(worker_->core->engine().layout().full_layers.size());
  for (int slot = 0; slot < num_layers; ++slot) {
    worker_->exporter->LayerReady(ticket_.id, slot, cached_tokens);
  }
}

void PrefillSequence::OnLayerReady(int layer_slot, int32_t num_tokens) {
  absl::MutexLock lock(&mutex_);
  if (offered_) worker_->exporter->LayerReady(ticket_.id, layer_slot, num_tokens);
}

void PrefillSequence::OnPrefillProgress(int32_t computed_tokens) {
  v1::PrefillEvent event;
  event.mutable_progress()->set_computed_tokens(computed_tokens);
  writer_->Write(std::move(event));
}

void PrefillSequence::OnPromptLogprobs(int32_t first_index,
                                       std::vector<sampling::SampledToken> logprobs) {
  v1::PrefillEvent event;
  event.mutable_prompt_logprobs()->set_first_index(first_index);
  for (const sampling::SampledToken& token : logprobs) {
    worker::FillSampledToken(token, event.mutable_prompt_logprobs()->add_logprobs());
  }
  writer_->Write(std::move(event));
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
  computing_ = false;
  computed_ = absl::Now();
  finish_reason_ = reason;
  engine_status_ = status;
  if (status.ok() && !first_token_.has_value()) {
    engine_status_ = absl::InternalError("the engine finished a prompt without a token");
  }
  worker_->core->attempts().Retire(request_id_, this);
  if (engine_status_.ok() && !cancelled_.has_value()) {
    WriteFirstToken();
    if (offered_) HandOver();
  } else if (offered_) {
    worker_->exporter->Abort(ticket_.id);
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
  worker_->core->metrics().OnHandoffPhase("prefill", computed_ - admitted_);
}

void PrefillSequence::HandOver() {
  if (finish_reason_ == FinishReason::kNone) {
    worker_->exporter->SlabReady(ticket_.id, std::move(selection_),
                                 worker::EncodeTrailer(prompt_, first_token_->token_id));
    return;
  }
  worker_->core->timers().ScheduleAfter(kNotNeededGrace, [self = shared_from_this()] {
    absl::MutexLock lock(&self->mutex_);
    if (self->offered_) self->worker_->exporter->Abort(self->ticket_.id);
  });
}

// ---- the ends -------------------------------------------------------------------------------------

void PrefillSequence::OnReleased(kv_transfer::ReleaseReason reason) {
  absl::MutexLock lock(&mutex_);
  offered_ = false;
  released_ = reason;
  if (reason == kv_transfer::ReleaseReason::kCommitted) {
    worker_->core->metrics().OnPushed(static_cast<int32_t>(prompt_.size()),
                                      absl::Now() - computed_);
  } else if (computing_ && absl::Now() >= deadline_) {
    Cancel(absl::DeadlineExceededError("the deadline passed"));
  } else if (computing_) {
    Cancel(common::HandoffFailedError(
        StrCat("the offer ended while the prompt was computed: ", kv_transfer::Name(reason))));
  }
  EndIfNothingRuns();
}

void PrefillSequence::Cancel(const absl::Status& status) {
  if (ended_ || cancelled_.has_value()) return;
  cancelled_ = status;
  worker_->core->attempts().Retire(request_id_, this);
  if (computing_) worker_->core->engine().Cancel(id_);
  if (offered_) worker_->exporter->Abort(ticket_.id);
}

void PrefillSequence::OnSuperseded() {
  absl::MutexLock lock(&mutex_);
  worker_->core->metrics().OnStaleAttempt();
  Cancel(absl::AbortedError(StrCat(worker::kStaleAttempt, "a newer attempt is here")));
}

void PrefillSequence::OnStreamCancelled() {
  absl::MutexLock lock(&mutex_);
  Cancel(absl::Now() >= deadline_ ? absl::DeadlineExceededError("the deadline passed")
                                  : absl::CancelledError("cancelled by the router"));
}

void PrefillSequence::OnSlowConsumer() {
  worker_->core->metrics().OnSlowConsumer();
  absl::MutexLock lock(&mutex_);
  Cancel(absl::ResourceExhaustedError("slow_consumer: the router does not read the stream"));
}

void PrefillSequence::OnStreamDone() {
  absl::MutexLock lock(&mutex_);
  worker_->core->streams().Leave();
  Cancel(absl::CancelledError("the stream broke"));
}

void PrefillSequence::EndIfNothingRuns() {
  if (computing_ || offered_ || ended_) return;
  ended_ = true;
  worker::WorkerCore& core = *worker_->core;
  if (id_ != 0) core.engine().Release(id_);
  const absl::Status status = FinalStatus();
  Record(status);
  if (status.ok()) {
    v1::PrefillEvent event;
    event.mutable_handoff_done()->set_reason(
        finish_reason_ != FinishReason::kNone || !released_.has_value()
            ? "not_needed"
            : std::string(kv_transfer::Name(*released_)));
    writer_->WriteAndFinish(std::move(event), status);
  } else {
    writer_->Finish(status);
  }
  core.attempts().Leave(request_id_, this);
  core.sequences().Leave();
}

absl::Status PrefillSequence::FinalStatus() const {
  if (cancelled_.has_value()) return *cancelled_;
  // The engine cancels by itself only when it stops.
  if (absl::IsCancelled(engine_status_)) return absl::UnavailableError("draining: the engine stops");
  return engine_status_;
}

void PrefillSequence::Record(const absl::Status& status) {
  worker::RequestOutcome outcome;
  outcome.status = status;
  outcome.finished_reason = worker::FinishedReason(finish_reason_);
  outcome.prompt_tokens = static_cast<int32_t>(prompt_.size());
  outcome.generated_tokens = first_token_.has_value() ? 1 : 0;
  outcome.started = admitted_ != absl::InfinitePast();
  outcome.has_first_token = first_token_.has_value();
  outcome.total = absl::Now() - arrival_;
  if (outcome.started) {
    outcome.queue = admitted_ - arrival_;
    outcome.first_token = computed_ - arrival_;
    outcome.prefill = computed_ - admitted_;
    outcome.inference = outcome.prefill;
  }
  worker_->core->metrics().OnRequestEnded(outcome);
}

}  // namespace hyserve::prefill_worker
