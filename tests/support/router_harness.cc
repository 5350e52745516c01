#include "tests/support/router_harness.h"

#include <httplib.h>

#include <cstdlib>
#include <iostream>
#include <sstream>

#include "absl/time/clock.h"
#include "services/common/status_mapping.h"
#include "tests/support/byte_tokenizer.h"

namespace hyserve::test {

common::Config RouterHarness::DefaultConfig() {
  common::Config config;
  config.model.name = "fake";
  config.router.listen = "127.0.0.1:0";
  config.router.registry_listen = "127.0.0.1:0";
  config.router.metrics_listen = "127.0.0.1:0";
  config.limits.max_queue_time = absl::Seconds(10);
  return config;
}

RouterHarness::RouterHarness(const common::Config& config) {
  auto router = router::Router::Start(config, MakeByteTextModel());
  if (!router.ok()) {
    std::cerr << router.status().ToString() << std::endl;
    std::abort();
  }
  router_ = *std::move(router);
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  stub_ = v1::Inference::NewStub(grpc::CreateCustomChannel(
      router_->address(), grpc::InsecureChannelCredentials(), arguments));
}

RouterHarness::~RouterHarness() { router_->Drain(absl::ZeroDuration(), absl::Seconds(5)); }

FakeWorker* RouterHarness::Add(FakeWorkerOptions options) {
  options.router_registry = router_->registry_address();
  const int before = router_->usable_workers();
  workers_.push_back(std::make_unique<FakeWorker>(options));
  if (!workers_.back()->WaitRegistered()) {
    std::cerr << options.name << " was not registered" << std::endl;
    std::abort();
  }
  // Registered is not enough: the first load report makes it usable.
  while (router_->usable_workers() <= before) absl::SleepFor(absl::Milliseconds(1));
  return workers_.back().get();
}

FakeWorker* RouterHarness::AddPrefill(const std::string& name) {
  return Add({.name = name, .role = v1::WORKER_ROLE_PREFILL});
}

FakeWorker* RouterHarness::AddDecode(const std::string& name) {
  return Add({.name = name, .role = v1::WORKER_ROLE_DECODE});
}

v1::GenerateRequest RouterHarness::TokenRequest(std::vector<int32_t> prompt, int32_t max_tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Add(prompt.begin(), prompt.end());
  request.mutable_stopping()->set_max_tokens(max_tokens);
  return request;
}

Reply RouterHarness::Generate(const v1::GenerateRequest& request, OnMessage on_message,
                              absl::Duration timeout) {
  Reply reply;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
    reply.messages.push_back(message);
    if (message.has_tokens()) {
      const v1::Tokens& tokens = message.tokens();
      reply.contiguous &= tokens.first_index() == static_cast<int32_t>(reply.token_ids.size());
      reply.token_ids.insert(reply.token_ids.end(), tokens.token_ids().begin(),
                             tokens.token_ids().end());
      reply.text += tokens.text();
    } else if (message.has_finished()) {
      ++reply.finished_count;
      reply.finished = message.finished();
      reply.text += message.finished().text();
    }
    if (on_message) on_message(&context, message);
  }
  reply.status = common::FromGrpcStatus(reader->Finish());
  const auto pushback = context.GetServerTrailingMetadata().find("grpc-retry-pushback-ms");
  if (pushback != context.GetServerTrailingMetadata().end()) {
    reply.pushback_ms = std::string(pushback->second.data(), pushback->second.size());
  }
  return reply;
}

bool RouterHarness::WaitIdle() {
  for (int i = 0; i < 10'000; ++i) {
    if (router_->open_bookings() == 0) return true;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return false;
}

double RouterHarness::Metric(const std::string& line_start) {
  std::istringstream text(router_->metrics()->Expose());
  std::string line;
  while (std::getline(text, line)) {
    if (line.compare(0, line_start.size(), line_start) == 0) {
      return std::atof(line.substr(line.rfind(' ') + 1).c_str());
    }
  }
  return -1;
}

std::string RouterHarness::Scrape(const std::string& path) {
  httplib::Client client("127.0.0.1", router_->metrics_port());
  const auto response = client.Get(path.c_str());
  return response ? response->body : "";
}

}  // namespace hyserve::test
