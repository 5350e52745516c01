// The main function of a worker's executable: constructs in order, waits for a signal, drains. Exit
// codes: 64 command line, 78 configuration or model (also when they do not fit the device), 1
// anything else that the machine refused, or a device that was lost.
#ifndef HYSERVE_SERVICES_WORKER_WORKER_MAIN_H_
#define HYSERVE_SERVICES_WORKER_WORKER_MAIN_H_

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "services/common/config.h"
#include "services/common/logging.h"
#include "services/common/shutdown_signal.h"
#include "services/worker/setup.h"
#include "services/worker/worker_core.h"
#include "services/worker/worker_host.h"

namespace hyserve::worker {

// One line on standard error; returns `code`.
int ExitWith(int code, const std::string& program, const absl::Status& status);

// The worker of the file that this process is: by name, by role, or the only one of `roles`.
absl::StatusOr<common::WorkerSettings> ChooseWorker(const common::Config& config,
                                                    const common::ServerFlags& flags,
                                                    const std::vector<std::string>& roles);

// Removes UCX's variables from the environment and logs them.
void IgnoreUcxEnvironment();

// Until a signal comes or the device is lost; then drains. The exit code.
int ServeUntilStopped(WorkerHost& host, const WorkerCore& core, common::ShutdownSignal& shutdown);

// `Worker::Start(core, transport)`, `worker->host()`; `roles` of the configuration that it can be.
template <typename Worker>
int WorkerMain(int argc, char** argv, const std::string& program,
               const std::vector<std::string>& roles) {
  common::ShutdownSignal shutdown;
  const auto flags = common::ParseServerFlags(argc, argv);
  if (!flags.ok() || flags->help) {
    std::fprintf(stderr, "usage: %s --config FILE [options]\n%s", program.c_str(),
                 common::kServerFlagsUsage);
    return flags.ok() ? 0 : ExitWith(common::kExitUsage, program, flags.status());
  }
  const auto config = common::LoadConfig(flags->config_path);
  if (!config.ok()) return ExitWith(common::kExitConfig, program, config.status());
  const auto settings = ChooseWorker(*config, *flags, roles);
  if (!settings.ok()) return ExitWith(common::kExitConfig, program, settings.status());
  if (flags->check_config) return 0;
  common::InitLogging(config->logging, settings->name);
  IgnoreUcxEnvironment();
  shutdown.ExitWhileStarting();

  auto core = WorkerCore::Create(*config, *settings);
  if (!core.ok()) return ExitWith(common::kExitConfig, program, core.status());
  std::unique_ptr<kv_transfer::Transport> transport;
  if (settings->role != "monolithic") {
    auto made = MakeTransport(*config, *settings);
    if (!made.ok()) return ExitWith(1, program, made.status());
    transport = *std::move(made);
    common::LogInfo("transport ready", {{"transport", transport->name()},
                                        {"address", transport->local_address()}});
    common::LogDebug("transport", {{"settings", transport->Description()}});
  }
  auto worker = Worker::Start(*std::move(core), std::move(transport));
  if (!worker.ok()) return ExitWith(1, program, worker.status());
  common::LogInfo("serving", {{"address", (*worker)->host().address()}});

  const int code = ServeUntilStopped((*worker)->host(), (*worker)->core(), shutdown);
  *worker = nullptr;
  common::LogInfo("stopped", {{"code", code}});
  return code;
}

}  // namespace hyserve::worker

#endif  // HYSERVE_SERVICES_WORKER_WORKER_MAIN_H_
