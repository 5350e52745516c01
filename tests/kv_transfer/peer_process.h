// A child process that runs handoff_peer and is spoken to in lines.
#ifndef HYSERVE_TESTS_KV_TRANSFER_PEER_PROCESS_H_
#define HYSERVE_TESTS_KV_TRANSFER_PEER_PROCESS_H_

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace hyserve::kv_transfer {

class PeerProcess {
 public:
  explicit PeerProcess(const std::vector<std::string>& arguments) {
    int in[2];
    int out[2];
    if (pipe(in) != 0 || pipe(out) != 0) std::abort();
    pid_ = fork();
    if (pid_ == 0) {
      dup2(in[0], STDIN_FILENO);
      dup2(out[1], STDOUT_FILENO);
      for (const int fd : {in[0], in[1], out[0], out[1]}) close(fd);
      std::vector<char*> argv;
      for (const std::string& argument : arguments) {
        argv.push_back(const_cast<char*>(argument.c_str()));
      }
      argv.push_back(nullptr);
      execv(argv[0], argv.data());
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    to_ = in[1];
    from_ = fdopen(out[0], "r");
  }
  ~PeerProcess() {
    Signal(SIGCONT);
    Signal(SIGKILL);
    Wait();
    close(to_);
    fclose(from_);
  }
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;

  void Signal(int signal) {
    if (pid_ > 0) kill(pid_, signal);
  }
  void Wait() {
    if (pid_ > 0) waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  // Returns when the process has really stopped.
  void Stop() {
    Signal(SIGSTOP);
    waitpid(pid_, nullptr, WUNTRACED);
  }
  void Say(const std::string& line) {
    const std::string text = line + "\n";
    if (write(to_, text.data(), text.size()) < 0) return;  // gone: the caller will see no answer
  }
  // The next line of the process; empty when it has ended. UCX logs to stdout, in lines that begin
  // with a bracket: not ours.
  std::string Line() {
    char text[512];
    do {
      if (fgets(text, sizeof(text), from_) == nullptr) return "";
    } while (text[0] == '[');
    std::string line(text);
    if (!line.empty() && line.back() == '\n') line.pop_back();
    return line;
  }

 private:
  pid_t pid_ = -1;
  int to_ = -1;
  FILE* from_ = nullptr;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_TESTS_KV_TRANSFER_PEER_PROCESS_H_
