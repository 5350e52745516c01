#include "tests/support/fake_worker.h"

#include <cstdlib>
#include <iostream>
#include <numeric>
#include <random>
#include <thread>

#include "absl/time/clock.h"

namespace hyserve::test {
namespace {

constexpr uint64_t kFullAttentionBytesPerBlock = 5000;

template <typename Prompt>
int32_t TokenAt(const Prompt& prompt, int32_t index) {
  const int64_t sum = std::accumulate(prompt.begin(), prompt.end(), int64_t{index} * 7);
  return 'a' + static_cast<int32_t>(sum % 26);
}

}  // namespace

int32_t FakeToken(const google::protobuf::RepeatedField<int32_t>& prompt, int32_t index) {
  return TokenAt(prompt, index);
}

std::string FakeText(const std::vector<int32_t>& prompt, int32_t count) {
  std::string text;
  for (int32_t i = 0; i < count; ++i) text.push_back(static_cast<char>(TokenAt(prompt, i)));
  return text;
}

void SendFirstToken(const v1::PrefillRequest& request, PrefillWriter* writer) {
  v1::PrefillEvent event;
  auto* const first = event.mutable_first_token();
  first->mutable_token()->set_token_id(FakeToken(request.prompt(), 0));
  first->mutable_token()->set_logprob(-0.5f);
  first->set_prefill_ms(1.5);
  first->set_finished(request.sampling().max_tokens() == 1);
  first->set_finished_by_length(first->finished());
  writer->Write(event);
}

void SendTokens(const v1::DecodeRequest& request, int32_t first_index, int32_t count,
                DecodeWriter* writer) {
  v1::DecodeEvent event;
  event.mutable_tokens()->set_first_index(first_index);
  for (int32_t i = 0; i < count; ++i) {
    auto* const token = event.mutable_tokens()->add_tokens();
    token->set_token_id(FakeToken(request.prompt(), first_index + i));
    if (request.sampling().num_logprobs() > 0) {
      token->add_top()->set_token_id('z');
    }
  }
  writer->Write(event);
}

void SendStarted(DecodeWriter* writer, uint64_t shipped_bytes) {
  v1::DecodeEvent event;
  event.mutable_started()->set_transfer_ms(2);
  event.mutable_started()->set_transfer_exposed_ms(0.25);
  event.mutable_started()->set_shipped_bytes(shipped_bytes);
  writer->Write(event);
}

void SendFinished(int32_t generated_tokens, bool by_length, DecodeWriter* writer) {
  v1::DecodeEvent event;
  event.mutable_finished()->set_by_length(by_length);
  event.mutable_finished()->set_generated_tokens(generated_tokens);
  writer->Write(event);
}

grpc::Status UntilCancelled(grpc::ServerContext* context) {
  for (int i = 0; i < 10'000 && !context->IsCancelled(); ++i) absl::SleepFor(absl::Milliseconds(1));
  return grpc::Status(grpc::StatusCode::CANCELLED, "cancelled");
}

grpc::Status GoodPrefill(grpc::ServerContext* context, const v1::PrefillRequest& request,
                         PrefillWriter* writer) {
  v1::PrefillEvent event;
  event.mutable_admitted()->set_cached_tokens(request.use_prefix_cache() ? 64 : 0);
  writer->Write(event);
  event.mutable_progress()->set_computed_tokens(request.prompt_size());
  writer->Write(event);
  SendFirstToken(request, writer);
  event.mutable_handoff_done()->set_reason("committed");
  writer->Write(event);
  return grpc::Status::OK;
}

grpc::Status GoodDecode(grpc::ServerContext* context, const v1::DecodeRequest& request,
                        DecodeWriter* writer) {
  const int32_t max_tokens = request.sampling().max_tokens();
  int32_t index = 0;
  if (request.has_ticket()) {
    v1::DecodeEvent event;
    event.mutable_reserved()->set_queue_ms(0.1);
    writer->Write(event);
    SendStarted(writer);
    index = 1;
  }
  for (; index < max_tokens && !context->IsCancelled(); ++index)
    SendTokens(request, index, 1, writer);
  if (context->IsCancelled()) return grpc::Status(grpc::StatusCode::CANCELLED, "cancelled");
  SendFinished(max_tokens, /*by_length=*/true, writer);
  return grpc::Status::OK;
}

class FakeWorker::Prefills final : public v1::PrefillWorker::Service {
 public:
  explicit Prefills(FakeWorker* worker) : worker_(worker) {}
  grpc::Status Prefill(grpc::ServerContext* context, const v1::PrefillRequest* request,
                       PrefillWriter* writer) override {
    PrefillHandler handler;
    {
      std::lock_guard<std::mutex> lock(worker_->mutex_);
      handler = worker_->on_prefill_;
    }
    ++worker_->prefill_calls_;
    const grpc::Status status = handler(context, *request, writer);
    if (context->IsCancelled()) ++worker_->cancelled_calls_;
    return status;
  }

 private:
  FakeWorker* const worker_;
};

class FakeWorker::Decodes final : public v1::DecodeWorker::Service {
 public:
  explicit Decodes(FakeWorker* worker) : worker_(worker) {}
  grpc::Status Decode(grpc::ServerContext* context, const v1::DecodeRequest* request,
                      DecodeWriter* writer) override {
    DecodeHandler handler;
    {
      std::lock_guard<std::mutex> lock(worker_->mutex_);
      handler = worker_->on_decode_;
    }
    ++worker_->decode_calls_;
    const grpc::Status status = handler(context, *request, writer);
    if (context->IsCancelled()) ++worker_->cancelled_calls_;
    return status;
  }

 private:
  FakeWorker* const worker_;
};

FakeWorker::FakeWorker(const FakeWorkerOptions& options)
    : options_(options),
      prefills_(std::make_unique<Prefills>(this)),
      decodes_(std::make_unique<Decodes>(this)) {
  common::ServerOptions server_options;
  server_options.address = "127.0.0.1:0";
  auto server = common::GrpcServer::Start(server_options, {prefills_.get(), decodes_.get()});
  if (!server.ok()) {
    std::cerr << server.status().ToString() << std::endl;
    std::abort();
  }
  server_ = *std::move(server);
  common::RegistrationOptions registration;
  registration.router_address = options.router_registry;
  registration.report_interval = absl::Milliseconds(5);
  registration.first_backoff = absl::Milliseconds(10);
  v1::Registration& self = registration.registration;
  self.set_name(options.name);
  self.set_role(options.role);
  self.set_address(server_->address());
  self.mutable_transfer()->set_incarnation(std::random_device{}() + uint64_t{1});
  self.mutable_transfer()->set_transport("loopback");
  self.set_model_name(options.model_name);
  self.set_model_digest("digest");
  self.set_layout_fingerprint(options.layout_fingerprint);
  self.set_vocab_size(259);
  self.set_max_context_tokens(options.max_context_tokens);
  self.set_kv_bytes_per_block(1000);
  self.set_full_attention_bytes_per_block(kFullAttentionBytesPerBlock);
  self.set_slab_bytes(100);
  self.add_eos_token_ids(256);
  self.set_protocol_version(1);
  self.set_max_sequences(options.max_sequences);
  registration.load = [this] {
    v1::LoadReport load;
    load.set_blocks_total(options_.blocks);
    load.set_blocks_free(options_.blocks);
    load.set_draining(draining_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      load.set_failure(failure_);
    }
    load.set_prefill_tokens_per_second(options_.prefill_tokens_per_second);
    return load;
  };
  registration_ = std::make_unique<common::WorkerRegistrationClient>(std::move(registration));
}

FakeWorker::~FakeWorker() { Kill(); }

void FakeWorker::OnPrefill(PrefillHandler handler) {
  std::lock_guard<std::mutex> lock(mutex_);
  on_prefill_ = std::move(handler);
}

void FakeWorker::OnDecode(DecodeHandler handler) {
  std::lock_guard<std::mutex> lock(mutex_);
  on_decode_ = std::move(handler);
}

void FakeWorker::Kill() {
  registration_ = nullptr;
  server_->Shutdown(absl::ZeroDuration());
}

void FakeWorker::DropRegistration() { registration_ = nullptr; }

void FakeWorker::SetDraining(bool draining) {
  draining_ = draining;
  if (registration_ != nullptr) registration_->ReportNow();
}

void FakeWorker::SetFailure(const std::string& why) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    failure_ = why;
  }
  if (registration_ != nullptr) registration_->ReportNow();
}

bool FakeWorker::WaitRegistered() const { return registration_->WaitRegistered(absl::Seconds(10)); }

}  // namespace hyserve::test
