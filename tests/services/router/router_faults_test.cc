// Broken workers and impatient clients: every request ends exactly once, and nothing stays booked.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "services/common/worker_errors.h"
#include "tests/support/router_harness.h"

namespace hyserve::test {
namespace {

using ::testing::HasSubstr;

const std::vector<int32_t> kPrompt = {1, 2, 3};

grpc::Status Unavailable(const std::string& why) {
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, why);
}

// At least `count` tokens have arrived with this message. Messages may be merged on their way.
bool HasTokens(const v1::GenerateResponse& message, int32_t count) {
  return message.tokens().first_index() + message.tokens().token_ids_size() >= count;
}

// Decode that sends `count` tokens after the first and then does `then`.
DecodeHandler DecodeThen(int32_t count, std::function<grpc::Status(grpc::ServerContext*)> then) {
  return [count, then](grpc::ServerContext* context, const v1::DecodeRequest& request,
                       DecodeWriter* writer) {
    SendStarted(writer);
    for (int32_t i = 0; i < count; ++i) SendTokens(request, 1 + i, 1, writer);
    return then(context);
  };
}

TEST(RouterFaults, APrefillWorkerThatFailsIsReplacedUnseen) {
  RouterHarness harness;
  FakeWorker* const p0 = harness.AddPrefill("p0");
  FakeWorker* const p1 = harness.AddPrefill("p1");
  harness.AddDecode("d0");
  // Whichever is picked first fails once.
  std::atomic<int> failures{1};
  for (FakeWorker* worker : {p0, p1}) {
    worker->OnPrefill([&](grpc::ServerContext* context, const v1::PrefillRequest& request,
                          PrefillWriter* writer) {
      if (failures.fetch_sub(1) > 0) return Unavailable("dying");
      EXPECT_EQ(request.id().attempt(), 2u);
      return GoodPrefill(context, request, writer);
    });
  }
  const Reply reply = harness.Generate(RouterHarness::TokenRequest(kPrompt, 8));
  ASSERT_TRUE(reply.status.ok()) << reply.status;
  EXPECT_EQ(reply.text, FakeText(kPrompt, 8));
  EXPECT_EQ(reply.finished.handoff().attempts(), 2u);
  EXPECT_EQ(p0->prefill_calls(), 1);
  EXPECT_EQ(p1->prefill_calls(), 1);
  EXPECT_TRUE(harness.WaitIdle());
  EXPECT_EQ(harness.Metric("hyserve_retry_attempts_total{model=\"fake\",phase=\"prefill\""), 1);
  EXPECT_EQ(harness.Metric("hyserve_router_retry_total{"), 1);
}

TEST(RouterFaults, AFailedHandoffMovesToAnotherPair) {
  RouterHarness harness;
  FakeWorker* const prefill = harness.AddPrefill("p0");
  FakeWorker* const d0 = harness.AddDecode("d0");
  FakeWorker* const d1 = harness.AddDecode("d1");
  // Token 1 waits until the hand-off of the first attempt has failed.
  prefill->OnPrefill([](grpc::ServerContext* context, const v1::PrefillRequest& request,
                        PrefillWriter* writer) {
    return request.id().attempt() == 1 ? UntilCancelled(context)
                                       : GoodPrefill(context, request, writer);
  });
  for (FakeWorker* worker : {d0, d1}) {
    worker->OnDecode([](grpc::ServerContext* context, const v1::DecodeRequest& request,
                        DecodeWriter* writer) {
      if (request.id().attempt() == 1) {
        return Unavailable(std::string(common::kHandoffFailed) + "no progress");
      }
      return GoodDecode(context, request, writer);
    });
  }
  const Reply reply = harness.Generate(RouterHarness::TokenRequest(kPrompt, 8));
  ASSERT_TRUE(reply.status.ok()) << reply.status;
  EXPECT_EQ(reply.text, FakeText(kPrompt, 8));
  EXPECT_EQ(d0->decode_calls(), 1);
  EXPECT_EQ(d1->decode_calls(), 1);
  EXPECT_TRUE(harness.WaitIdle());
  EXPECT_EQ(harness.Metric("hyserve_retry_attempts_total{model=\"fake\",phase=\"handoff\""), 1);
}

double PairHealth(RouterHarness& harness, const std::string& pair) {
  harness.Scrape();
  return harness.Metric("hyserve_pair_health{model=\"fake\",pair=\"" + pair +
                        "\",role=\"router\"}");
}

// A series stands for a pair with a failure since its last success: 0 while it is avoided, then 1.
TEST(RouterFaults, PairHealthFollowsTheHandoffs) {
  for (const bool expires : {false, true}) {
    common::Config config = RouterHarness::DefaultConfig();
    config.router.pair_quarantine = expires ? absl::Milliseconds(10) : absl::Minutes(10);
    RouterHarness harness(config);
    FakeWorker* const prefill = harness.AddPrefill("p0");
    FakeWorker* const decode = harness.AddDecode("d0");
    std::atomic<bool> fails{true};
    prefill->OnPrefill([&](grpc::ServerContext* context, const v1::PrefillRequest& request,
                           PrefillWriter* writer) {
      // Token 1 must not be there before the hand-off has failed.
      return fails ? UntilCancelled(context) : GoodPrefill(context, request, writer);
    });
    decode->OnDecode([&](grpc::ServerContext* context, const v1::DecodeRequest& request,
                         DecodeWriter* writer) {
      return fails ? Unavailable(std::string(common::kHandoffFailed) + "no progress")
                   : GoodDecode(context, request, writer);
    });
    EXPECT_EQ(PairHealth(harness, "p0->d0"), -1);
    EXPECT_FALSE(harness.Generate(RouterHarness::TokenRequest(kPrompt, 8)).status.ok());
    if (!expires) {
      EXPECT_EQ(PairHealth(harness, "p0->d0"), 0);
      continue;
    }
    while (PairHealth(harness, "p0->d0") != 1) absl::SleepFor(absl::Milliseconds(1));
    fails = false;
    EXPECT_TRUE(harness.Generate(RouterHarness::TokenRequest(kPrompt, 8)).status.ok());
    EXPECT_EQ(PairHealth(harness, "p0->d0"), -1);
  }
}

TEST(RouterFaults, WorkersThatAlwaysFailGiveUnavailableAfterTheRetries) {
  RouterHarness harness;
  FakeWorker* const prefill = harness.AddPrefill("p0");
  harness.AddDecode("d0");
  prefill->OnPrefill([](auto*, const auto&, auto*) { return Unavailable("dying"); });
  const Reply reply = harness.Generate(RouterHarness::TokenRequest(kPrompt, 8));
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(prefill->prefill_calls(), 3);
  EXPECT_TRUE(reply.token_ids.empty());
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(RouterFaults, DecodeLostInTheStreamIsAbortedWithTheCount) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  absl::Notification seen;
  harness.AddDecode("d0")->OnDecode(DecodeThen(4, [&](auto*) {
    seen.WaitForNotificationWithTimeout(absl::Seconds(10));
    return Unavailable("dying");
  }));
  const Reply reply =
      harness.Generate(RouterHarness::TokenRequest(kPrompt, 50),
                       [&](grpc::ClientContext*, const v1::GenerateResponse& message) {
                         if (HasTokens(message, 5)) seen.Notify();
                       });
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(reply.status.ToString(), HasSubstr("after 5 tokens"));
  EXPECT_EQ(reply.text, FakeText(kPrompt, 5));
  EXPECT_EQ(reply.finished_count, 0);
  EXPECT_TRUE(harness.WaitIdle());
  EXPECT_EQ(harness.Metric("hyserve_requests_total{code=\"ABORTED\""), 1);
}

TEST(RouterFaults, AKilledDecodeWorkerEndsItsStreamsAndIsCountedAsACrash) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  FakeWorker* const decode = harness.AddDecode("d0");
  decode->OnDecode(DecodeThen(4, UntilCancelled));
  absl::Notification streaming;
  std::thread killer([&] {
    streaming.WaitForNotification();
    decode->Kill();
  });
  const Reply reply = harness.Generate(
      RouterHarness::TokenRequest(kPrompt, 50),
      [&](grpc::ClientContext*, const v1::GenerateResponse& message) {
        if (HasTokens(message, 2) && !streaming.HasBeenNotified()) streaming.Notify();
      });
  killer.join();
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kAborted) << reply.status;
  EXPECT_TRUE(reply.contiguous);
  EXPECT_TRUE(harness.WaitIdle());
  EXPECT_EQ(harness.Metric("hyserve_worker_crashes_total{"), 1);
  EXPECT_EQ(harness.router()->NotReadyReason(), "no pair of workers");
}

TEST(RouterFaults, ALostRegistrationLosesTheWorkersRequests) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  FakeWorker* const d0 = harness.AddDecode("d0");
  d0->OnDecode(DecodeThen(2, UntilCancelled));
  const Reply reply = harness.Generate(
      RouterHarness::TokenRequest(kPrompt, 50),
      [&](grpc::ClientContext*, const v1::GenerateResponse& message) {
        if (HasTokens(message, 3)) d0->DropRegistration();
      });
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(RouterFaults, WrongIndicesAreNeverShownToTheClient) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  FakeWorker* const decode = harness.AddDecode("d0");
  decode->OnDecode([](grpc::ServerContext* context, const v1::DecodeRequest& request,
                      DecodeWriter* writer) {
    SendStarted(writer);
    SendTokens(request, 1, 2, writer);
    SendTokens(request, 1, 2, writer);  // again
    SendTokens(request, 2, 2, writer);  // overlapping
    SendFinished(4, true, writer);
    return grpc::Status::OK;
  });
  const Reply good = harness.Generate(RouterHarness::TokenRequest(kPrompt, 4));
  ASSERT_TRUE(good.status.ok()) << good.status;
  EXPECT_EQ(good.text, FakeText(kPrompt, 4));
  EXPECT_TRUE(good.contiguous);
  EXPECT_EQ(harness.Metric("hyserve_kv_stale_epoch_total{"), 2);

  decode->OnDecode([](grpc::ServerContext* context, const v1::DecodeRequest& request,
                      DecodeWriter* writer) {
    SendStarted(writer);
    SendTokens(request, 1, 1, writer);
    SendTokens(request, 5, 1, writer);  // a gap
    return UntilCancelled(context);
  });
  const Reply bad = harness.Generate(RouterHarness::TokenRequest(kPrompt, 9));
  EXPECT_FALSE(bad.status.ok());
  EXPECT_TRUE(bad.contiguous);
  EXPECT_LE(bad.token_ids.size(), 2u);
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(RouterFaults, ACancelledRequestFreesBothWorkers) {
  RouterHarness harness;
  FakeWorker* const prefill = harness.AddPrefill("p0");
  FakeWorker* const decode = harness.AddDecode("d0");
  prefill->OnPrefill([](grpc::ServerContext* context, const v1::PrefillRequest& request,
                        PrefillWriter* writer) {
    SendFirstToken(request, writer);
    return UntilCancelled(context);  // the hand-off is still open
  });
  decode->OnDecode(DecodeThen(1, UntilCancelled));
  const Reply reply =
      harness.Generate(RouterHarness::TokenRequest(kPrompt, 50),
                       [](grpc::ClientContext* context, const v1::GenerateResponse& message) {
                         if (HasTokens(message, 2)) context->TryCancel();
                       });
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(harness.WaitIdle());
  EXPECT_EQ(harness.Metric("hyserve_requests_total{code=\"CANCELLED\""), 1);
}

TEST(RouterFaults, ADeadlineFreesBothWorkers) {
  RouterHarness harness;
  harness.AddPrefill("p0")->OnPrefill(
      [](grpc::ServerContext* context, const auto&, auto*) { return UntilCancelled(context); });
  harness.AddDecode("d0")->OnDecode(
      [](grpc::ServerContext* context, const auto&, auto*) { return UntilCancelled(context); });
  const Reply reply =
      harness.Generate(RouterHarness::TokenRequest(kPrompt, 50), nullptr, absl::Milliseconds(200));
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(harness.WaitIdle());
  EXPECT_EQ(harness.Metric("hyserve_requests_total{code=\"DEADLINE_EXCEEDED\""), 1);
}

TEST(RouterFaults, ARequestThatMeetsNoWorkersWaitsForNewOnes) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  FakeWorker* const d0 = harness.AddDecode("d0");
  std::atomic<int> calls{0};
  d0->OnDecode([&](grpc::ServerContext*, const v1::DecodeRequest&, DecodeWriter*) {
    ++calls;
    return Unavailable("dying");
  });
  d0->SetDraining(true);
  while (harness.router()->NotReadyReason().empty()) absl::SleepFor(absl::Milliseconds(1));
  std::thread later([&] {
    while (harness.router()->open_bookings() == 0) absl::SleepFor(absl::Milliseconds(1));
    harness.AddDecode("d1");
  });
  const Reply reply = harness.Generate(RouterHarness::TokenRequest(kPrompt, 8));
  later.join();
  ASSERT_TRUE(reply.status.ok()) << reply.status;
  EXPECT_EQ(reply.finished.handoff().decode_worker(), "d1");
  EXPECT_EQ(calls, 0);
}

TEST(RouterFaults, ADrainingRouterRefusesNewRequestsAndFinishesOldOnes) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  absl::Notification gate;
  harness.AddDecode("d0")->OnDecode([&](grpc::ServerContext* context,
                                        const v1::DecodeRequest& request, DecodeWriter* writer) {
    gate.WaitForNotificationWithTimeout(absl::Seconds(10));
    return GoodDecode(context, request, writer);
  });
  Reply old;
  std::thread client([&] { old = harness.Generate(RouterHarness::TokenRequest(kPrompt, 8)); });
  while (harness.router()->open_bookings() < 1) absl::SleepFor(absl::Milliseconds(1));
  std::thread drainer([&] { harness.router()->Drain(absl::Seconds(20), absl::Seconds(25)); });
  while (harness.router()->NotReadyReason() != "draining") absl::SleepFor(absl::Milliseconds(1));
  const Reply refused = harness.Generate(RouterHarness::TokenRequest(kPrompt, 8));
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(refused.status.ToString(), HasSubstr("draining"));
  EXPECT_FALSE(refused.pushback_ms.empty());
  EXPECT_EQ(harness.Metric("hyserve_rejected_total{model=\"fake\",reason=\"draining\""), 1);
  gate.Notify();
  client.join();
  drainer.join();
  EXPECT_TRUE(old.status.ok()) << old.status;
  // The router went, not its workers.
  EXPECT_EQ(harness.Metric("hyserve_worker_crashes_total{"), 0);
}

TEST(RouterFaults, AWorkerThatSaysItHasFailedGetsNoRequestsAndCountsAsACrash) {
  RouterHarness harness;
  harness.AddPrefill("p0");
  FakeWorker* const failed = harness.AddDecode("d0");
  failed->SetFailure("the device is lost");
  while (harness.router()->NotReadyReason().empty()) absl::SleepFor(absl::Milliseconds(1));
  harness.AddDecode("d1");
  for (int i = 0; i < 3; ++i) {
    const Reply reply = harness.Generate(RouterHarness::TokenRequest(kPrompt, 8));
    ASSERT_TRUE(reply.status.ok()) << reply.status;
  }
  EXPECT_EQ(failed->decode_calls(), 0);
  EXPECT_EQ(harness.Metric("hyserve_worker_crashes_total{"), 0);
  failed->SetDraining(true);  // it takes its leave in order
  failed->DropRegistration();
  while (harness.router()->usable_workers() > 2) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(harness.Metric("hyserve_worker_crashes_total{"), 1);
}

TEST(RouterFaults, DrainingEndsWhatDoesNotEndByItself) {
  auto harness = std::make_unique<RouterHarness>();
  harness->AddPrefill("p0")->OnPrefill(
      [](grpc::ServerContext* context, const v1::PrefillRequest& request, PrefillWriter* writer) {
        SendFirstToken(request, writer);
        return UntilCancelled(context);
      });
  harness->AddDecode("d0")->OnDecode(DecodeThen(1, UntilCancelled));
  std::thread drainer;
  const Reply reply = harness->Generate(
      RouterHarness::TokenRequest(kPrompt, 50),
      [&](grpc::ClientContext*, const v1::GenerateResponse& message) {
        if (HasTokens(message, 2) && !drainer.joinable()) {
          drainer = std::thread(
              [&] { harness->router()->Drain(absl::Milliseconds(50), absl::Seconds(5)); });
        }
      });
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(reply.status.ToString(), HasSubstr("the router stops, after 2 tokens"));
  drainer.join();
}

}  // namespace
}  // namespace hyserve::test
