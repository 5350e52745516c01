#include "services/decode_worker/decode_sequence.h"

#include <utility>

#include "absl/time/clock.h"
#include "base/strings.h"
#include "services/common/worker_errors.h"
#include "services/worker/handoff_trailer.h"

namespace hyserve::decode_worker {
namespace {

using sampling::FinishReason;

// The engine does not wait for a router that does not read: so many more tokens are queued for a
// congested stream, then it is ended without waiting for the slow-consumer timer.
constexpr int32_t kMaxTokensWhileCongested = 16384;
constexpr int kFlushInterTokenEvery = 256;

// Tokens that wait for the router travel together.
bool MergeTokens(v1::DecodeEvent* last, v1::DecodeEvent* next) {
  if (!last->has_tokens() || !next->has_tokens()) return false;
  for (v1::SampledToken& token : *next->mutable_tokens()->mutable_tokens()) {
    last->mutable_tokens()->add_tokens()->Swap(&token);
  }
  return true;
}

// What the router is told about a pull that failed. The request's own deadline is the only end that
// no other worker could mend.
absl::Status HandoffError(const absl::Status& status, absl::Time deadline) {
  if (absl::IsDeadlineExceeded(status) && absl::Now() >= deadline) {
    return absl::DeadlineExceededError("the deadline passed during the hand-off");
  }
  return common::HandoffFailedError(StrCat(absl::StatusCodeToString(status.code()), ": ",
                                           ToStd(status.message())));
}

}  // namespace

grpc::ServerWriteReactor<v1::DecodeEvent>* DecodeSequence::Start(
    const DecodeContext* worker, grpc::CallbackServerContext* context,
    const v1::DecodeRequest& request) {
  const auto sequence = std::make_shared<DecodeSequence>(worker);
  sequence->writer_ =
      Writer::Create(context, worker->core->StreamOptions(), sequence, MergeTokens);
  grpc::ServerWriteReactor<v1::DecodeEvent>* const reactor = sequence->writer_->reactor();
  const absl::Status status = sequence->Accept(request, absl::FromChrono(context->deadline()));
  if (!status.ok()) sequence->Refuse(status);
  return reactor;
}

DecodeSequence::DecodeSequence(const DecodeContext* worker)
    : SequenceCall(worker->core),
      worker_(worker),
      inter_token_(core_.metrics().NewInterTokenHistogram()) {}

absl::Status DecodeSequence::AcceptTicket(const v1::DecodeRequest& request) {
  if (local()) {
    if (!request.has_ticket()) return absl::OkStatus();
    return absl::InvalidArgumentError("ticket: a monolithic worker takes no hand-off");
  }
  if (!request.has_ticket()) {
    return absl::InvalidArgumentError("ticket: a decode worker computes no prompt");
  }
  auto ticket = worker::ParseTicket(request.ticket(), request.id().attempt(),
                                    core_.engine().layout().Fingerprint(),
                                    worker_->transport->name());
  if (!ticket.ok()) return ticket.status();
  ticket_ = *std::move(ticket);
  if (worker_->links == nullptr) return absl::OkStatus();
  return worker_->links->Check(ticket_.source, worker_->probe);
}

absl::Status DecodeSequence::Accept(const v1::DecodeRequest& request, absl::Time deadline) {
  if (absl::Status status = Check(request); !status.ok()) return status;
  if (absl::Status status = AcceptTicket(request); !status.ok()) return status;
  runtime::SequenceRequest sequence = MakeSequence(
      request, local() ? runtime::SequenceMode::kLocal : runtime::SequenceMode::kDecode, deadline);
  if (!local()) worker_->importer->WarmUp(ticket_.source);
  return Enter(request.id(), std::move(sequence));
}

// ---- the hand-off -------------------------------------------------------------------------------

void DecodeSequence::OnReserved(const absl::StatusOr<runtime::KvBlocks>& kv) {
  absl::MutexLock lock(&mutex_);
  if (!kv.ok()) {  // the engine has forgotten the sequence
    engine_runs_ = false;
    engine_status_ = kv.status();
    EndIfNothingRuns();
    return;
  }
  started_ = absl::Now();
  if (cancelled_.has_value()) return;  // OnFinished follows
  core_.metrics().OnHandoffPhase("reserve", started_ - arrival_);
  v1::DecodeEvent event;
  event.mutable_reserved()->set_queue_ms(absl::ToDoubleMilliseconds(started_ - arrival_));
  writer_->Write(std::move(event));
  Pull(*kv);
}

void DecodeSequence::Pull(const runtime::KvBlocks& kv) {
  kv_transfer::PullSpec pull;
  pull.id = ticket_.id;
  pull.epoch = ticket_.epoch;
  pull.source = ticket_.source;
  pull.num_tokens = static_cast<int64_t>(prompt_.size());
  const auto num_blocks = kv_cache::KvLayout::NumBlocks(pull.num_tokens);
  pull.blocks.assign(kv.blocks.begin(), kv.blocks.begin() + num_blocks);
  pull.slab = kv.slab;
  pull.deadline = deadline_;
  transfer_runs_ = true;
  const absl::Status status = worker_->importer->Pull(
      std::move(pull), [self = std::static_pointer_cast<DecodeSequence>(shared_from_this())](
                           const kv_transfer::TransferId& id,
                           const kv_transfer::PullResult& result) { self->OnPulled(result); });
  if (status.ok()) return;
  transfer_runs_ = false;
  Cancel(HandoffError(status, deadline_));
}

void DecodeSequence::OnPulled(const kv_transfer::PullResult& result) {
  absl::MutexLock lock(&mutex_);
  transfer_runs_ = false;
  if (engine_runs_ && !cancelled_.has_value()) {
    const absl::StatusOr<int32_t> first_token =
        result.status.ok() ? worker::DecodeTrailer(result.trailer, prompt_)
                           : absl::StatusOr<int32_t>(result.status);
    if (first_token.ok()) {
      Resume(result, *first_token);
    } else {
      Cancel(HandoffError(first_token.status(), deadline_));
    }
  }
  EndIfNothingRuns();
}

void DecodeSequence::Resume(const kv_transfer::PullResult& result, int32_t first_token) {
  constexpr int32_t kRecomputedTokens = 0;  // every token of the prompt arrived
  v1::DecodeEvent event;
  v1::DecodeEvent::Started* const started = event.mutable_started();
  started->set_transfer_ms(result.transfer_seconds * 1e3);
  started->set_transfer_exposed_ms(result.exposed_seconds * 1e3);
  started->set_shipped_bytes(result.payload.total());
  started->set_recomputed_tokens(kRecomputedTokens);
  writer_->Write(std::move(event));
  core_.metrics().OnPulled(static_cast<int32_t>(prompt_.size()), worker_->transport->name(), result,
                          kRecomputedTokens);
  first_token_ = last_token_ = absl::Now();
  core_.engine().Resume(id_, first_token);
}

// ---- engine -------------------------------------------------------------------------------------

void DecodeSequence::OnAdmitted(const runtime::KvBlocks& kv, int32_t cached_tokens) {
  absl::MutexLock lock(&mutex_);
  started_ = absl::Now();
  cached_tokens_ = cached_tokens;
}

void DecodeSequence::OnPrefillProgress(int32_t computed_tokens) {
  absl::MutexLock lock(&mutex_);
  v1::DecodeEvent event;
  event.mutable_progress()->set_computed_tokens(computed_tokens);
  event.mutable_progress()->set_cached_tokens(cached_tokens_);
  writer_->Write(std::move(event));
}

void DecodeSequence::OnPromptLogprobs(int32_t first_index,
                                      std::vector<sampling::SampledToken> logprobs) {
  writer_->Write(worker::PromptLogprobsEvent<v1::DecodeEvent>(first_index, logprobs));
}

void DecodeSequence::OnTokens(int32_t first_index,
                              const std::vector<sampling::SampledToken>& tokens) {
  const int32_t count = static_cast<int32_t>(tokens.size());
  v1::DecodeEvent event = writer_->NewMessage();
  event.mutable_tokens()->set_first_index(first_index);
  for (const sampling::SampledToken& token : tokens) {
    worker::FillSampledToken(token, event.mutable_tokens()->add_tokens());
  }
  absl::MutexLock lock(&mutex_);
  const absl::Time now = absl::Now();
  if (last_token_ == absl::InfinitePast()) {
    first_token_ = now;
  } else {
    inter_token_->Observe(absl::ToDoubleSeconds(now - last_token_) / count, count);
    if (inter_token_->pending() >= kFlushInterTokenEvery) inter_token_->Flush();
  }
  last_token_ = now;
  writer_->Write(std::move(event), count);
  tokens_while_congested_ = writer_->congested() ? tokens_while_congested_ + count : 0;
  if (tokens_while_congested_ <= kMaxTokensWhileCongested || cancelled_.has_value()) return;
  core_.metrics().OnSlowConsumer();
  Cancel(SlowConsumerError());
  writer_->Abort(SlowConsumerError());
}

void DecodeSequence::OnFinished(const absl::Status& status, FinishReason reason,
                                const runtime::Usage& usage) {
  absl::MutexLock lock(&mutex_);
  EngineEnded(status, reason);
  generated_tokens_ = usage.generated_tokens;
  if (transfer_runs_) AbortTransfer();
  EndIfNothingRuns();
}

// ---- the ends -----------------------------------------------------------------------------------

void DecodeSequence::AbortTransfer() { worker_->importer->Abort(ticket_.id); }

void DecodeSequence::WriteEnd(const absl::Status& status) {
  if (!status.ok()) return writer_->Finish(status);
  v1::DecodeEvent event;
  event.mutable_finished()->set_by_length(finish_reason_ == FinishReason::kLength);
  event.mutable_finished()->set_generated_tokens(generated_tokens_);
  writer_->WriteAndFinish(std::move(event), status);
}

void DecodeSequence::FillOutcome(worker::RequestOutcome* outcome) {
  inter_token_->Flush();
  outcome->generated_tokens = generated_tokens_;
  outcome->started = started_ != absl::InfinitePast();
  if (outcome->started) outcome->queue = started_ - arrival_;
  if (last_token_ == absl::InfinitePast()) return;
  outcome->has_first_token = local();
  outcome->first_token = first_token_ - arrival_;
  outcome->prefill = first_token_ - started_;
  outcome->decode = last_token_ - first_token_;
  outcome->inference = last_token_ - started_;
}

}  // namespace hyserve::decode_worker
