#include "services/router/admission.h"

#include <gtest/gtest.h>

#include "services/common/status_mapping.h"

namespace hyserve::router {
namespace {

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);

TEST(AdmissionQueue, IsFirstInFirstOutWithRetriesInFront) {
  AdmissionQueue queue({.queued_requests = 10, .queued_tokens = 1000});
  EXPECT_FALSE(queue.Front().has_value());
  ASSERT_TRUE(queue.Push(1, 5, absl::InfiniteFuture(), false, kStart).ok());
  ASSERT_TRUE(queue.Push(2, 5, absl::InfiniteFuture(), false, kStart).ok());
  ASSERT_TRUE(queue.Push(3, 5, absl::InfiniteFuture(), true, kStart).ok());
  EXPECT_EQ(queue.tokens(), 15);
  EXPECT_EQ(queue.Front(), 3u);
  queue.PopFront(kStart);
  EXPECT_EQ(queue.Front(), 1u);
  EXPECT_TRUE(queue.Remove(1));
  EXPECT_FALSE(queue.Remove(1));
  EXPECT_EQ(queue.Front(), 2u);
  EXPECT_EQ(queue.tokens(), 5);
}

TEST(AdmissionQueue, RefusesBeyondItsBoundsWithARetryHint) {
  AdmissionQueue queue({.queued_requests = 2, .queued_tokens = 100});
  ASSERT_TRUE(queue.Push(1, 90, absl::InfiniteFuture(), false, kStart).ok());
  const absl::Status tokens = queue.Push(2, 11, absl::InfiniteFuture(), false, kStart);
  EXPECT_EQ(tokens.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(common::RetryDelay(tokens).has_value());
  ASSERT_TRUE(queue.Push(2, 10, absl::InfiniteFuture(), false, kStart).ok());
  EXPECT_FALSE(queue.Push(3, 0, absl::InfiniteFuture(), false, kStart).ok());
  EXPECT_TRUE(queue.Push(4, 50, absl::InfiniteFuture(), true, kStart).ok());  // a retry goes in
}

TEST(AdmissionQueue, OnePromptLargerThanTheBoundMayWaitAlone) {
  AdmissionQueue queue({.queued_requests = 2, .queued_tokens = 100});
  EXPECT_TRUE(queue.Push(1, 500, absl::InfiniteFuture(), false, kStart).ok());
}

TEST(AdmissionQueue, RefusesWhoCannotBeServedBeforeTheDeadline) {
  AdmissionQueue queue({});
  absl::Time now = kStart;
  for (Ticket ticket = 1; ticket <= 4; ++ticket) {
    ASSERT_TRUE(queue.Push(ticket, 1, absl::InfiniteFuture(), false, now).ok());
  }
  EXPECT_EQ(queue.ExpectedWait(), absl::ZeroDuration());
  now += absl::Seconds(2);
  queue.PopFront(now);  // one departure in two seconds
  EXPECT_EQ(queue.ExpectedWait(), absl::Seconds(6));
  EXPECT_EQ(queue.RetryDelay(), absl::Seconds(6));
  EXPECT_FALSE(queue.Push(5, 1, now + absl::Seconds(5), false, now).ok());
  EXPECT_TRUE(queue.Push(6, 1, now + absl::Seconds(7), false, now).ok());
}

TEST(RetryBudget, AllowsOnlyItsPartOfTheRequests) {
  RetryBudget budget(/*ratio=*/0.1, /*burst=*/2);
  EXPECT_TRUE(budget.TryRetry());
  EXPECT_TRUE(budget.TryRetry());
  EXPECT_FALSE(budget.TryRetry());
  int retries = 0;
  for (int i = 0; i < 1000; ++i) {
    budget.OnRequest();
    retries += budget.TryRetry() ? 1 : 0;
  }
  EXPECT_NEAR(retries, 100, 1);
}

}  // namespace
}  // namespace hyserve::router
