// Everything that can go wrong around a hand-off: one clear status, and nothing held afterwards.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/common/worker_errors.h"
#include "tests/services/workers/worker_harness.h"

namespace hyserve::test {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr int32_t kManyTokens = 20'000;  // more than a test waits for

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// Afterwards the same workers serve a request as if nothing had happened.
void ExpectStillServes(WorkerHarness& harness) {
  const WorkerHarness::Reply reply =
      harness.Run(harness.NewRequest(MakePrompt(200, 99), Greedy(5)));
  EXPECT_TRUE(reply.prefill.status.ok()) << reply.prefill.status;
  EXPECT_TRUE(reply.decode.status.ok()) << reply.decode.status;
  EXPECT_EQ(reply.tokens.size(), 5u);
  EXPECT_TRUE(harness.WaitIdle());
}

// ---- cancel -------------------------------------------------------------------------------------

TEST(Cancel, PrefillBeforeAnybodyPulls) {
  WorkerHarness harness({.chunk_tokens = 64});
  const auto request = harness.NewRequest(MakePrompt(8000), Greedy(8));
  const PrefillReply reply = harness.Prefill(
      request.prefill, [](grpc::ClientContext* context, const v1::PrefillEvent& event) {
        if (event.has_progress()) context->TryCancel();
      });
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(reply.first_token, -1);
  EXPECT_TRUE(harness.WaitIdle());
  ExpectStillServes(harness);
}

TEST(Cancel, BothDuringTheTransfer) {
  WorkerHarness harness({.chunk_tokens = 64});
  const auto request = harness.NewRequest(MakePrompt(8000), Greedy(8));
  std::atomic<grpc::ClientContext*> decode_context{nullptr};
  const WorkerHarness::Reply reply = harness.Run(
      request,
      [&](grpc::ClientContext* context, const v1::PrefillEvent& event) {
        // Pages of the first chunks are on their way.
        if (!event.has_progress() || event.progress().computed_tokens() < 640) return;
        while (decode_context == nullptr) std::this_thread::yield();
        decode_context.load()->TryCancel();
        context->TryCancel();
      },
      [&](grpc::ClientContext* context, const v1::DecodeEvent&) { decode_context = context; });
  EXPECT_EQ(reply.prefill.status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(reply.decode.status.code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(reply.decode.started);
  EXPECT_TRUE(harness.WaitIdle());
  ExpectStillServes(harness);
}

TEST(Cancel, DecodeAloneDuringTheTransferEndsThePrefillToo) {
  WorkerHarness harness({.chunk_tokens = 64});
  const auto request = harness.NewRequest(MakePrompt(16000), Greedy(8));
  std::atomic<grpc::ClientContext*> decode_context{nullptr};
  const WorkerHarness::Reply reply = harness.Run(
      request,
      [&](grpc::ClientContext*, const v1::PrefillEvent& event) {
        if (!event.has_progress() || event.progress().computed_tokens() != 640) return;
        while (decode_context == nullptr) std::this_thread::yield();
        decode_context.load()->TryCancel();
      },
      [&](grpc::ClientContext* context, const v1::DecodeEvent&) { decode_context = context; });
  EXPECT_EQ(reply.decode.status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(reply.prefill.status.code(), absl::StatusCode::kUnavailable) << reply.prefill.status;
  EXPECT_TRUE(common::HasCause(reply.prefill.status, common::kHandoffFailed));
  EXPECT_LT(reply.prefill.progress.back(), 16000);
  EXPECT_TRUE(harness.WaitIdle());
  ExpectStillServes(harness);
}

TEST(Cancel, PrefillAloneDuringTheTransferFailsThePull) {
  WorkerHarness harness({.chunk_tokens = 64});
  const auto request = harness.NewRequest(MakePrompt(8000), Greedy(8));
  const WorkerHarness::Reply reply = harness.Run(
      request, [&](grpc::ClientContext* context, const v1::PrefillEvent& event) {
        if (event.has_progress() && event.progress().computed_tokens() == 640) context->TryCancel();
      });
  EXPECT_EQ(reply.prefill.status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(reply.decode.status.code(), absl::StatusCode::kUnavailable) << reply.decode.status;
  EXPECT_TRUE(common::HasCause(reply.decode.status, common::kHandoffFailed));
  EXPECT_TRUE(harness.WaitIdle());
  ExpectStillServes(harness);
}

TEST(Cancel, DecodeAfterTheTransfer) {
  WorkerHarness harness;
  const auto request = harness.NewRequest(MakePrompt(100), Greedy(kManyTokens));
  const WorkerHarness::Reply reply =
      harness.Run(request, nullptr, [](grpc::ClientContext* context, const v1::DecodeEvent& event) {
        if (event.has_tokens()) context->TryCancel();
      });
  EXPECT_EQ(reply.prefill.handoff, "committed");
  EXPECT_EQ(reply.decode.status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(reply.decode.started);
  EXPECT_TRUE(harness.WaitIdle());
  ExpectStillServes(harness);
}

TEST(Cancel, Local) {
  WorkerHarness harness({.monolithic = true});
  const auto request = harness.NewRequest(MakePrompt(100), Greedy(kManyTokens));
  const auto stub = v1::DecodeWorker::NewStub(grpc::CreateChannel(
      harness.monolithic()->host().address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  const auto reader = stub->Decode(&context, WorkerHarness::WithoutTicket(request));
  v1::DecodeEvent event;
  while (reader->Read(&event)) {
    if (event.has_tokens()) context.TryCancel();
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(harness.WaitIdle());
}

// ---- deadline -----------------------------------------------------------------------------------

TEST(Deadline, DuringGeneration) {
  WorkerHarness harness;
  const auto request = harness.NewRequest(MakePrompt(100), Greedy(kManyTokens));
  const WorkerHarness::Reply reply =
      harness.Run(request, nullptr, nullptr, absl::Milliseconds(300));
  EXPECT_EQ(reply.decode.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(harness.WaitIdle());
  ExpectStillServes(harness);
}

TEST(Deadline, WhileDecodeWaitsForAPrefillThatNeverComes) {
  WorkerHarness harness;
  const auto request = harness.NewRequest(MakePrompt(100), Greedy(8));
  const DecodeReply reply = harness.Decode(request.decode, nullptr, absl::Milliseconds(300));
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(reply.reserved);
  EXPECT_TRUE(harness.WaitIdle());
  ExpectStillServes(harness);
}

// ---- tickets ------------------------------------------------------------------------------------

TEST(Ticket, NobodyOffersIt) {
  WorkerHarness harness({.lease = absl::Milliseconds(300), .lease_renew = absl::Milliseconds(50)});
  auto request = harness.NewRequest(MakePrompt(100), Greedy(8));
  request.decode.mutable_ticket()->set_transfer_id(kv_transfer::TransferId::Random().ToBytes());
  const DecodeReply reply = harness.Decode(request.decode, nullptr, absl::Milliseconds(500));
  EXPECT_FALSE(reply.started);
  EXPECT_FALSE(reply.status.ok());
  EXPECT_TRUE(harness.WaitIdle());
  ExpectStillServes(harness);
}

TEST(Ticket, OfAnEarlierProcess) {
  WorkerHarness harness;
  auto request = harness.NewRequest(MakePrompt(100), Greedy(8));
  v1::TransferEndpoint* const source = request.prefill.mutable_ticket()->mutable_source();
  source->set_incarnation(source->incarnation() ^ 1);
  const PrefillReply prefill = harness.Prefill(request.prefill);
  EXPECT_EQ(prefill.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(common::HasCause(prefill.status, common::kStaleIncarnation)) << prefill.status;
  EXPECT_EQ(prefill.cached_tokens, -1);

  *request.decode.mutable_ticket() = request.prefill.ticket();
  const DecodeReply decode = harness.Decode(request.decode, nullptr, absl::Seconds(10));
  EXPECT_EQ(decode.status.code(), absl::StatusCode::kUnavailable) << decode.status;
  EXPECT_TRUE(common::HasCause(decode.status, common::kHandoffFailed));
  EXPECT_TRUE(harness.WaitIdle());
  ExpectStillServes(harness);
}

TEST(Ticket, OfAnotherLayoutMovesNothing) {
  WorkerHarness harness;
  auto request = harness.NewRequest(MakePrompt(100), Greedy(8));
  request.prefill.mutable_ticket()->set_layout_fingerprint("other");
  request.decode.mutable_ticket()->set_layout_fingerprint("other");
  const WorkerHarness::Reply reply = harness.Run(request);
  EXPECT_EQ(reply.prefill.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(reply.decode.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(reply.decode.status), StartsWith("layout_mismatch"));
  EXPECT_FALSE(reply.decode.reserved);
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(Ticket, UsedTwice) {
  WorkerHarness harness;
  auto request = harness.NewRequest(MakePrompt(100), Greedy(8));
  ASSERT_TRUE(harness.Run(request).decode.status.ok());
  request.prefill.mutable_id()->set_request_id("again");
  const PrefillReply reply = harness.Prefill(request.prefill);
  EXPECT_FALSE(reply.status.ok() && reply.handoff == "committed") << reply.handoff;
  EXPECT_TRUE(harness.WaitIdle());
  ExpectStillServes(harness);
}

TEST(Ticket, OtherPromptAtDecode) {
  WorkerHarness harness;
  auto request = harness.NewRequest(MakePrompt(100), Greedy(8));
  request.decode.set_prompt(50, request.decode.prompt(50) == 1 ? 2 : 1);
  const WorkerHarness::Reply reply = harness.Run(request);
  EXPECT_EQ(reply.decode.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(reply.decode.status), HasSubstr("another prompt"));
  EXPECT_FALSE(reply.decode.started);
  EXPECT_TRUE(reply.decode.tokens.empty());
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(Ticket, PromptOfAnotherLengthAtDecode) {
  WorkerHarness harness;
  auto request = harness.NewRequest(MakePrompt(100), Greedy(8));
  request.decode.mutable_prompt()->Truncate(64);
  const WorkerHarness::Reply reply =
      harness.Run(request, nullptr, nullptr, absl::Milliseconds(500));
  EXPECT_FALSE(reply.decode.status.ok());
  EXPECT_FALSE(reply.decode.started);
  EXPECT_TRUE(harness.WaitIdle());
}

// ---- attempts -----------------------------------------------------------------------------------

TEST(Attempts, ANewerOneCancelsTheOlder) {
  WorkerHarness harness({.chunk_tokens = 64});
  const auto first = harness.NewRequest(MakePrompt(16000), Greedy(8));
  auto second = harness.NewRequest(MakePrompt(100), Greedy(8));
  for (v1::RequestId* id : {second.prefill.mutable_id(), second.decode.mutable_id()}) {
    *id = first.prefill.id();
    id->set_attempt(2);
  }
  second.prefill.mutable_ticket()->set_attempt(2);
  second.decode.mutable_ticket()->set_attempt(2);
  WorkerHarness::Reply newer;
  std::thread thread;
  const PrefillReply older = harness.Prefill(
      first.prefill, [&](grpc::ClientContext*, const v1::PrefillEvent& event) {
        if (!event.has_progress() || thread.joinable()) return;
        thread = std::thread([&] { newer = harness.Run(second); });
      });
  thread.join();
  EXPECT_EQ(older.status.code(), absl::StatusCode::kAborted) << older.status;
  EXPECT_THAT(Message(older.status), StartsWith("stale_attempt"));
  EXPECT_EQ(older.first_token, -1);
  EXPECT_TRUE(newer.decode.status.ok()) << newer.decode.status;
  EXPECT_EQ(newer.tokens.size(), 8u);
  EXPECT_TRUE(harness.WaitIdle());
  EXPECT_GE(WorkerHarness::Metric(harness.prefill()->host(), "hyserve_kv_stale_epoch_total"), 1);
}

TEST(Attempts, AnOlderOneIsRefusedWhileTheNewerComputes) {
  WorkerHarness harness;
  auto newer = harness.NewRequest(MakePrompt(100), Greedy(kManyTokens));
  for (v1::RequestId* id : {newer.prefill.mutable_id(), newer.decode.mutable_id()}) {
    id->set_attempt(2);
  }
  newer.prefill.mutable_ticket()->set_attempt(2);
  newer.decode.mutable_ticket()->set_attempt(2);
  auto older = harness.NewRequest(MakePrompt(100), Greedy(8));
  older.decode.mutable_id()->set_request_id(newer.decode.id().request_id());
  DecodeReply refused;
  const WorkerHarness::Reply reply = harness.Run(
      newer, nullptr, [&](grpc::ClientContext* context, const v1::DecodeEvent& event) {
        if (!event.has_started()) return;
        refused = harness.Decode(older.decode);
        context->TryCancel();
      });
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kAborted) << refused.status;
  EXPECT_THAT(Message(refused.status), StartsWith("stale_attempt"));
  EXPECT_FALSE(refused.reserved);
  EXPECT_TRUE(reply.decode.started);
  EXPECT_TRUE(harness.WaitIdle());
}

// ---- memory and leases --------------------------------------------------------------------------

TEST(Memory, ARequestThatNeverFitsIsRefused) {
  WorkerHarness harness({.kv_memory_bytes = int64_t{2} << 20});
  const auto request = harness.NewRequest(MakePrompt(200), Greedy(32'000));
  const DecodeReply reply = harness.Decode(request.decode);
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kResourceExhausted) << reply.status;
  EXPECT_FALSE(reply.reserved);
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(Memory, DecodeWithoutRoomWaitsForItsTurn) {
  WorkerHarness harness({.max_sequences = 1});
  const auto holder = harness.NewRequest(MakePrompt(100), Greedy(kManyTokens));
  const auto waiter = harness.NewRequest(MakePrompt(100, 1), Greedy(6));
  WorkerHarness::Reply second;
  std::thread thread;
  const WorkerHarness::Reply first = harness.Run(
      holder, nullptr, [&](grpc::ClientContext* context, const v1::DecodeEvent& event) {
        if (event.has_started()) {
          thread = std::thread([&] { second = harness.Run(waiter); });
        } else if (thread.joinable() &&
                   harness.decode()->core().engine().load().waiting_sequences == 1) {
          context->TryCancel();
        }
      });
  thread.join();
  EXPECT_EQ(first.decode.status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(second.decode.status.ok()) << second.decode.status;
  EXPECT_EQ(second.tokens.size(), 6u);
  EXPECT_TRUE(harness.WaitIdle());
}

TEST(Lease, ExpiresWhenNobodyPulls) {
  WorkerHarness harness({.lease = absl::Milliseconds(200), .lease_renew = absl::Milliseconds(50)});
  const auto request = harness.NewRequest(MakePrompt(100), Greedy(8));
  const PrefillReply reply = harness.Prefill(request.prefill);
  EXPECT_TRUE(reply.status.ok()) << reply.status;
  EXPECT_GE(reply.first_token, 0);
  EXPECT_EQ(reply.handoff, "lease_expired");
  EXPECT_TRUE(harness.WaitIdle());
  EXPECT_EQ(WorkerHarness::Metric(harness.prefill()->host(), "hyserve_kv_lease_expired_total"), 1);
  EXPECT_EQ(WorkerHarness::Metric(harness.prefill()->host(),
                                  "hyserve_kv_transfer_failures_total",
                                  "reason=\"lease_expired\""),
            1);
  ExpectStillServes(harness);
}

// Cancelled at every point of its life, over and over: nothing may stay behind.
TEST(Cancel, AtEveryEventLeavesNothingBehind) {
  WorkerHarness harness({.chunk_tokens = 64});
  for (int event_number = 0; event_number < 30; ++event_number) {
    const auto request = harness.NewRequest(MakePrompt(900, event_number), Greedy(10));
    std::atomic<int> events{0};
    const WorkerHarness::Reply reply = harness.Run(
        request,
        [&](grpc::ClientContext* context, const v1::PrefillEvent&) {
          if (events++ == event_number) context->TryCancel();
        },
        [&](grpc::ClientContext* context, const v1::DecodeEvent&) {
          if (events++ == event_number) context->TryCancel();
        },
        absl::Seconds(10));
    ASSERT_TRUE(harness.WaitIdle()) << "cancelled at event " << event_number;
  }
  ExpectStillServes(harness);
}

}  // namespace
}  // namespace hyserve::test
