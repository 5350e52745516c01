#include "engine/runtime/command_queue.h"

#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"

namespace hyserve::runtime {
namespace {

SequenceRequest RequestOf(SequenceId id) {
  SequenceRequest request;
  request.id = id;
  request.prompt = {1, 2, 3};
  return request;
}

TEST(CommandQueueTest, BoundsWaitingSequencesAndRefusesLiveIds) {
  CommandQueue queue(2);
  EXPECT_TRUE(queue.Add(RequestOf(1), nullptr).ok());
  EXPECT_EQ(queue.Add(RequestOf(1), nullptr).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(queue.Add(RequestOf(2), nullptr).ok());
  EXPECT_EQ(queue.Add(RequestOf(3), nullptr).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(queue.pending().sequences, 2);
  EXPECT_EQ(queue.pending().prompt_tokens, 6);
  EXPECT_EQ(queue.Take(absl::InfinitePast()).commands.size(), 2u);
  EXPECT_EQ(queue.pending().sequences, 0);
  EXPECT_EQ(queue.Add(RequestOf(3), nullptr).code(), absl::StatusCode::kResourceExhausted)
      << "taken commands still wait";
  queue.LeftQueue(1);
  queue.LeftQueue(1);
  EXPECT_TRUE(queue.Add(RequestOf(3), nullptr).ok());
  EXPECT_EQ(queue.Add(RequestOf(4), nullptr).code(), absl::StatusCode::kResourceExhausted);
  queue.Forget(1);
  queue.Forget(2);
  EXPECT_TRUE(queue.Add(RequestOf(1), nullptr).ok()) << "a forgotten id may be used again";
}

TEST(CommandQueueTest, CommandsForUnknownIdsAndRepetitionsAreDropped) {
  CommandQueue queue(4);
  queue.Cancel(7);
  queue.Release(7);
  queue.Resume(7, 1);
  EXPECT_TRUE(queue.Take(absl::InfinitePast()).commands.empty());
  EXPECT_TRUE(queue.Add(RequestOf(7), nullptr).ok());
  for (int i = 0; i < 3; ++i) {
    queue.Resume(7, 10 + i);
    queue.Cancel(7);
    queue.Release(7);
  }
  const auto commands = queue.Take(absl::InfinitePast()).commands;
  ASSERT_EQ(commands.size(), 4u);
  EXPECT_EQ(commands[0].kind, Command::Kind::kAdd);
  EXPECT_EQ(commands[1].kind, Command::Kind::kResume);
  EXPECT_EQ(commands[1].first_token, 10);
  EXPECT_EQ(commands[2].kind, Command::Kind::kCancel);
  EXPECT_EQ(commands[3].kind, Command::Kind::kRelease);
}

TEST(CommandQueueTest, TakeSleepsUntilACommandOrAStop) {
  CommandQueue queue(4);
  std::thread producer([&] { EXPECT_TRUE(queue.Add(RequestOf(1), nullptr).ok()); });
  EXPECT_EQ(queue.Take(absl::InfiniteFuture()).commands.size(), 1u);
  producer.join();
  std::thread stopper([&] { queue.Stop(); });
  EXPECT_TRUE(queue.Take(absl::InfiniteFuture()).stop);
  stopper.join();
  EXPECT_EQ(queue.Add(RequestOf(2), nullptr).code(), absl::StatusCode::kUnavailable);
}

TEST(CommandQueueTest, TakeReturnsAtItsTime) {
  CommandQueue queue(1);
  const auto batch = queue.Take(absl::Now() + absl::Milliseconds(1));
  EXPECT_TRUE(batch.commands.empty());
  EXPECT_FALSE(batch.stop);
}

}  // namespace
}  // namespace hyserve::runtime
