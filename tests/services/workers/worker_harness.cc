#include "tests/services/workers/worker_harness.h"

#include <httplib.h>

#include <cstdlib>
#include <iostream>
#include <sstream>

#include "absl/time/clock.h"
#include "services/common/status_mapping.h"

namespace hyserve::test {
namespace {

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::cerr << value.status().ToString() << std::endl;
    std::abort();
  }
  return *std::move(value);
}

std::unique_ptr<worker::WorkerCore> MakeCore(const common::Config& config, const std::string& role,
                                             const HarnessOptions& options) {
  common::WorkerSettings settings;
  settings.name = role;
  settings.role = role;
  settings.metrics_listen = "127.0.0.1:0";
  settings.threads = 1;
  settings.kv_memory_bytes = options.kv_memory_bytes;
  settings.max_sequences = options.max_sequences;
  settings.chunk_tokens = options.chunk_tokens;
  settings.snapshot_slabs = 4;
  return OrDie(worker::WorkerCore::Create(config, settings));
}

std::shared_ptr<grpc::Channel> Connect(worker::WorkerHost& host) {
  return grpc::CreateChannel(host.address(), grpc::InsecureChannelCredentials());
}

void SetDeadline(grpc::ClientContext* context, absl::Duration timeout) {
  context->set_deadline(absl::ToChronoTime(absl::Now() + timeout));
}

bool IsIdle(const v1::GetInvariantsResponse& now) {
  return now.blocks_free() + now.blocks_cached() == now.blocks_total() && now.blocks_used() == 0 &&
         now.blocks_quarantined() == 0 && now.slabs_used() == 0 &&
         now.live_sequences() == 0 && now.open_offers() == 0 && now.open_imports() == 0 &&
         now.open_streams() == 0;
}

}  // namespace

std::vector<int32_t> MakePrompt(int32_t length, uint32_t salt) {
  std::vector<int32_t> prompt;
  uint32_t state = salt * 2654435761u + 12345u;
  for (int32_t i = 0; i < length; ++i) {
    state = state * 1664525u + 1013904223u;
    prompt.push_back(1 + static_cast<int32_t>((state >> 16) % 255));
  }
  return prompt;
}

v1::WorkerSampling Greedy(int32_t max_tokens) {
  v1::WorkerSampling sampling;
  sampling.set_top_p(1);
  sampling.set_repetition_penalty(1);
  sampling.set_max_tokens(max_tokens);
  sampling.set_ignore_eos(true);
  sampling.set_num_logprobs(-1);
  return sampling;
}

v1::WorkerSampling Seeded(int32_t max_tokens, uint64_t seed) {
  v1::WorkerSampling sampling = Greedy(max_tokens);
  sampling.set_temperature(1);
  sampling.set_top_p(0.95f);
  sampling.set_frequency_penalty(0.5f);
  sampling.set_repetition_penalty(1.1f);
  sampling.set_seed(seed);
  return sampling;
}

WorkerHarness::WorkerHarness(const HarnessOptions& options) : network_({}) {
  config_.model.random_preset = "tiny";
  config_.model.name = "tiny";
  config_.model.random_seed = 7;
  config_.transfer.lease = options.lease;
  config_.transfer.lease_renew = options.lease_renew;
  config_.limits.slow_consumer_kill = options.slow_consumer_kill;
  prefill_ = OrDie(prefill_worker::PrefillWorker::Start(MakeCore(config_, "prefill", options),
                                                        network_.NewTransport(),
                                                        /*registers=*/false));
  decode_ = OrDie(decode_worker::DecodeWorker::Start(MakeCore(config_, "decode", options),
                                                     network_.NewTransport(),
                                                     /*registers=*/false));
  prefill_stub_ = v1::PrefillWorker::NewStub(Connect(prefill_->host()));
  grpc::ChannelArguments arguments;
  if (options.small_stream_window) {
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64 << 10);
  }
  decode_stub_ = v1::DecodeWorker::NewStub(grpc::CreateCustomChannel(
      decode_->host().address(), grpc::InsecureChannelCredentials(), arguments));
  prefill_admin_ = v1::WorkerAdmin::NewStub(Connect(prefill_->host()));
  decode_admin_ = v1::WorkerAdmin::NewStub(Connect(decode_->host()));
  if (!options.monolithic) return;
  monolithic_ = OrDie(decode_worker::DecodeWorker::Start(MakeCore(config_, "monolithic", options),
                                                         nullptr, /*registers=*/false));
  monolithic_stub_ = v1::DecodeWorker::NewStub(Connect(monolithic_->host()));
}

WorkerHarness::~WorkerHarness() = default;

WorkerHarness::Request WorkerHarness::NewRequest(const std::vector<int32_t>& prompt,
                                                 const v1::WorkerSampling& sampling) {
  const v1::Registration source = prefill_->host().Describe();
  Request request;
  v1::PrefillRequest& prefill = request.prefill;
  prefill.mutable_id()->set_request_id("request-" + std::to_string(next_request_++));
  prefill.mutable_id()->set_attempt(1);
  prefill.mutable_prompt()->Add(prompt.begin(), prompt.end());
  *prefill.mutable_sampling() = sampling;
  prefill.set_num_prompt_logprobs(-1);
  prefill.set_use_prefix_cache(true);
  v1::TransferTicket* const ticket = prefill.mutable_ticket();
  ticket->set_transfer_id(kv_transfer::TransferId::Random().ToBytes());
  ticket->set_attempt(1);
  *ticket->mutable_source() = source.transfer();
  ticket->set_layout_fingerprint(source.layout_fingerprint());
  v1::DecodeRequest& decode = request.decode;
  *decode.mutable_id() = prefill.id();
  *decode.mutable_prompt() = prefill.prompt();
  *decode.mutable_sampling() = sampling;
  *decode.mutable_ticket() = *ticket;
  decode.set_num_prompt_logprobs(-1);
  decode.set_use_prefix_cache(true);
  return request;
}

v1::DecodeRequest WorkerHarness::WithoutTicket(const Request& request) {
  v1::DecodeRequest decode = request.decode;
  decode.clear_ticket();
  return decode;
}

PrefillReply WorkerHarness::Prefill(const v1::PrefillRequest& request, const OnPrefill& on_event,
                                    absl::Duration timeout) {
  grpc::ClientContext context;
  SetDeadline(&context, timeout);
  const auto reader = prefill_stub_->Prefill(&context, request);
  PrefillReply reply;
  v1::PrefillEvent event;
  while (reader->Read(&event)) {
    if (event.has_admitted()) reply.cached_tokens = event.admitted().cached_tokens();
    if (event.has_progress()) reply.progress.push_back(event.progress().computed_tokens());
    if (event.has_prompt_logprobs()) {
      reply.prompt_logprobs += event.prompt_logprobs().logprobs_size();
    }
    if (event.has_first_token()) {
      reply.first_token = event.first_token().token().token_id();
      reply.finished = event.first_token().finished();
      reply.finished_by_length = event.first_token().finished_by_length();
    }
    if (event.has_handoff_done()) reply.handoff = event.handoff_done().reason();
    if (on_event) on_event(&context, event);
  }
  reply.status = common::FromGrpcStatus(reader->Finish());
  return reply;
}

namespace {

DecodeReply ReadDecode(v1::DecodeWorker::Stub* stub, const v1::DecodeRequest& request,
                       const WorkerHarness::OnDecode& on_event, absl::Duration timeout) {
  grpc::ClientContext context;
  SetDeadline(&context, timeout);
  const auto reader = stub->Decode(&context, request);
  DecodeReply reply;
  v1::DecodeEvent event;
  while (reader->Read(&event)) {
    reply.reserved |= event.has_reserved();
    if (event.has_started()) {
      reply.started = true;
      reply.handoff = event.started();
    }
    if (event.has_tokens()) {
      const int32_t first = event.tokens().first_index();
      if (reply.first_index < 0) reply.first_index = first;
      const int32_t next = reply.first_index + static_cast<int32_t>(reply.tokens.size());
      reply.contiguous &= first == next;
      for (const v1::SampledToken& token : event.tokens().tokens()) {
        reply.tokens.push_back(token.token_id());
      }
    }
    if (event.has_finished()) {
      ++reply.finished_count;
      reply.finished = event.finished();
    }
    if (on_event) on_event(&context, event);
  }
  reply.status = common::FromGrpcStatus(reader->Finish());
  return reply;
}

}  // namespace

DecodeReply WorkerHarness::Decode(const v1::DecodeRequest& request, const OnDecode& on_event,
                                  absl::Duration timeout) {
  return ReadDecode(decode_stub_.get(), request, on_event, timeout);
}

DecodeReply WorkerHarness::Local(const v1::DecodeRequest& request) {
  return ReadDecode(monolithic_stub_.get(), request, nullptr, absl::Seconds(30));
}

WorkerHarness::Reply WorkerHarness::Run(const Request& request, const OnPrefill& on_prefill,
                                        const OnDecode& on_decode, absl::Duration timeout) {
  Reply reply;
  std::thread prefill([&] { reply.prefill = Prefill(request.prefill, on_prefill, timeout); });
  reply.decode = Decode(request.decode, on_decode, timeout);
  prefill.join();
  if (reply.prefill.first_token >= 0) reply.tokens.push_back(reply.prefill.first_token);
  reply.tokens.insert(reply.tokens.end(), reply.decode.tokens.begin(), reply.decode.tokens.end());
  return reply;
}

bool WorkerHarness::WaitIdle() {
  const absl::Time end = absl::Now() + absl::Seconds(20);
  const auto held = [this]() -> std::string {
    std::string text;
    const auto look = [&text](const v1::GetInvariantsResponse& now) {
      if (!IsIdle(now)) text += now.ShortDebugString() + "\n";
    };
    look(prefill_->Invariants());
    look(decode_->Invariants());
    if (monolithic_ != nullptr) look(monolithic_->Invariants());
    return text;
  };
  while (true) {
    const std::string text = held();
    if (text.empty()) return true;
    if (absl::Now() > end) {
      std::cerr << "still held: " << text;
      return false;
    }
    absl::SleepFor(absl::Milliseconds(1));
  }
}

std::string WorkerHarness::Get(worker::WorkerHost& host, const std::string& path) {
  httplib::Client client("127.0.0.1", host.metrics_port());
  const auto response = client.Get(path);
  if (!response) return "";
  return std::to_string(response->status) + "\n" + response->body;
}

double WorkerHarness::Metric(worker::WorkerHost& host, const std::string& name,
                             const std::string& label) {
  return SeriesValue(Get(host, "/metrics"), name, label);
}

double SeriesValue(const std::string& text, const std::string& name, const std::string& label) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.compare(0, name.size() + 1, name + "{") != 0) continue;
    if (line.find(label) == std::string::npos) continue;
    return std::strtod(line.substr(line.rfind(' ') + 1).c_str(), nullptr);
  }
  return -1;
}

}  // namespace hyserve::test
