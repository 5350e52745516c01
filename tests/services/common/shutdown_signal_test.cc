// Signals end processes, so each case runs in a child of its own.
#include "services/common/shutdown_signal.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace hyserve::common {
namespace {

// Exit code of a child that runs `body`.
template <typename Body>
int ExitCode(Body body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(ShutdownSignal, TheFirstSignalIsAnEvent) {
  for (const int signal : {SIGTERM, SIGINT}) {
    EXPECT_EQ(ExitCode([signal] {
                ShutdownSignal shutdown;
                kill(getpid(), signal);
                return shutdown.Wait() == signal ? 42 : 1;
              }),
              42);
  }
}

TEST(ShutdownSignal, TheSecondSignalEndsTheProcessAtOnce) {
  EXPECT_EQ(ExitCode([] {
              ShutdownSignal shutdown;
              kill(getpid(), SIGTERM);
              shutdown.Wait();
              kill(getpid(), SIGINT);
              while (true) pause();  // a drain that takes for ever
              return 1;
            }),
            128 + SIGINT);
}

TEST(ShutdownSignal, ASignalEndsALongStartAtOnce) {
  EXPECT_EQ(ExitCode([] {
              ShutdownSignal shutdown;
              shutdown.ExitWhileStarting();
              kill(getpid(), SIGTERM);
              while (true) pause();  // a model that loads for ever
              return 1;
            }),
            0);
}

TEST(ShutdownSignal, AfterTheStartTheFirstSignalIsAnEventAgain) {
  EXPECT_EQ(ExitCode([] {
              ShutdownSignal shutdown;
              shutdown.ExitWhileStarting();
              shutdown.Trigger();
              if (shutdown.Wait() != 0) return 1;
              kill(getpid(), SIGTERM);
              while (true) pause();  // the second, for the trigger was the first
              return 1;
            }),
            128 + SIGTERM);
}

TEST(ShutdownSignal, CanBeTriggered) {
  EXPECT_EQ(ExitCode([] {
              ShutdownSignal shutdown;
              shutdown.Trigger();
              return shutdown.Wait() == 0 ? 42 : 1;
            }),
            42);
}

}  // namespace
}  // namespace hyserve::common
