// The subcommands of `hyserve`. Each takes the words after its name and returns the exit code:
// 0 done, 64 wrong usage, 78 wrong configuration or model, 1 anything else.
#ifndef HYSERVE_SERVICES_CLI_COMMANDS_H_
#define HYSERVE_SERVICES_CLI_COMMANDS_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace hyserve::cli {

inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 64;
inline constexpr int kExitConfig = 78;

// Starts router and workers of a configuration file as child processes, waits until they are ready,
// and stops them on SIGINT or SIGTERM or when one of them ends.
int RunUp(const std::vector<std::string>& words);
// Sends one prompt to a router and streams the answer.
int RunGenerate(const std::vector<std::string>& words);
// inspect, make and check checkpoints.
int RunModel(const std::vector<std::string>& words);
// Measures the link between workers and says which transports were chosen.
int RunDoctor(const std::vector<std::string>& words);

// Prints "hyserve <command>: <message>" and returns `exit_code`.
int Fail(std::string_view command, const absl::Status& status, int exit_code);

}  // namespace hyserve::cli

#endif  // HYSERVE_SERVICES_CLI_COMMANDS_H_
