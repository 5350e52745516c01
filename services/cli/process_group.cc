#include "services/cli/process_group.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace hyserve::cli {
namespace {

std::string Fate(const std::string& name, int status) {
  if (WIFEXITED(status)) return absl::StrCat(name, " exited with ", WEXITSTATUS(status));
  return absl::StrCat(name, " was ended by signal ", WTERMSIG(status), " (",
                      strsignal(WTERMSIG(status)), ")");
}

}  // namespace

ProcessGroup::~ProcessGroup() { Stop(absl::Seconds(5)); }

absl::Status ProcessGroup::Start(const std::string& name, const std::vector<std::string>& argv) {
  std::vector<char*> words;
  for (const std::string& word : argv) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  if (access(words[0], X_OK) != 0) {
    return absl::NotFoundError(absl::StrCat(argv[0], ": ", strerror(errno)));
  }
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::ResourceExhaustedError(absl::StrCat("fork: ", strerror(errno)));
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(127);
    setpgid(0, 0);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    execv(words[0], words.data());
    _exit(127);
  }
  running_.push_back({name, pid});
  return absl::OkStatus();
}

std::string ProcessGroup::EndedChild() {
  for (auto child = running_.begin(); child != running_.end(); ++child) {
    int status = 0;
    if (waitpid(child->pid, &status, WNOHANG) == child->pid) {
      std::string fate = Fate(child->name, status);
      clean_ = clean_ && WIFEXITED(status) && WEXITSTATUS(status) == 0;
      running_.erase(child);
      return fate;
    }
  }
  return "";
}

bool ProcessGroup::Stop(absl::Duration grace) {
  for (auto child = running_.rbegin(); child != running_.rend(); ++child) {
    kill(child->pid, SIGTERM);
  }
  const absl::Time deadline = absl::Now() + grace;
  while (!running_.empty() && absl::Now() < deadline) {
    if (EndedChild().empty()) absl::SleepFor(absl::Milliseconds(10));
  }
  for (const Child& child : running_) {
    kill(child.pid, SIGKILL);
    waitpid(child.pid, nullptr, 0);
    clean_ = false;
  }
  running_.clear();
  return clean_;
}

}  // namespace hyserve::cli
