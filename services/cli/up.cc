// hyserve up: a whole HyServe on this machine, from one configuration file.
#include <grpcpp/grpcpp.h>
#include <limits.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "hyserve/v1/inference.grpc.pb.h"
#include "services/cli/args.h"
#include "services/cli/commands.h"
#include "services/cli/process_group.h"
#include "services/common/config.h"

namespace hyserve::cli {
namespace {

constexpr char kUsage[] =
    "usage: hyserve up --config FILE [options]\n"
    "  --ready-timeout SECONDS   give up when not ready by then, default 300\n"
    "  --check-config            read the configuration, report every problem, start nothing\n";

std::string BinaryDirectory() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  const std::string file(path, length > 0 ? static_cast<size_t>(length) : 0);
  return file.substr(0, file.rfind('/'));
}

absl::Status StartAll(const common::Config& config, const std::string& config_path,
                      ProcessGroup* group) {
  const std::string bin = BinaryDirectory();
  absl::Status status =
      group->Start("router", {absl::StrCat(bin, "/hyserve-router"), "--config", config_path});
  for (const common::WorkerSettings& worker : config.workers) {
    if (!status.ok()) break;
    const char* program = worker.role == "prefill" ? "/hyserve-prefill" : "/hyserve-decode";
    status = group->Start(worker.name, {absl::StrCat(bin, program), "--config", config_path,
                                        "--name", worker.name});
  }
  return status;
}

// What the router says it serves; false while it does not answer.
bool AskRouter(v1::Inference::Stub* stub, v1::GetModelResponse* response) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(1));
  return stub->GetModel(&context, v1::GetModelRequest(), response).ok();
}

bool AllWorkersThere(const common::Config& config, const v1::GetModelResponse& model) {
  int prefill = 0, decode = 0;
  for (const common::WorkerSettings& worker : config.workers) {
    ++(worker.role == "prefill" ? prefill : decode);
  }
  return model.prefill_workers() >= prefill && model.decode_workers() >= decode;
}

// Waits for a signal (its number) or 0 after 100 ms.
int NextSignal(const sigset_t& signals) {
  const timespec timeout = {.tv_sec = 0, .tv_nsec = 100'000'000};
  const int signal = sigtimedwait(&signals, nullptr, &timeout);
  return signal == SIGCHLD || signal < 0 ? 0 : signal;
}

}  // namespace

int RunUp(const std::vector<std::string>& words) {
  const absl::StatusOr<Args> args =
      Args::Parse(words, {.options = {"config", "ready-timeout"},
                          .flags = {"check-config", "help"}});
  if (!args.ok() || args->Has("help") || !args->Has("config")) {
    if (!args.ok()) Fail("up", args.status(), kExitUsage);
    std::fputs(kUsage, stderr);
    return args.ok() && args->Has("help") ? 0 : kExitUsage;
  }
  const absl::StatusOr<int64_t> ready_timeout = args->GetInt("ready-timeout", 300, 1, 86400);
  if (!ready_timeout.ok()) return Fail("up", ready_timeout.status(), kExitUsage);
  const std::string config_path = args->Get("config");
  const absl::StatusOr<common::Config> config = common::LoadConfig(config_path);
  if (!config.ok()) return Fail("up", config.status(), kExitConfig);
  if (args->Has("check-config")) return 0;

  // Signals are taken by sigtimedwait below, in this thread.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGCHLD}) sigaddset(&signals, signal);
  sigprocmask(SIG_BLOCK, &signals, nullptr);

  ProcessGroup group;
  const absl::Status started = StartAll(*config, config_path, &group);
  if (!started.ok()) return Fail("up", started, kExitFailure);

  const auto stub = v1::Inference::NewStub(
      grpc::CreateChannel(config->router.listen, grpc::InsecureChannelCredentials()));
  const absl::Time give_up = absl::Now() + absl::Seconds(*ready_timeout);
  bool ready = false;
  int signal = 0;
  while ((signal = NextSignal(signals)) == 0) {
    const std::string ended = group.EndedChild();
    if (!ended.empty()) {
      group.Stop(config->limits.drain_hard);
      return Fail("up", absl::UnavailableError(ended), kExitFailure);
    }
    if (ready) continue;
    v1::GetModelResponse model;
    if (AskRouter(stub.get(), &model) && AllWorkersThere(*config, model)) {
      ready = true;
      std::printf("ready: %s on %s, %d prefill and %d decode workers, context %d tokens\n",
                  model.name().c_str(), config->router.listen.c_str(), model.prefill_workers(),
                  model.decode_workers(), model.max_context_tokens());
      std::fflush(stdout);
    } else if (absl::Now() > give_up) {
      group.Stop(absl::Seconds(5));
      return Fail("up", absl::DeadlineExceededError(absl::StrFormat(
                            "not ready after %d s: the router answered %s, %d prefill and %d "
                            "decode workers registered",
                            *ready_timeout, model.name().empty() ? "nothing" : model.name(),
                            model.prefill_workers(), model.decode_workers())),
                  kExitFailure);
    }
  }
  std::fprintf(stderr, "stopping\n");
  return group.Stop(config->limits.drain_hard) ? 0 : kExitFailure;
}

}  // namespace hyserve::cli
