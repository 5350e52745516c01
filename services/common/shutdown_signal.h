// SIGTERM and SIGINT as an event. The first one asks for a graceful end, the second ends the
// process at once.
#ifndef HYSERVE_SERVICES_COMMON_SHUTDOWN_SIGNAL_H_
#define HYSERVE_SERVICES_COMMON_SHUTDOWN_SIGNAL_H_

#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace hyserve::common {

class ShutdownSignal {
 public:
  // Blocks both signals for this thread and those it starts later. REQUIRES: the first thing in
  // main(), before any other thread exists; one object per process.
  ShutdownSignal();
  ~ShutdownSignal();
  ShutdownSignal(const ShutdownSignal&) = delete;
  ShutdownSignal& operator=(const ShutdownSignal&) = delete;

  // Until Wait(), a signal ends the process at once with code 0: for a start that takes long and
  // leaves nothing to save. At most once, before Wait().
  void ExitWhileStarting();
  // Returns the signal's number. From then on a second signal calls _exit(128 + number).
  int Wait();
  // As if a signal had arrived: Wait() returns 0. Callable from any thread.
  void Trigger();

 private:
  void EndOfStart();

  int signal_fd_ = -1;
  int trigger_fd_ = -1;
  int stop_fd_ = -1;
  int started_fd_ = -1;
  std::thread starting_;
  std::thread second_signal_;
};

}  // namespace hyserve::common

#endif  // HYSERVE_SERVICES_COMMON_SHUTDOWN_SIGNAL_H_
