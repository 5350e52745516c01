// Child processes that live and die together. Not thread-safe: one thread owns the group.
#ifndef HYSERVE_SERVICES_CLI_PROCESS_GROUP_H_
#define HYSERVE_SERVICES_CLI_PROCESS_GROUP_H_

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace hyserve::cli {

class ProcessGroup {
 public:
  ProcessGroup() = default;
  // Stops what still runs.
  ~ProcessGroup();
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  // Starts argv[0] (a path) as `name`. The child gets SIGTERM when this process dies, and has a
  // process group of its own, so that a signal to ours (Ctrl-C) does not reach it beside Stop()'s.
  absl::Status Start(const std::string& name, const std::vector<std::string>& argv);

  // Reaps without blocking. The name and fate of a child that ended, e.g. "decode exited with 78",
  // or empty while all run.
  std::string EndedChild();

  // SIGTERM to all, last started first, waits up to `grace`, then SIGKILL. True if every child
  // ended by itself with code 0.
  bool Stop(absl::Duration grace);

 private:
  struct Child {
    std::string name;
    pid_t pid;
  };
  std::vector<Child> running_;
  bool clean_ = true;
};

}  // namespace hyserve::cli

#endif  // HYSERVE_SERVICES_CLI_PROCESS_GROUP_H_
