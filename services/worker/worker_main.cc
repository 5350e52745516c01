#include "services/worker/worker_main.h"

#include <algorithm>

#include "absl/strings/str_join.h"
#include "base/strings.h"
#include "kv_transfer/ucx/ucx_transport.h"

namespace hyserve::worker {

int ExitWith(int code, const std::string& program, const absl::Status& status) {
  std::fprintf(stderr, "%s: %s\n", program.c_str(), std::string(status.message()).c_str());
  return code;
}

absl::StatusOr<common::WorkerSettings> ChooseWorker(const common::Config& config,
                                                    const common::ServerFlags& flags,
                                                    const std::vector<std::string>& roles) {
  const auto is_ours = [&](const std::string& role) {
    return std::find(roles.begin(), roles.end(), role) != roles.end();
  };
  if (!flags.role.empty() && !is_ours(flags.role)) {
    return absl::InvalidArgumentError(StrCat("--role ", flags.role, ": this program is ",
                                             absl::StrJoin(roles, " or ")));
  }
  std::string role = flags.role;
  if (role.empty() && flags.name.empty()) {
    // Without a word from the command line: the only role of ours that the file has.
    for (const std::string& candidate : roles) {
      const bool exists = std::any_of(
          config.workers.begin(), config.workers.end(),
          [&](const common::WorkerSettings& worker) { return worker.role == candidate; });
      if (!exists) continue;
      if (!role.empty()) return absl::InvalidArgumentError("give --name or --role");
      role = candidate;
    }
    if (role.empty()) role = roles.front();
  }
  auto settings = config.FindWorker(role, flags.name);
  if (settings.ok() && !is_ours(settings->role)) {
    return absl::InvalidArgumentError(StrCat(
        "worker ", flags.name, " is a ", settings->role, " worker, this program is ",
        absl::StrJoin(roles, " or ")));
  }
  return settings;
}

int ServeUntilStopped(WorkerHost& host, const WorkerCore& core, common::ShutdownSignal& shutdown) {
  host.OnDeviceFailure([&shutdown] { shutdown.Trigger(); });
  const int signal = shutdown.Wait();
  host.OnDeviceFailure(nullptr);
  const absl::Status device = core.engine().health();
  common::LogInfo("draining", {{"signal", signal},
                               {"reason", device.ok() ? "asked to stop"
                                                      : std::string(device.message())}});
  host.Drain(core.config().limits.drain_soft, core.config().limits.drain_hard);
  return device.ok() ? 0 : 1;
}

void IgnoreUcxEnvironment() {
  for (const std::string& variable : kv_transfer::ClearUcxEnvironment()) {
    common::LogWarning("ignored: the configuration decides", {{"variable", variable}});
  }
}

}  // namespace hyserve::worker
