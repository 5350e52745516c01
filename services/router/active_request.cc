#include "services/router/active_request.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "base/strings.h"
#include "services/router/random_ids.h"

namespace hyserve::router {
namespace {

// A client cancels at its own deadline, which is a little earlier than what reaches the server.
constexpr absl::Duration kDeadlineTolerance = absl::Milliseconds(20);

// Two chunks of tokens that wait for the client become one.
bool MergeTokens(v1::GenerateResponse* last, v1::GenerateResponse* next) {
  if (!last->has_tokens() || !next->has_tokens()) return false;
  v1::Tokens* const to = last->mutable_tokens();
  v1::Tokens* const from = next->mutable_tokens();
  to->mutable_token_ids()->MergeFrom(from->token_ids());
  to->mutable_text()->append(from->text());
  for (v1::TokenLogprobs& row : *from->mutable_logprobs()) to->add_logprobs()->Swap(&row);
  return true;
}

}  // namespace

class ActiveRequest::Event {
 public:
  explicit Event(ActiveRequest* request) : request_(request) {
    request_->mutex_.Lock();
    request_->now_ = absl::Now();
  }
  ~Event() {
    const auto releases = std::move(request_->releases_);
    request_->releases_.clear();
    request_->mutex_.Unlock();
    for (const auto& [booking, side] : releases) {
      if (side == WorkerSide::kPrefill) {
        request_->router_->dispatcher->ReleasePrefill(booking);
      } else {
        request_->router_->dispatcher->ReleaseDecode(booking);
      }
    }
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

 private:
  ActiveRequest* const request_;
};

grpc::ServerWriteReactor<grpc::ByteBuffer>* ActiveRequest::Start(
    const RouterContext* router, grpc::CallbackServerContext* context,
    const absl::StatusOr<v1::GenerateRequest>& request) {
  const auto active = std::make_shared<ActiveRequest>(router, context);
  common::StreamWriterOptions options;
  options.backlog_tokens = router->limits.backlog_tokens;
  options.backlog_bytes = router->limits.backlog_bytes;
  options.slow_consumer_kill = router->limits.slow_consumer_kill;
  options.timers = router->timers;
  router->live->Attach(active.get(), active);
  active->writer_ = Writer::Create(context, options, active, MergeTokens);
  grpc::ServerWriteReactor<grpc::ByteBuffer>* const reactor = active->writer_->reactor();
  active->Begin(request);
  return reactor;
}

ActiveRequest::ActiveRequest(const RouterContext* router, grpc::CallbackServerContext* context)
    : router_(router), context_(context) {}

ActiveRequest::~ActiveRequest() { router_->live->Detach(this); }

// ---- start-up -------------------------------------------------------------------------------

void ActiveRequest::Begin(const absl::StatusOr<v1::GenerateRequest>& request)
    ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Event event(this);
  router_->metrics->OnArrived();
  arrival_ = now_;
  const absl::Time asked = absl::FromChrono(context_->deadline());
  deadline_ = std::min(asked, now_ + router_->limits.max_deadline);
  // Without a deadline gRPC says "the end of time".
  if (asked > now_ + absl::Hours(24 * 365)) deadline_ = now_ + router_->limits.default_deadline;
  const absl::Status status = request.ok() ? Accept(*request) : request.status();
  if (!status.ok()) Refuse(status);
}

absl::Status ActiveRequest::Accept(const v1::GenerateRequest& request) {
  if (deadline_ <= now_) return absl::DeadlineExceededError("the deadline had passed on arrival");
  std::optional<ModelInfo> model = router_->registry->model();
  if (!model.has_value()) {
    return common::WithRetryDelay(
        absl::UnavailableError("no_capacity: no worker has registered yet"), absl::Seconds(1));
  }
  model_ = *std::move(model);
  auto validated = ValidateRequest(request, model_, router_->limits);
  if (!validated.ok()) return validated.status();
  request_ = *std::move(validated);
  if (request_.request_id.empty()) request_.request_id = RandomRequestId();
  absl::Status added = router_->live->Add(request_.request_id, weak_from_this());
  if (!added.ok()) return added;
  live_ = true;
  deadline_timer_ = router_->timers->Schedule(deadline_, [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->OnDeadlineTimer();
  });
  const auto max_tokens = static_cast<size_t>(model_.max_context_tokens);
  if (request.has_token_ids()) {
    const auto& ids = request.token_ids().ids();
    OnPrompt(std::vector<int32_t>(ids.begin(), ids.end()));
    return absl::OkStatus();
  }
  const auto tokenize = [text = router_->text, max_tokens](const v1::GenerateRequest& from) {
    return from.has_text() ? text->TokenizeText(from.text(), max_tokens)
                           : text->TokenizeChat(from.chat(), max_tokens);
  };
  if (static_cast<int64_t>(request.ByteSizeLong()) <= router_->inline_text_bytes) {
    OnPrompt(tokenize(request));
    return absl::OkStatus();
  }
  // The call's own request may be gone before a thread gets to it.
  const bool queued = router_->text_pool->Run(
      [self = shared_from_this(), copy = request, tokenize]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
        absl::StatusOr<std::vector<int32_t>> prompt = tokenize(copy);
        Event event(self.get());
        self->OnPrompt(std::move(prompt));
      });
  if (queued) return absl::OkStatus();
  return common::WithRetryDelay(
      absl::ResourceExhaustedError("overloaded: too many texts wait to be tokenized"),
      absl::Seconds(1));
}

void ActiveRequest::OnPrompt(absl::StatusOr<std::vector<int32_t>> prompt) {
  if (ended_) return;
  absl::Status status = prompt.ok() ? Admit(*std::move(prompt)) : prompt.status();
  if (!status.ok()) Refuse(status);
}

absl::Status ActiveRequest::Admit(std::vector<int32_t> prompt) {
  absl::Status status = ResolveLength(static_cast<int64_t>(prompt.size()), model_, router_->limits,
                                      &request_);
  if (!status.ok()) return status;
  auto text = TextStream::Create(router_->text, request_.stop, request_.include_stop,
                                 request_.keep_special_tokens);
  if (!text.ok()) return text.status();
  if (!request_.has_seed) request_.sampling.seed = RandomWord();
  prompt_ = std::move(prompt);

  PipelineOptions options;
  options.max_tokens = request_.sampling.max_tokens;
  options.min_tokens = request_.sampling.min_tokens;
  options.ending_token_ids = request_.sampling.stop_token_ids;
  if (!request_.sampling.ignore_eos) {
    options.ending_token_ids.insert(options.ending_token_ids.end(), model_.eos_token_ids.begin(),
                                    model_.eos_token_ids.end());
    std::sort(options.ending_token_ids.begin(), options.ending_token_ids.end());
  }
  options.report_progress = request_.report_progress;
  options.max_retries = router_->limits.retries;
  pipeline_.emplace(std::move(options), *std::move(text), this);
  inter_token_ = router_->metrics->NewInterTokenHistogram();

  route_.routing.prompt_tokens = static_cast<int32_t>(prompt_.size());
  route_.routing.max_tokens = request_.sampling.max_tokens;
  route_.routing.tie_seed = RandomWord();
  if (request_.use_prefix_cache) {
    route_.block_hashes = HashBlocks(prompt_, request_.cache_scope, router_->hash_salt);
  }
  // Events of the workers wait for the lock, so `accepted` is the first message all the same.
  if (status = Submit(/*retry=*/false); !status.ok()) return status;
  v1::GenerateResponse response = writer_->NewMessage();
  v1::Accepted* const accepted = response.mutable_accepted();
  accepted->set_request_id(request_.request_id);
  accepted->set_prompt_tokens(static_cast<int32_t>(prompt_.size()));
  accepted->set_model(model_.name);
  writer_->Write(std::move(response));
  return absl::OkStatus();
}

absl::Status ActiveRequest::Submit(bool retry) {
  Dispatcher::Result result =
      router_->dispatcher->Submit(route_, shared_from_this(), deadline_, retry, now_);
  if (absl::Status* status = std::get_if<absl::Status>(&result)) return *std::move(status);
  if (const Ticket* ticket = std::get_if<Ticket>(&result)) {
    ticket_ = *ticket;
  } else {
    UseAssignment(std::get<Assignment>(result));
  }
  return absl::OkStatus();
}

void ActiveRequest::UseAssignment(const Assignment& assignment) {
  assignment_ = assignment;
  if (!dispatched_) queue_time_ = now_ - arrival_;
  dispatched_ = true;
  pipeline_->OnAssigned(pipeline_->attempt(), assignment.prefill == nullptr, now_);
  CallWorkers();
}

void ActiveRequest::FillSampling(v1::WorkerSampling* to) const {
  const sampling::SamplingParams& from = request_.sampling;
  to->set_temperature(from.temperature);
  to->set_top_p(from.top_p);
  to->set_min_p(from.min_p);
  to->set_top_k(from.top_k);
  to->set_frequency_penalty(from.frequency_penalty);
  to->set_presence_penalty(from.presence_penalty);
  to->set_repetition_penalty(from.repetition_penalty);
  to->set_seed(from.seed);
  for (const auto& [id, bias] : from.logit_bias) (*to->mutable_logit_bias())[id] = bias;
  to->set_max_tokens(from.max_tokens);
  to->set_min_tokens(from.min_tokens);
  to->mutable_stop_token_ids()->Add(from.stop_token_ids.begin(), from.stop_token_ids.end());
  to->set_ignore_eos(from.ignore_eos);
  to->set_num_logprobs(from.num_logprobs);
}

void ActiveRequest::CallWorkers() {
  const uint32_t attempt = pipeline_->attempt();
  v1::DecodeRequest decode;
  decode.mutable_id()->set_request_id(request_.request_id);
  decode.mutable_id()->set_attempt(attempt);
  decode.mutable_prompt()->Add(prompt_.begin(), prompt_.end());
  FillSampling(decode.mutable_sampling());
  decode.set_cache_scope(request_.cache_scope);
  decode.set_use_prefix_cache(request_.use_prefix_cache);
  decode.set_num_prompt_logprobs(-1);
  open_calls_.push_back({attempt, WorkerSide::kDecode, assignment_.booking});
  if (assignment_.prefill == nullptr) {
    decode.set_num_prompt_logprobs(request_.prompt_logprobs);
    decode_call_ = assignment_.decode->link->Decode(decode, deadline_, shared_from_this());
    return;
  }
  const v1::Registration& source = assignment_.prefill->registration;
  v1::TransferTicket* const ticket = decode.mutable_ticket();
  ticket->set_transfer_id(RandomTransferId());
  ticket->set_attempt(attempt);
  *ticket->mutable_source() = source.transfer();
  ticket->set_layout_fingerprint(source.layout_fingerprint());
  decode_call_ = assignment_.decode->link->Decode(decode, deadline_, shared_from_this());

  v1::PrefillRequest prefill;
  prefill.mutable_id()->Swap(decode.mutable_id());
  prefill.mutable_prompt()->Swap(decode.mutable_prompt());
  prefill.mutable_sampling()->Swap(decode.mutable_sampling());
  prefill.mutable_ticket()->Swap(decode.mutable_ticket());
  prefill.set_num_prompt_logprobs(request_.prompt_logprobs);
  prefill.set_cache_scope(request_.cache_scope);
  prefill.set_use_prefix_cache(request_.use_prefix_cache);
  open_calls_.push_back({attempt, WorkerSide::kPrefill, assignment_.booking});
  prefill_call_ = assignment_.prefill->link->Prefill(prefill, deadline_, shared_from_this());
}

// ---- events ---------------------------------------------------------------------------------

void ActiveRequest::OnStreamCancelled() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Event event(this);
  if (ended_) return;
  const bool late = now_ + kDeadlineTolerance >= deadline_;
  if (!pipeline_.has_value()) {
    Refuse(late ? absl::DeadlineExceededError("the deadline passed")
                : absl::CancelledError("cancelled by the client"));
  } else if (late) {
    pipeline_->OnDeadline();
  } else {
    pipeline_->OnClientCancelled();
  }
}

void ActiveRequest::OnDeadlineTimer() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Event event(this);
  deadline_timer_ = 0;
  if (ended_) return;
  if (pipeline_.has_value()) {
    pipeline_->OnDeadline();
  } else {
    Refuse(absl::DeadlineExceededError("the deadline passed"));
  }
}

void ActiveRequest::OnStreamWritable() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Event event(this);
  if (decode_call_ != nullptr) decode_call_->Resume();
}

void ActiveRequest::OnSlowConsumer() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Event event(this);
  if (ended_ || !pipeline_.has_value()) return;
  router_->metrics->OnSlowConsumer();
  pipeline_->OnSlowConsumer();
}

void ActiveRequest::OnStreamDone() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Event event(this);
  // Every end goes through Finish, Fail or Refuse before; this is for a stream that broke silently.
  if (!ended_ && pipeline_.has_value()) pipeline_->OnClientCancelled();
}

void ActiveRequest::Shutdown() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Event event(this);
  if (!ended_ && pipeline_.has_value()) pipeline_->OnShutdown();
  if (!ended_) Refuse(absl::UnavailableError("draining: the router stops"));
  CancelPrefill();
  CancelDecode();
}

void ActiveRequest::OnPrefillEvent(uint32_t attempt, const v1::PrefillEvent& event_in)
    ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Event event(this);
  pipeline_->OnPrefillEvent(attempt, event_in, now_);
}

bool ActiveRequest::OnDecodeEvent(uint32_t attempt, const v1::DecodeEvent& event_in)
    ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Event event(this);
  pipeline_->OnDecodeEvent(attempt, event_in, now_);
  return ended_ || !writer_->congested();
}

void ActiveRequest::OnPrefillEnd(uint32_t attempt, const absl::Status& status)
    ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Event event(this);
  for (const OpenCall& call : open_calls_) {
    if (call.attempt == attempt && call.side == WorkerSide::kPrefill) {
      Release(call.booking, WorkerSide::kPrefill);
    }
  }
  pipeline_->OnPrefillEnd(attempt, status, now_);
}

void ActiveRequest::OnDecodeEnd(uint32_t attempt, const absl::Status& status)
    ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Event event(this);
  bool has_prefill = false;
  for (const OpenCall& call : open_calls_) {
    has_prefill |= call.attempt == attempt && call.side == WorkerSide::kPrefill;
  }
  for (const OpenCall& call : open_calls_) {
    if (call.attempt != attempt || call.side != WorkerSide::kDecode) continue;
    Release(call.booking, WorkerSide::kDecode);
    if (!has_prefill) Release(call.booking, WorkerSide::kPrefill);  // monolithic
  }
  pipeline_->OnDecodeEnd(attempt, status, now_);
}

void ActiveRequest::OnAssigned(const Assignment& assignment) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Event event(this);
  ticket_ = 0;
  if (ended_) {
    Release(assignment.booking, WorkerSide::kPrefill);
    Release(assignment.booking, WorkerSide::kDecode);
    return;
  }
  UseAssignment(assignment);
}

void ActiveRequest::OnNotAssigned(const absl::Status& status) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Event event(this);
  ticket_ = 0;
  if (!ended_) pipeline_->OnNotAssigned(status);
}

void ActiveRequest::OnWorkerLost(BookingId booking,
                                 WorkerSide side) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Event event(this);
  if (ended_ || booking != assignment_.booking) return;
  const uint32_t attempt = pipeline_->attempt();
  if (side == WorkerSide::kPrefill) {
    pipeline_->OnPrefillLost(attempt, now_);
  } else {
    pipeline_->OnDecodeLost(attempt, now_);
  }
}

}  // namespace hyserve::router
