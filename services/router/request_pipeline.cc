#include "services/router/request_pipeline.h"

#include <algorithm>

#include "base/strings.h"
#include "services/common/worker_errors.h"

namespace hyserve::router {
namespace {

constexpr size_t kMaxHeldTokens = 4096;

bool IsRetryable(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kCancelled:  // not by us: the worker is going away
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kUnknown:
      return true;
    case absl::StatusCode::kFailedPrecondition:
      return common::HasCause(status, common::kStaleIncarnation);
    default:
      return false;
  }
}

}  // namespace

std::string_view FailedPartName(FailedPart part) {
  switch (part) {
    case FailedPart::kPrefill: return "prefill";
    case FailedPart::kHandoff: return "handoff";
    case FailedPart::kDecode: return "decode";
    case FailedPart::kNone: break;
  }
  return "none";
}

RequestPipeline::RequestPipeline(PipelineOptions options, TextStream text, PipelineActions* actions)
    : options_(std::move(options)), actions_(actions), text_(std::move(text)) {}

// ---- dispatch
// -------------------------------------------------------------------------------------

void RequestPipeline::OnAssigned(uint32_t attempt, bool monolithic, absl::Time now) {
  if (state_ != State::kQueued || attempt != attempt_) return;
  state_ = State::kRunning;
  monolithic_ = monolithic;
  prefill_open_ = !monolithic;
  decode_open_ = true;
  record_.assigned = now;
  record_.attempts = attempt;
}

void RequestPipeline::OnNotAssigned(const absl::Status& status) {
  if (state_ != State::kQueued) return;
  Fail(status, status.code() == absl::StatusCode::kUnavailable ? "no_capacity" : "overload");
}

void RequestPipeline::ResetAttempt() {
  if (prefill_open_) actions_->CancelPrefill();
  if (decode_open_) actions_->CancelDecode();
  prefill_open_ = decode_open_ = false;
  handoff_done_ = false;
  held_.clear();
  held_finished_ = false;
  prefill_error_ = absl::OkStatus();
  record_.cached_tokens = 0;
}

void RequestPipeline::OnAttemptFailed(FailedPart part, const absl::Status& status, absl::Time now) {
  if (next_index_ > 0) {
    if (TryFinishWithoutWorker()) return;
    if (status.code() == absl::StatusCode::kDeadlineExceeded) return OnDeadline();
    return Fail(absl::AbortedError(StrCat(FailedPartName(part), " worker lost after ", next_index_,
                                          " tokens")),
                "worker_lost");
  }
  if (!IsRetryable(status)) {
    if (status.code() == absl::StatusCode::kDeadlineExceeded) return OnDeadline();
    return Fail(status, "worker_error");
  }
  ResetAttempt();
  if (static_cast<int32_t>(attempt_) <= options_.max_retries) {
    ++attempt_;
    state_ = State::kQueued;
    if (actions_->Retry(attempt_, part)) return;
    --attempt_;
  }
  Fail(absl::UnavailableError(StrCat("no worker could serve the request in ", attempt_,
                                     attempt_ == 1 ? " attempt" : " attempts")),
       "worker_lost");
}

bool RequestPipeline::IsCurrent(uint32_t attempt) {
  if (attempt == attempt_ && state_ == State::kRunning) return true;
  if (state_ != State::kEnded) actions_->OnStaleEvent();
  return false;
}

// ---- prefill
// --------------------------------------------------------------------------------------

void RequestPipeline::OnPrefillEvent(uint32_t attempt, const v1::PrefillEvent& event,
                                     absl::Time now) {
  if (!IsCurrent(attempt) || !prefill_open_) return;
  switch (event.event_case()) {
    case v1::PrefillEvent::kAdmitted:
      record_.cached_tokens = event.admitted().cached_tokens();
      return;
    case v1::PrefillEvent::kProgress:
      if (options_.report_progress && event.progress().computed_tokens() > progress_) {
        progress_ = event.progress().computed_tokens();
        actions_->WriteProgress(progress_);
      }
      return;
    case v1::PrefillEvent::kPromptLogprobs: {
      // A retry computes them again: what was sent is not repeated.
      const auto& rows = event.prompt_logprobs();
      if (rows.first_index() < prompt_logprobs_end_) return;
      prompt_logprobs_end_ = rows.first_index() + rows.logprobs_size();
      actions_->WritePromptLogprobs(rows.first_index(), rows.logprobs());
      return;
    }
    case v1::PrefillEvent::kFirstToken: {
      const v1::PrefillEvent::FirstToken& first = event.first_token();
      if (next_index_ != 0) return actions_->OnStaleEvent();
      record_.prefill_ms = first.prefill_ms();
      actions_->OnPromptComputed();
      const v1::SampledToken* const token = &first.token();
      if (!Emit(&token, 1, now)) return;
      if (first.finished()) {
        FinishByToken(first.finished_by_length());
        return;
      }
      if (held_.empty() && !held_finished_) return;
      std::vector<v1::SampledToken> held = std::move(held_);
      held_.clear();
      std::vector<const v1::SampledToken*> pointers;
      for (const v1::SampledToken& sampled : held) pointers.push_back(&sampled);
      if (!pointers.empty() && !Emit(pointers.data(), pointers.size(), now)) return;
      if (held_finished_) OnDecodeFinished(finished_, now);
      return;
    }
    case v1::PrefillEvent::kHandoffDone:
    case v1::PrefillEvent::EVENT_NOT_SET:
      return;
  }
}

void RequestPipeline::OnPrefillEnd(uint32_t attempt, const absl::Status& status, absl::Time now) {
  if (!IsCurrent(attempt) || !prefill_open_) return;
  prefill_open_ = false;
  if (next_index_ == 0) {
    OnAttemptFailed(FailedPart::kPrefill,
                    status.ok() ? absl::UnavailableError("prefill ended without a token") : status,
                    now);
    return;
  }
  // After token 1 the hand-off may still succeed or have succeeded; decode knows.
  if (!status.ok()) prefill_error_ = status;
}

void RequestPipeline::OnPrefillLost(uint32_t attempt, absl::Time now) {
  if (attempt != attempt_ || state_ != State::kRunning || !prefill_open_) return;
  if (next_index_ == 0) actions_->CancelPrefill();
  OnPrefillEnd(attempt, absl::UnavailableError("the prefill worker is lost"), now);
}

// ---- decode
// ---------------------------------------------------------------------------------------

void RequestPipeline::OnDecodeEvent(uint32_t attempt, const v1::DecodeEvent& event,
                                    absl::Time now) {
  if (!IsCurrent(attempt) || !decode_open_) return;
  switch (event.event_case()) {
    case v1::DecodeEvent::kStarted: {
      const v1::DecodeEvent::Started& started = event.started();
      record_.transfer_ms = started.transfer_ms();
      record_.transfer_exposed_ms = started.transfer_exposed_ms();
      record_.shipped_bytes = started.shipped_bytes();
      record_.recomputed_tokens = started.recomputed_tokens();
      if (!handoff_done_ && !monolithic_) actions_->OnHandoff(true);
      handoff_done_ = true;
      return;
    }
    case v1::DecodeEvent::kProgress:
      record_.cached_tokens = event.progress().cached_tokens();
      if (options_.report_progress && event.progress().computed_tokens() > progress_) {
        progress_ = event.progress().computed_tokens();
        actions_->WriteProgress(progress_);
      }
      return;
    case v1::DecodeEvent::kPromptLogprobs: {
      const auto& rows = event.prompt_logprobs();
      if (rows.first_index() < prompt_logprobs_end_) return;
      prompt_logprobs_end_ = rows.first_index() + rows.logprobs_size();
      actions_->WritePromptLogprobs(rows.first_index(), rows.logprobs());
      return;
    }
    case v1::DecodeEvent::kTokens:
      OnTokens(event.tokens().first_index(), event.tokens().tokens(), now);
      return;
    case v1::DecodeEvent::kFinished:
      OnDecodeFinished(event.finished(), now);
      return;
    case v1::DecodeEvent::kReserved:
    case v1::DecodeEvent::EVENT_NOT_SET:
      return;
  }
}

void RequestPipeline::OnTokens(int32_t first_index,
                               const google::protobuf::RepeatedPtrField<v1::SampledToken>& tokens,
                               absl::Time now) {
  if (next_index_ == 0 && !monolithic_) {
    // They overtook token 1.
    const int32_t next = 1 + static_cast<int32_t>(held_.size());
    if (first_index > next || held_.size() + tokens.size() > kMaxHeldTokens) {
      OnAttemptFailed(
          FailedPart::kDecode,
          absl::InternalError(StrCat("decode sent token ", first_index, " before ", next)), now);
      return;
    }
    if (first_index < next) actions_->OnStaleEvent();
    for (int i = std::min(next - first_index, tokens.size()); i < tokens.size(); ++i) {
      held_.push_back(tokens[i]);
    }
    return;
  }
  if (first_index > next_index_) {
    Fail(absl::InternalError(StrCat("decode sent token ", first_index, " before ", next_index_)),
         "worker_error");
    return;
  }
  // Whatever was written before is not written twice.
  const int32_t known = next_index_ - first_index;
  if (known > 0) actions_->OnStaleEvent();
  if (known >= tokens.size()) return;
  const bool is_first = next_index_ == 0;
  if (is_first) actions_->OnPromptComputed();
  Emit(tokens.data() + known, static_cast<size_t>(tokens.size() - known), now);
  if (is_first) {
    record_.prefill_ms = absl::ToDoubleMilliseconds(now - record_.assigned);
  }
}

bool RequestPipeline::Emit(const v1::SampledToken* const* tokens, size_t count, absl::Time now) {
  if (record_.first_token == absl::InfinitePast()) record_.first_token = now;
  record_.last_token = now;
  batch_.first_index = next_index_;
  batch_.tokens.clear();
  batch_.text.clear();
  int stop_index = -1;
  const size_t room = static_cast<size_t>(std::max(options_.max_tokens - next_index_, 0));
  for (size_t i = 0; i < std::min(count, room) && stop_index < 0; ++i) {
    batch_.tokens.push_back(tokens[i]);
    last_token_id_ = tokens[i]->token_id();
    ++next_index_;
    stop_index = text_.Push(last_token_id_, &batch_.text);
  }
  if (!batch_.tokens.empty()) actions_->WriteTokens(batch_);
  if (stop_index >= 0) {
    FinishByStopString(stop_index, "");
    return false;
  }
  if (count > room) {
    Fail(absl::InternalError(StrCat("a worker sent more than ", options_.max_tokens, " tokens")),
         "worker_error");
    return false;
  }
  return true;
}

void RequestPipeline::OnDecodeFinished(const v1::DecodeEvent::Finished& finished, absl::Time now) {
  if (next_index_ == 0 && !monolithic_) {
    held_finished_ = true;
    finished_ = finished;
    return;
  }
  if (finished.generated_tokens() != next_index_) {
    Fail(absl::InternalError(StrCat("decode counted ", finished.generated_tokens(),
                                    " tokens, the router ", next_index_)),
         "worker_error");
    return;
  }
  decode_open_ = false;  // it ends by itself
  FinishByToken(finished.by_length());
}

void RequestPipeline::OnDecodeEnd(uint32_t attempt, const absl::Status& status, absl::Time now) {
  if (!IsCurrent(attempt) || !decode_open_) return;
  decode_open_ = false;
  if (held_finished_ && status.ok()) return;  // all tokens are here but the first
  const absl::Status error =
      status.ok() ? absl::UnavailableError("decode ended without a last message") : status;
  const bool handoff = !handoff_done_ && common::HasCause(error, common::kHandoffFailed);
  // A prefill worker that is known to be lost explains the failed hand-off; the pair is not to
  // blame.
  if (handoff && prefill_error_.ok()) actions_->OnHandoff(false);
  OnAttemptFailed(handoff ? FailedPart::kHandoff : FailedPart::kDecode, error, now);
}

void RequestPipeline::OnDecodeLost(uint32_t attempt, absl::Time now) {
  if (attempt != attempt_ || state_ != State::kRunning || !decode_open_) return;
  actions_->CancelDecode();
  OnDecodeEnd(attempt, absl::UnavailableError("the decode worker is lost"), now);
}

// ---- the end
// --------------------------------------------------------------------------------------

bool RequestPipeline::EndsSequence() const {
  return next_index_ > options_.min_tokens &&
         std::binary_search(options_.ending_token_ids.begin(), options_.ending_token_ids.end(),
                            last_token_id_);
}

bool RequestPipeline::TryFinishWithoutWorker() {
  const bool ended = EndsSequence();
  if (!ended && next_index_ < options_.max_tokens) return false;
  FinishByToken(/*by_length=*/!ended);
  return true;
}

void RequestPipeline::FinishByToken(bool by_length) {
  FinishInfo info;
  const int stop_index = text_.Flush(&info.text);
  if (stop_index >= 0) return FinishByStopString(stop_index, std::move(info.text));
  info.reason = by_length ? v1::FINISH_REASON_LENGTH : v1::FINISH_REASON_STOP;
  if (!by_length) info.stop_token_id = last_token_id_;
  // Prefill is left alone: its call ends when the hand-off has.
  if (decode_open_) actions_->CancelDecode();
  decode_open_ = false;
  state_ = State::kEnded;
  actions_->Finish(info);
}

void RequestPipeline::FinishByStopString(int stop_index, std::string text) {
  End();
  FinishInfo info;
  info.stop_index = stop_index;
  info.text = std::move(text);
  actions_->Finish(info);
}

void RequestPipeline::End() {
  state_ = State::kEnded;
  if (prefill_open_) actions_->CancelPrefill();
  if (decode_open_) actions_->CancelDecode();
  prefill_open_ = decode_open_ = false;
}

void RequestPipeline::Fail(const absl::Status& status, std::string_view reason) {
  if (state_ == State::kEnded) return;
  End();
  actions_->Fail(status, reason);
}

void RequestPipeline::OnClientCancelled() {
  Fail(absl::CancelledError("cancelled by the client"), "cancelled");
}

void RequestPipeline::OnDeadline() {
  Fail(absl::DeadlineExceededError(StrCat("the deadline passed after ", next_index_, " tokens")),
       "deadline");
}

void RequestPipeline::OnSlowConsumer() {
  Fail(absl::ResourceExhaustedError("slow_consumer: the client does not read its stream"),
       "slow_consumer");
}

void RequestPipeline::OnShutdown() {
  if (next_index_ > 0) {
    return Fail(absl::AbortedError(StrCat("the router stops, after ", next_index_, " tokens")),
                "shutdown");
  }
  Fail(absl::UnavailableError("the router stops"), "shutdown");
}

}  // namespace hyserve::router
