#include "services/worker/request_conversion.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "base/strings.h"

namespace hyserve::worker {

sampling::SamplingParams ToSamplingParams(const v1::WorkerSampling& from) {
  sampling::SamplingParams to;
  to.temperature = from.temperature();
  to.top_p = from.top_p();
  to.min_p = from.min_p();
  to.top_k = from.top_k();
  to.frequency_penalty = from.frequency_penalty();
  to.presence_penalty = from.presence_penalty();
  to.repetition_penalty = from.repetition_penalty();
  to.seed = from.seed();
  to.logit_bias.assign(from.logit_bias().begin(), from.logit_bias().end());
  std::sort(to.logit_bias.begin(), to.logit_bias.end());
  to.max_tokens = from.max_tokens();
  to.min_tokens = from.min_tokens();
  to.stop_token_ids.assign(from.stop_token_ids().begin(), from.stop_token_ids().end());
  to.ignore_eos = from.ignore_eos();
  to.num_logprobs = from.num_logprobs();
  return to;
}

void FillSampledToken(const sampling::SampledToken& token, v1::SampledToken* out) {
  out->set_token_id(token.token_id);
  out->set_logprob(token.logprob);
  for (const sampling::TokenLogprob& other : token.top) {
    v1::WorkerTokenLogprob* const top = out->add_top();
    top->set_token_id(other.token_id);
    top->set_logprob(other.logprob);
  }
}

absl::Status CheckRequestId(const v1::RequestId& id) {
  if (id.request_id().empty() || id.request_id().size() > kMaxRequestIdBytes) {
    return absl::InvalidArgumentError(StrCat("id.request_id: must have 1 to ", kMaxRequestIdBytes,
                                             " bytes; got ", id.request_id().size()));
  }
  if (id.attempt() == 0) return absl::InvalidArgumentError("id.attempt: counts from 1");
  return absl::OkStatus();
}

absl::Status CheckCacheScope(std::string_view scope) {
  if (scope.size() <= kMaxCacheScopeBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat("cache_scope: must have at most ", kMaxCacheScopeBytes,
                                           " bytes; got ", scope.size()));
}

absl::StatusOr<ParsedTicket> ParseTicket(const v1::TransferTicket& ticket, uint32_t attempt,
                                         std::string_view layout_fingerprint,
                                         std::string_view transport) {
  ParsedTicket parsed;
  auto id = kv_transfer::TransferId::FromBytes(ticket.transfer_id());
  if (!id.ok()) {
    return absl::InvalidArgumentError(
        StrCat("ticket.transfer_id: ", ToStd(id.status().message())));
  }
  if (ticket.attempt() != attempt) {
    return absl::InvalidArgumentError(StrCat("ticket.attempt: is ", ticket.attempt(),
                                             ", the request's is ", attempt));
  }
  if (ticket.source().incarnation() == 0 || ticket.source().transport_address().empty()) {
    return absl::InvalidArgumentError("ticket.source: is incomplete");
  }
  if (ticket.source().transport() != transport) {
    return absl::FailedPreconditionError(StrCat("transport_mismatch: the ticket is for ",
                                                ticket.source().transport(), ", this worker uses ",
                                                transport));
  }
  if (ticket.layout_fingerprint() != layout_fingerprint) {
    return absl::FailedPreconditionError(
        "layout_mismatch: the ticket's cache layout is not this worker's");
  }
  parsed.id = *id;
  parsed.epoch = attempt;
  parsed.source = {.transport_address = ticket.source().transport_address(),
                   .incarnation = ticket.source().incarnation()};
  return parsed;
}

absl::Time ClampDeadline(absl::Time deadline, absl::Duration max_deadline) {
  return std::min(deadline, absl::Now() + max_deadline);
}

std::string_view FinishedReason(sampling::FinishReason reason) {
  switch (reason) {
    case sampling::FinishReason::kStopToken:
    case sampling::FinishReason::kEndOfSequence: return "stop";
    case sampling::FinishReason::kLength: return "length";
    default: return "";
  }
}

}  // namespace hyserve::worker
