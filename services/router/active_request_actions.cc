// What the pipeline makes a request do: calls, messages to the client, the end.
#include <utility>

#include "base/strings.h"
#include "services/router/active_request.h"

namespace hyserve::router {
namespace {

constexpr int kFlushInterTokenEvery = 256;

std::string_view RefusalReason(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kAlreadyExists: return "duplicate";
    case absl::StatusCode::kResourceExhausted: return "overload";
    case absl::StatusCode::kUnavailable:
      return ToStd(status.message()).substr(0, 8) == "draining" ? "draining"
                                                                        : "no_capacity";
    case absl::StatusCode::kCancelled: return "cancelled";
    case absl::StatusCode::kDeadlineExceeded: return "deadline";
    default: return "invalid";
  }
}

}  // namespace

bool ActiveRequest::Retry(uint32_t attempt, FailedPart failed) {
  if (!router_->dispatcher->TryRetry()) return false;
  router_->metrics->OnRetry(FailedPartName(failed));
  RoutingRequest& routing = route_.routing;
  const WorkerId prefill = assignment_.prefill == nullptr ? 0 : assignment_.prefill->id;
  const WorkerId decode = assignment_.decode->id;
  if (failed == FailedPart::kHandoff) {
    routing.avoid_pairs.emplace_back(prefill, decode);
  } else {
    routing.avoid_workers.push_back(failed == FailedPart::kPrefill ? prefill : decode);
  }
  prefill_call_ = nullptr;
  decode_call_ = nullptr;
  return Submit(/*retry=*/true).ok();
}

void ActiveRequest::CancelPrefill() {
  if (prefill_call_ != nullptr) prefill_call_->Cancel();
}

void ActiveRequest::CancelDecode() {
  if (decode_call_ != nullptr) decode_call_->Cancel();
}

void ActiveRequest::WriteProgress(int32_t computed_tokens) {
  v1::GenerateResponse response = writer_->NewMessage();
  response.mutable_progress()->set_computed_tokens(computed_tokens);
  response.mutable_progress()->set_prompt_tokens(static_cast<int32_t>(prompt_.size()));
  writer_->Write(std::move(response));
}

void ActiveRequest::FillLogprobs(const v1::SampledToken& token, v1::TokenLogprobs* out) const {
  const tokenizer::Tokenizer* const tokenizer = router_->text->tokenizer();
  const auto fill = [&](int32_t id, float logprob, v1::TokenLogprob* to) {
    to->set_token_id(id);
    to->set_logprob(logprob);
    if (tokenizer == nullptr) return;
    const std::string_view bytes = tokenizer->TokenBytes(id);
    to->set_token(bytes.data(), bytes.size());
  };
  fill(token.token_id(), token.logprob(), out->mutable_chosen());
  for (const v1::WorkerTokenLogprob& other : token.top()) {
    fill(other.token_id(), other.logprob(), out->add_top());
  }
}

void ActiveRequest::WritePromptLogprobs(
    int32_t first_index, const google::protobuf::RepeatedPtrField<v1::SampledToken>& rows) {
  v1::GenerateResponse response = writer_->NewMessage();
  v1::PromptLogprobs* const out = response.mutable_prompt_logprobs();
  out->set_first_index(first_index);
  for (const v1::SampledToken& row : rows) FillLogprobs(row, out->add_logprobs());
  writer_->Write(std::move(response));
}

void ActiveRequest::WriteTokens(const TokenBatch& batch) {
  const int count = static_cast<int>(batch.tokens.size());
  v1::GenerateResponse response = writer_->NewMessage();
  v1::Tokens* const tokens = response.mutable_tokens();
  tokens->set_first_index(batch.first_index);
  tokens->mutable_token_ids()->Reserve(count);
  for (const v1::SampledToken* token : batch.tokens) {
    tokens->add_token_ids(token->token_id());
    if (request_.sampling.num_logprobs >= 0) FillLogprobs(*token, tokens->add_logprobs());
  }
  tokens->set_text(batch.text);
  writer_->Write(std::move(response), count);
  if (batch.first_index > 0) {
    inter_token_->Observe(absl::ToDoubleSeconds(now_ - last_write_) / count, count);
    if (inter_token_->pending() >= kFlushInterTokenEvery) inter_token_->Flush();
  }
  last_write_ = now_;
}

void ActiveRequest::OnPromptComputed() { Release(assignment_.booking, WorkerSide::kPrefill); }

void ActiveRequest::OnHandoff(bool ok) {
  if (assignment_.prefill == nullptr) return;
  router_->registry->RecordHandoff(assignment_.prefill->id, assignment_.decode->id, ok, now_);
}

void ActiveRequest::OnStaleEvent() { router_->metrics->OnStaleEvent(); }

void ActiveRequest::FillFinished(const FinishInfo& info, v1::Finished* finished) {
  const PipelineRecord& record = pipeline_->record();
  finished->set_reason(info.reason);
  if (info.stop_index >= 0) finished->set_stop(request_.stop[info.stop_index]);
  finished->set_stop_token_id(info.stop_token_id);
  finished->set_text(info.text);
  finished->set_seed(request_.sampling.seed);
  v1::Usage* const usage = finished->mutable_usage();
  usage->set_prompt_tokens(static_cast<int32_t>(prompt_.size()));
  usage->set_generated_tokens(pipeline_->generated_tokens());
  usage->set_cached_tokens(record.cached_tokens);
  v1::Timings* const timings = finished->mutable_timings();
  timings->set_queue_ms(absl::ToDoubleMilliseconds(queue_time_));
  timings->set_time_to_first_token_ms(absl::ToDoubleMilliseconds(record.first_token - arrival_));
  timings->set_prefill_ms(record.prefill_ms);
  timings->set_transfer_ms(record.transfer_ms);
  timings->set_transfer_exposed_ms(record.transfer_exposed_ms);
  timings->set_decode_ms(absl::ToDoubleMilliseconds(record.last_token - record.first_token));
  timings->set_total_ms(absl::ToDoubleMilliseconds(now_ - arrival_));
  v1::Handoff* const handoff = finished->mutable_handoff();
  handoff->set_attempts(record.attempts);
  handoff->set_decode_worker(assignment_.decode->registration.name());
  if (assignment_.prefill == nullptr) return;
  handoff->set_prefill_worker(assignment_.prefill->registration.name());
  handoff->set_shipped_bytes(record.shipped_bytes);
  handoff->set_recomputed_tokens(record.recomputed_tokens);
  // A hand-off that was not needed ships nothing with full attention either.
  if (record.shipped_bytes > 0) {
    const auto blocks = (prompt_.size() + kTokensPerBlock - 1) / kTokensPerBlock;
    handoff->set_full_attention_bytes(
        blocks * assignment_.prefill->registration.full_attention_bytes_per_block());
  }
}

void ActiveRequest::Finish(const FinishInfo& info) {
  v1::GenerateResponse response = writer_->NewMessage();
  FillFinished(info, response.mutable_finished());
  RecordEnd(absl::OkStatus(), info.stop_index >= 0 ? "stop_string" : "end",
            info.reason == v1::FINISH_REASON_LENGTH ? "length" : "stop");
  writer_->WriteAndFinish(std::move(response), absl::OkStatus());
}

void ActiveRequest::Fail(const absl::Status& status, std::string_view reason) {
  if (!dispatched_ && (reason == "overload" || reason == "no_capacity")) {
    router_->metrics->OnRejected(reason);
  }
  RecordEnd(status, reason, "");
  if (const std::optional<absl::Duration> delay = common::RetryDelay(status)) {
    context_->AddTrailingMetadata("grpc-retry-pushback-ms",
                                  StrCat(absl::ToInt64Milliseconds(*delay)));
  }
  writer_->Abort(status);
}

void ActiveRequest::Refuse(const absl::Status& status) {
  if (ended_) return;
  const std::string_view reason = RefusalReason(status);
  if (reason != "cancelled" && reason != "deadline") router_->metrics->OnRejected(reason);
  dispatched_ = true;  // OnRejected was called for it
  Fail(status, reason);
}

void ActiveRequest::RecordEnd(const absl::Status& status, std::string_view reason,
                              std::string_view finish_reason) {
  ended_ = true;
  if (live_) router_->live->Remove(request_.request_id);
  if (deadline_timer_ != 0) router_->timers->Cancel(deadline_timer_);
  deadline_timer_ = 0;
  if (ticket_ != 0) router_->dispatcher->Withdraw(ticket_);
  ticket_ = 0;
  RequestOutcome outcome;
  outcome.code = status.code();
  outcome.reason = reason;
  outcome.finish_reason = finish_reason;
  outcome.total = now_ - arrival_;
  if (pipeline_.has_value()) {
    const PipelineRecord& record = pipeline_->record();
    outcome.prompt_tokens = static_cast<int32_t>(prompt_.size());
    outcome.generated_tokens = pipeline_->generated_tokens();
    outcome.dispatched = record.assigned != absl::InfinitePast();
    outcome.has_first_token = record.first_token != absl::InfinitePast();
    outcome.queue = queue_time_;
    if (outcome.has_first_token) {
      outcome.first_token = record.first_token - arrival_;
      outcome.prefill = record.first_token - record.assigned;
      outcome.decode = record.last_token - record.first_token;
    }
    inter_token_->Flush();
  }
  router_->metrics->OnEnded(outcome);
}

void ActiveRequest::Release(BookingId booking, WorkerSide side) {
  if (booking != 0) releases_.emplace_back(booking, side);
}

}  // namespace hyserve::router
