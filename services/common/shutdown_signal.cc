#include "services/common/shutdown_signal.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cstdint>

#include "absl/base/internal/raw_logging.h"

namespace hyserve::common {
namespace {

int NewEvent() {
  const int fd = eventfd(0, EFD_CLOEXEC);
  if (fd < 0) ABSL_RAW_LOG(FATAL, "eventfd failed");
  return fd;
}

void Raise(int event_fd) {
  const uint64_t one = 1;
  if (write(event_fd, &one, sizeof(one)) != sizeof(one))
    ABSL_RAW_LOG(FATAL, "eventfd write failed");
}

// Waits for either descriptor. The signal's number, or 0 when the event was first.
int WaitFor(int signal_fd, int event_fd) {
  pollfd fds[2] = {{signal_fd, POLLIN, 0}, {event_fd, POLLIN, 0}};
  while (poll(fds, 2, -1) < 0) {
  }
  if (fds[1].revents != 0) return 0;
  signalfd_siginfo info;
  if (read(signal_fd, &info, sizeof(info)) != sizeof(info)) return 0;
  return static_cast<int>(info.ssi_signo);
}

}  // namespace

ShutdownSignal::ShutdownSignal() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal_fd_ = signalfd(-1, &signals, SFD_CLOEXEC);
  if (signal_fd_ < 0) ABSL_RAW_LOG(FATAL, "signalfd failed");
  trigger_fd_ = NewEvent();
  stop_fd_ = NewEvent();
  started_fd_ = NewEvent();
}

ShutdownSignal::~ShutdownSignal() {
  EndOfStart();
  Raise(stop_fd_);
  if (second_signal_.joinable()) second_signal_.join();
  close(signal_fd_);
  close(trigger_fd_);
  close(stop_fd_);
  close(started_fd_);
}

void ShutdownSignal::ExitWhileStarting() {
  starting_ = std::thread([this] {
    if (WaitFor(signal_fd_, started_fd_) != 0) _exit(0);
  });
}

void ShutdownSignal::EndOfStart() {
  if (!starting_.joinable()) return;
  Raise(started_fd_);
  starting_.join();
}

int ShutdownSignal::Wait() {
  EndOfStart();
  const int signal = WaitFor(signal_fd_, trigger_fd_);
  if (!second_signal_.joinable()) {
    second_signal_ = std::thread([this] {
      const int second = WaitFor(signal_fd_, stop_fd_);
      if (second != 0) _exit(128 + second);
    });
  }
  return signal;
}

void ShutdownSignal::Trigger() { Raise(trigger_fd_); }

}  // namespace hyserve::common
