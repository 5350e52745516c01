#include "services/common/timer_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"

namespace hyserve::common {
namespace {

TEST(TimerQueue, RunsInTheOrderOfTime) {
  absl::Mutex mutex;
  std::vector<int> order;
  absl::Notification done;
  TimerQueue timers;  // last: its end waits for the functions, which use the rest
  const auto note = [&](int i) {
    absl::MutexLock lock(&mutex);
    order.push_back(i);
    if (order.size() == 3) done.Notify();
  };
  // On the queue's own thread, so that all three are there before one runs.
  timers.ScheduleAfter(absl::ZeroDuration(), [&] {
    const absl::Time start = absl::Now();
    timers.Schedule(start + absl::Milliseconds(2), [&] { note(3); });
    timers.Schedule(start, [&] { note(1); });
    timers.Schedule(start + absl::Milliseconds(1), [&] { note(2); });
  });
  done.WaitForNotification();
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
}

TEST(TimerQueue, ACancelledCallDoesNotRun) {
  std::atomic<int> ran{0};
  {
    absl::Notification done;
    TimerQueue timers;
    timers.ScheduleAfter(absl::ZeroDuration(), [&] {  // likewise
      const TimerId id = timers.ScheduleAfter(absl::Milliseconds(5), [&] { ++ran; });
      EXPECT_TRUE(timers.Cancel(id));
      EXPECT_FALSE(timers.Cancel(id));
      timers.ScheduleAfter(absl::Milliseconds(10), [&] { done.Notify(); });
    });
    done.WaitForNotification();
  }
  EXPECT_EQ(ran, 0);
}

TEST(TimerQueue, ACallMayUseTheQueue) {
  absl::Notification done;
  TimerQueue timers;
  timers.ScheduleAfter(absl::ZeroDuration(), [&] {
    timers.ScheduleAfter(absl::ZeroDuration(), [&] { done.Notify(); });
  });
  done.WaitForNotification();
}

TEST(TimerQueue, CallsThatAreNotDueAreDroppedWithTheQueue) {
  std::atomic<bool> ran{false};
  { TimerQueue().ScheduleAfter(absl::Hours(1), [&] { ran = true; }); }
  EXPECT_FALSE(ran);
}

TEST(TimerQueue, StopEndsACallThatAlwaysSchedulesItself) {
  int runs = 0;
  absl::Notification running;
  TimerQueue timers;
  const std::function<void()> tick = [&] {
    if (++runs == 3) running.Notify();
    timers.ScheduleAfter(absl::ZeroDuration(), tick);
  };
  timers.ScheduleAfter(absl::ZeroDuration(), tick);
  running.WaitForNotification();
  timers.Stop();
  const int until_stop = runs;
  EXPECT_FALSE(timers.Cancel(timers.ScheduleAfter(absl::ZeroDuration(), tick)));
  timers.Stop();
  EXPECT_EQ(runs, until_stop);
}

}  // namespace
}  // namespace hyserve::common
