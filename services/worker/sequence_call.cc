#include "services/worker/sequence_call.h"

#include "absl/time/clock.h"
#include "base/strings.h"

namespace hyserve::worker {

SequenceCall::SequenceCall(WorkerCore* core) : core_(*core), arrival_(absl::Now()) {
  core_.streams().Enter();
  core_.sequences().Enter();
}

absl::Status SequenceCall::Enter(const v1::RequestId& id, runtime::SequenceRequest sequence) {
  const bool reserves = sequence.mode == runtime::SequenceMode::kDecode;
  if (absl::Status status =
          core_.attempts().Enter(id.request_id(), id.attempt(), shared_from_this());
      !status.ok()) {
    core_.metrics().OnStaleAttempt();
    return status;
  }
  {
    absl::MutexLock lock(&mutex_);
    request_id_ = id.request_id();
    if (cancelled_.has_value()) return *cancelled_;  // between Enter() and here
    engine_runs_ = true;
  }
  absl::Status status = reserves
                            ? core_.engine().Reserve(std::move(sequence), shared_from_this())
                            : core_.engine().Submit(std::move(sequence), shared_from_this());
  if (!status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  // A cancel that came before the engine knew the sequence found nothing to cancel.
  if (cancelled_.has_value() && engine_runs_) core_.engine().Cancel(id_);
  return absl::OkStatus();
}

void SequenceCall::Refuse(const absl::Status& status) {
  core_.metrics().OnRejected(ToStd(absl::StatusCodeToString(status.code())));
  absl::MutexLock lock(&mutex_);
  engine_runs_ = false;
  if (!cancelled_.has_value()) cancelled_ = status;
  EndIfNothingRuns();
}

void SequenceCall::Cancel(const absl::Status& status) {
  if (ended_ || cancelled_.has_value()) return;
  cancelled_ = status;
  core_.attempts().Retire(request_id_, this);
  if (engine_runs_) core_.engine().Cancel(id_);
  if (transfer_runs_) AbortTransfer();
}

void SequenceCall::EngineEnded(const absl::Status& status, sampling::FinishReason reason) {
  engine_runs_ = false;
  engine_status_ = status;
  finish_reason_ = reason;
  core_.attempts().Retire(request_id_, this);
}

absl::Status SequenceCall::SlowConsumerError() {
  return absl::ResourceExhaustedError("slow_consumer: the router does not read the stream");
}

void SequenceCall::OnSuperseded() {
  absl::MutexLock lock(&mutex_);
  core_.metrics().OnStaleAttempt();
  Cancel(absl::AbortedError(StrCat(kStaleAttempt, "a newer attempt is here")));
}

void SequenceCall::OnStreamCancelled() {
  absl::MutexLock lock(&mutex_);
  Cancel(absl::Now() >= deadline_ ? absl::DeadlineExceededError("the deadline passed")
                                  : absl::CancelledError("cancelled by the router"));
}

void SequenceCall::OnSlowConsumer() {
  core_.metrics().OnSlowConsumer();
  absl::MutexLock lock(&mutex_);
  Cancel(SlowConsumerError());
}

void SequenceCall::OnStreamDone() {
  absl::MutexLock lock(&mutex_);
  core_.streams().Leave();
  Cancel(absl::CancelledError("the stream broke"));
}

void SequenceCall::EndIfNothingRuns() {
  if (engine_runs_ || transfer_runs_ || ended_) return;
  ended_ = true;
  // The engine keeps the memory of a prompt, and of a reservation that was not resumed, until now;
  // other ids it knows no longer.
  if (id_ != 0) core_.engine().Release(id_);
  RequestOutcome outcome;
  outcome.status = FinalStatus();
  outcome.finished_reason = FinishedReason(finish_reason_);
  outcome.prompt_tokens = static_cast<int32_t>(prompt_.size());
  outcome.total = absl::Now() - arrival_;
  FillOutcome(&outcome);
  core_.metrics().OnRequestEnded(outcome);
  WriteEnd(outcome.status);
  core_.attempts().Leave(request_id_, this);
  core_.sequences().Leave();
}

absl::Status SequenceCall::FinalStatus() const {
  if (cancelled_.has_value()) return *cancelled_;
  // The engine cancels by itself only when it stops.
  if (absl::IsCancelled(engine_status_)) {
    return absl::UnavailableError("draining: the engine stops");
  }
  return engine_status_;
}

}  // namespace hyserve::worker
