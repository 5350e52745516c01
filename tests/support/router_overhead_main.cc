// What one request costs the router: CPU time of the router's process per request, with workers
// that answer at once and clients that keep it busy, each in a process of its own.
//
//   router_overhead [SECONDS] [TOKENS PER REQUEST] [PROMPT TOKENS] [CLIENT STREAMS]
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "hyserve/v1/inference.grpc.pb.h"
#include "hyserve/v1/worker.grpc.pb.h"
#include "services/common/server.h"
#include "services/common/stream_writer.h"
#include "services/common/worker_registration_client.h"
#include "services/router/router.h"
#include "services/router/text.h"

namespace hyserve {
namespace {

class Prefills final : public v1::PrefillWorker::CallbackService {
  grpc::ServerWriteReactor<v1::PrefillEvent>* Prefill(grpc::CallbackServerContext* context,
                                                      const v1::PrefillRequest*) override {
    auto writer = common::StreamWriter<v1::PrefillEvent>::Create(
        context, {}, std::make_shared<common::StreamListener>());
    auto* const reactor = writer->reactor();
    v1::PrefillEvent event;
    event.mutable_first_token()->mutable_token()->set_token_id(1);
    writer->WriteAndFinish(std::move(event), absl::OkStatus());
    return reactor;
  }
};

class Decodes final : public v1::DecodeWorker::CallbackService {
  grpc::ServerWriteReactor<v1::DecodeEvent>* Decode(grpc::CallbackServerContext* context,
                                                    const v1::DecodeRequest* request) override {
    auto writer = common::StreamWriter<v1::DecodeEvent>::Create(
        context, {}, std::make_shared<common::StreamListener>());
    auto* const reactor = writer->reactor();
    v1::DecodeEvent started;
    started.mutable_started()->set_shipped_bytes(1);
    writer->Write(std::move(started));
    const int32_t max_tokens = request->sampling().max_tokens();
    for (int32_t i = 1; i < max_tokens; ++i) {
      v1::DecodeEvent event = writer->NewMessage();
      event.mutable_tokens()->set_first_index(i);
      event.mutable_tokens()->add_tokens()->set_token_id(i % 100);
      writer->Write(std::move(event), 1);
    }
    v1::DecodeEvent finished;
    finished.mutable_finished()->set_by_length(true);
    finished.mutable_finished()->set_generated_tokens(max_tokens);
    writer->WriteAndFinish(std::move(finished), absl::OkStatus());
    return reactor;
  }
};

int RunWorkers(const std::string& registry) {
  Prefills prefills;
  Decodes decodes;
  common::ServerOptions options;
  options.address = "127.0.0.1:0";
  const auto server = common::GrpcServer::Start(options, {&prefills, &decodes});
  if (!server.ok()) return 1;
  std::vector<std::unique_ptr<common::WorkerRegistrationClient>> clients;
  for (const auto role : {v1::WORKER_ROLE_PREFILL, v1::WORKER_ROLE_DECODE}) {
    common::RegistrationOptions registration;
    registration.router_address = registry;
    registration.registration.set_name(v1::WorkerRole_Name(role));
    registration.registration.set_role(role);
    registration.registration.set_address((*server)->address());
    registration.registration.set_model_name("m");
    registration.registration.set_vocab_size(1000);
    registration.registration.set_max_context_tokens(1 << 20);
    registration.registration.set_max_sequences(100'000);
    registration.registration.set_protocol_version(1);
    registration.load = [] {
      v1::LoadReport load;
      load.set_blocks_total(100'000'000);
      load.set_blocks_free(100'000'000);
      return load;
    };
    clients.push_back(std::make_unique<common::WorkerRegistrationClient>(std::move(registration)));
  }
  while (true) pause();
}

struct Load {
  double seconds = 3;
  int32_t tokens = 32;
  int32_t prompt_tokens = 512;
  int streams = 32;
};

// Writes the number of requests that ended well to `result`; exit code 1 if any failed.
int RunClients(int result, const std::string& address, const Load& load) {
  const auto stub = v1::Inference::NewStub(
      grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  std::atomic<int64_t> done{0}, failed{0};
  const absl::Time end = absl::Now() + absl::Seconds(load.seconds);
  std::vector<std::thread> threads;
  for (int s = 0; s < load.streams; ++s) {
    threads.emplace_back([&, s] {
      v1::GenerateRequest request;
      for (int i = 0; i < load.prompt_tokens; ++i) {
        request.mutable_token_ids()->add_ids((s * 31 + i) % 1000);
      }
      request.mutable_stopping()->set_max_tokens(load.tokens);
      while (absl::Now() < end) {
        grpc::ClientContext context;
        const auto reader = stub->Generate(&context, request);
        v1::GenerateResponse response;
        while (reader->Read(&response)) {
        }
        ++(reader->Finish().ok() ? done : failed);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const int64_t total = done;
  return write(result, &total, sizeof(total)) == sizeof(total) && failed == 0 ? 0 : 1;
}

double CpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) { return time.tv_sec + 1e-6 * time.tv_usec; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

int Run(int argc, char** argv) {
  Load load;
  if (argc > 1) load.seconds = std::atof(argv[1]);
  if (argc > 2) load.tokens = std::atoi(argv[2]);
  if (argc > 3) load.prompt_tokens = std::atoi(argv[3]);
  if (argc > 4) load.streams = std::atoi(argv[4]);
  // Children are forked before any thread exists and learn the addresses through pipes.
  int to_workers[2], to_clients[2], result[2];
  if (pipe(to_workers) != 0 || pipe(to_clients) != 0 || pipe(result) != 0) return 1;
  const auto child = [](int fd, auto body) {
    const pid_t pid = fork();
    if (pid != 0) return pid;
    char address[64] = {};
    if (read(fd, address, sizeof(address) - 1) <= 0) _exit(1);
    _exit(body(std::string(address)));
  };
  const pid_t workers = child(to_workers[0], RunWorkers);
  const pid_t clients = child(to_clients[0], [&](const std::string& address) {
    return RunClients(result[1], address, load);
  });

  common::Config config;
  config.model.name = "m";
  config.router.listen = config.router.registry_listen = "127.0.0.1:0";
  config.router.metrics_listen = "";
  auto router = router::Router::Start(config, *router::TextModel::Load(""));
  if (!router.ok()) return 1;
  const auto tell = [](int fd, const std::string& address) {
    return write(fd, address.data(), address.size()) == static_cast<ssize_t>(address.size());
  };
  if (!tell(to_workers[1], (*router)->registry_address())) return 1;
  while ((*router)->usable_workers() < 2) absl::SleepFor(absl::Milliseconds(1));
  const double before = CpuSeconds();
  if (!tell(to_clients[1], (*router)->address())) return 1;
  int status = 0;
  waitpid(clients, &status, 0);
  const double cpu = CpuSeconds() - before;
  int64_t requests = 0;
  if (read(result[0], &requests, sizeof(requests)) != sizeof(requests) || requests == 0) return 1;
  std::printf("%d prompt tokens, %d tokens, %d streams: %.0f requests/s, router %.0f us CPU per "
              "request, that is %.0f requests/s per core\n",
              load.prompt_tokens, load.tokens, load.streams, requests / load.seconds,
              1e6 * cpu / requests, requests / cpu);
  kill(workers, SIGKILL);
  waitpid(workers, nullptr, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

}  // namespace
}  // namespace hyserve

int main(int argc, char** argv) { return hyserve::Run(argc, argv); }
