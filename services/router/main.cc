// hyserve-router: the door for clients.
#include <cstdio>
#include <string>

#include "services/common/config.h"
#include "services/common/logging.h"
#include "services/common/shutdown_signal.h"
#include "services/router/router.h"
#include "services/router/text.h"

namespace {

int Exit(int code, const absl::Status& status) {
  std::fprintf(stderr, "hyserve-router: %s\n", std::string(status.message()).c_str());
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace hyserve;  // NOLINT: this is the program's own code
  common::ShutdownSignal shutdown;
  const absl::StatusOr<common::ServerFlags> flags = common::ParseServerFlags(argc, argv);
  if (!flags.ok() || flags->help) {
    if (!flags.ok()) Exit(0, flags.status());
    std::fprintf(stderr, "usage: hyserve-router --config FILE [options]\n%s",
                 common::kServerFlagsUsage);
    return flags.ok() ? 0 : common::kExitUsage;
  }
  const absl::StatusOr<common::Config> config = common::LoadConfig(flags->config_path);
  if (!config.ok()) return Exit(common::kExitConfig, config.status());
  if (flags->check_config) return 0;
  common::InitLogging(config->logging, "router");

  auto text = router::TextModel::Load(config->model.path);
  if (!text.ok()) return Exit(common::kExitConfig, text.status());
  auto router = router::Router::Start(*config, *std::move(text));
  if (!router.ok()) return Exit(1, router.status());
  common::LogInfo("serving", {{"address", (*router)->address()},
                              {"registry", (*router)->registry_address()},
                              {"model", config->model.name}});

  const int signal = shutdown.Wait();
  common::LogInfo("draining", {{"signal", signal}});
  (*router)->Drain(config->limits.drain_soft, config->limits.drain_hard);
  common::LogInfo("stopped");
  return 0;
}
