// Ends before their time: errors of the device, cancels, deadlines, overload, shutdown.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "tests/engine/runtime/engine_harness.h"
#include "tests/engine/runtime/fake_engine.h"

namespace hyserve::runtime {
namespace {

using sampling::FinishReason;
using sampling::SamplingParams;
using testing::Contains;

// Holds the next step that begins, until let go. May end before the model does.
class Gate {
 public:
  explicit Gate(testing_support::FakeModel* model) {
    model->SetHook([state = state_](const model::StepInput&) {
      if (!state->entered.HasBeenNotified()) {
        state->entered.Notify();
        state->open.WaitForNotification();
      }
      return absl::OkStatus();
    });
  }
  void AwaitHeld() { state_->entered.WaitForNotification(); }
  void Open() { state_->open.Notify(); }

 private:
  struct State {
    absl::Notification entered, open;
  };
  const std::shared_ptr<State> state_ = std::make_shared<State>();
};

TEST(EngineFaultsTest, ErrorOfAStepEndsItsSequencesOnly) {
  FakeEngine engine;
  auto bystander = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine->Reserve(Request(1, SequenceMode::kDecode, Prompt(70, 1)), bystander).ok());
  bystander->AwaitReserved();
  engine.model->SetHook([](const model::StepInput&) { return absl::InternalError("device lost"); });
  auto prefill = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine->Submit(Request(2, SequenceMode::kPrefill, Prompt(70, 1)), prefill).ok());
  const Record failed = RunLocal(*engine, Request(3, SequenceMode::kLocal, Prompt(70, 1)));
  EXPECT_EQ(failed.status, absl::InternalError("device lost"));
  EXPECT_EQ(failed.reason, FinishReason::kError);
  EXPECT_EQ(prefill->AwaitEnd().status.code(), absl::StatusCode::kInternal);
  engine.model->SetHook(nullptr);
  engine->Resume(1, 3);
  EXPECT_EQ(bystander->AwaitEnd().status, absl::OkStatus());
  EXPECT_EQ(RunLocal(*engine, Request(4, SequenceMode::kLocal, Prompt(70, 1))).status,
            absl::OkStatus());
  EXPECT_GT(engine->load().blocks_used, 0) << "the failed prefill is still pinned";
  engine->Release(2);
  AwaitAllFree(*engine);
}

TEST(EngineFaultsTest, AFailedStepLeavesNothingOfItsSequencesInTheCache) {
  for (const bool has_window_layers : {true, false}) {
    FakeEngineOptions options;
    options.engine.chunk_tokens = 128;
    options.engine.snapshot_interval_tokens = 128;
    options.has_window_layers = has_window_layers;
    FakeEngine engine(options);
    int steps = 0;
    engine.model->SetHook([&steps](const model::StepInput&) {
      return ++steps == 3 ? absl::InternalError("once") : absl::OkStatus();
    });
    auto sink = std::make_shared<RecordingSink>();
    ASSERT_TRUE(engine->Submit(Request(1, SequenceMode::kPrefill, Prompt(500, 1)), sink).ok());
    EXPECT_EQ(sink->AwaitEnd().status, absl::InternalError("once"));
    // Two chunks were published before: no longer found, though their holder has not let go.
    const auto request = Request(2, SequenceMode::kLocal, Prompt(500, 1));
    const Record again = RunLocal(*engine, request);
    EXPECT_EQ(again.status, absl::OkStatus());
    EXPECT_EQ(again.usage.cached_tokens, 0);
    engine->Release(1);
    AwaitAllFree(*engine);
    // With its last holder the distrusted name is free again.
    EXPECT_EQ(RunLocal(*engine, Request(3, SequenceMode::kLocal, Prompt(500, 1))).tokens,
              again.tokens);
    EXPECT_GT(RunLocal(*engine, Request(4, SequenceMode::kLocal, Prompt(500, 1)))
                  .usage.cached_tokens,
              0);
    EXPECT_EQ(engine->health(), absl::OkStatus()) << "the device can still be synchronised";
    AwaitAllFree(*engine);
  }
}

TEST(EngineFaultsTest, AStepWithoutMemoryEndsItsSequencesAndTheNextOneSucceeds) {
  FakeEngine engine;
  int steps = 0;
  engine.model->SetHook([&steps](const model::StepInput&) {
    return ++steps == 1 ? absl::ResourceExhaustedError("no room for the workspace")
                        : absl::OkStatus();
  });
  EXPECT_EQ(RunLocal(*engine, Request(1, SequenceMode::kLocal, Prompt(70, 1))).status,
            absl::ResourceExhaustedError("no room for the workspace"));
  EXPECT_EQ(engine->health(), absl::OkStatus());
  EXPECT_EQ(RunLocal(*engine, Request(2, SequenceMode::kLocal, Prompt(70, 1))).status,
            absl::OkStatus());
  AwaitAllFree(*engine);
}

TEST(EngineFaultsTest, ALostDeviceEndsEverySequenceAndRefusesNewOnes) {
  FakeEngine engine;
  auto reserved = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine->Reserve(Request(1, SequenceMode::kDecode, Prompt(70, 1)), reserved).ok());
  reserved->AwaitReserved();
  engine.model->SetHook([&engine](const model::StepInput&) {
    engine.device->Break(absl::InternalError("the context is corrupt"));
    return absl::InternalError("illegal address");
  });
  const Record record = RunLocal(*engine, Request(2, SequenceMode::kLocal, Prompt(70, 1)));
  EXPECT_EQ(record.status, absl::UnavailableError(
                               "device_failed: illegal address (the context is corrupt)"));
  EXPECT_EQ(engine->health(), record.status);
  EXPECT_EQ(reserved->AwaitEnd().status, record.status) << "it will never be resumed";
  EXPECT_EQ(engine->Submit(Request(3, SequenceMode::kLocal, {1}), reserved), record.status);
  EXPECT_EQ(engine->Reserve(Request(4, SequenceMode::kDecode, {1}), reserved), record.status);
  EXPECT_GT(engine->load().blocks_used, 0) << "a transfer may still write";
  engine->Resume(1, 3);
  engine->Release(1);
  AwaitAllFree(*engine);
}

TEST(EngineFaultsTest, WhatWaitsWhenTheDeviceIsLostEndsToo) {
  FakeEngine engine;
  Gate gate(engine.model);
  auto running = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine->Submit(Request(1, SequenceMode::kLocal, Prompt(70, 1)), running).ok());
  gate.AwaitHeld();
  auto queued = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine->Submit(Request(2, SequenceMode::kLocal, Prompt(70, 1)), queued).ok());
  engine.model->SetHook([&engine](const model::StepInput&) {
    engine.device->Break(absl::InternalError("lost"));
    return absl::InternalError("lost");
  });
  gate.Open();
  EXPECT_EQ(running->AwaitEnd().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(queued->AwaitEnd().status, engine->health());
  AwaitAllFree(*engine);
}

TEST(EngineFaultsTest, LogitsThatAreNoNumbersEndThatSequenceOnly) {
  FakeEngine engine;
  Gate gate(engine.model);  // so that all of them share one step
  auto first = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine->Submit(Request(1, SequenceMode::kLocal, {1}), first).ok());
  gate.AwaitHeld();
  auto bad = std::make_shared<RecordingSink>();
  auto good = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine->Submit(Request(2, SequenceMode::kLocal, {5, 95, 6}), bad).ok());
  ASSERT_TRUE(engine->Submit(Request(3, SequenceMode::kLocal, {5, 6}), good).ok());
  gate.Open();
  const Record record = bad->AwaitEnd();
  EXPECT_EQ(record.status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(record.reason, FinishReason::kError);
  EXPECT_TRUE(record.tokens.empty());
  EXPECT_EQ(good->AwaitEnd().status, absl::OkStatus());
  EXPECT_EQ(first->AwaitEnd().status, absl::OkStatus());
  AwaitAllFree(*engine);
}

TEST(EngineFaultsTest, FullQueueRefusesAndLiveIdsAreNotTakenTwice) {
  FakeEngineOptions options;
  options.engine.max_sequences = 1;
  options.engine.max_queue = 2;
  FakeEngine engine(options);
  Gate gate(engine.model);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  auto submit = [&](SequenceId id) {
    sinks.push_back(std::make_shared<RecordingSink>());
    return engine->Submit(Request(id, SequenceMode::kLocal, Prompt(5, 1)), sinks.back());
  };
  ASSERT_TRUE(submit(1).ok());
  gate.AwaitHeld();  // admitted: waits no longer
  EXPECT_EQ(submit(1).code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(submit(2).ok());
  ASSERT_TRUE(submit(3).ok());
  EXPECT_EQ(submit(4).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(engine->load().waiting_sequences, 2);
  EXPECT_EQ(engine->load().waiting_tokens, 15) << "5 of them running";
  gate.Open();
  for (const int i : {0, 2, 3}) EXPECT_EQ(sinks[i]->AwaitEnd().status, absl::OkStatus());
  AwaitAllFree(*engine);
  EXPECT_TRUE(submit(1).ok()) << "the id of an ended sequence is free";
  sinks.back()->AwaitEnd();
  EXPECT_TRUE(sinks[1]->Now().calls.empty());
}

TEST(EngineFaultsTest, PassedDeadlineEndsWithoutComputing) {
  FakeEngine engine;
  auto request = Request(1, SequenceMode::kLocal, Prompt(5, 1));
  request.deadline = absl::Now() - absl::Seconds(1);
  const Record record = RunLocal(*engine, request);
  EXPECT_EQ(record.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(engine->load().step_counter, 0);
}

TEST(EngineFaultsTest, AnIdleEngineWakesForADeadline) {
  FakeEngine engine;
  auto sink = std::make_shared<RecordingSink>();
  auto request = Request(1, SequenceMode::kDecode, Prompt(5, 1));
  request.deadline = absl::Now() + absl::Milliseconds(20);
  ASSERT_TRUE(engine->Reserve(request, sink).ok());
  // Nothing else happens: neither a resume nor any other command.
  EXPECT_EQ(sink->AwaitEnd().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GT(engine->load().blocks_used, 0) << "a transfer may still write";
  engine->Release(1);
  AwaitAllFree(*engine);
}

TEST(EngineFaultsTest, AReservationThatCannotBeMetWaitsUntilItsDeadline) {
  FakeEngineOptions options;
  options.engine.max_sequences = 1;
  FakeEngine engine(options);
  auto holder = std::make_shared<RecordingSink>();
  auto waiter = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine->Reserve(Request(1, SequenceMode::kDecode, {1}), holder).ok());
  holder->AwaitReserved();
  auto request = Request(2, SequenceMode::kDecode, {1});
  request.deadline = absl::Now() + absl::Milliseconds(20);
  ASSERT_TRUE(engine->Reserve(request, waiter).ok());
  const Record record = waiter->AwaitReserved();
  EXPECT_EQ(record.reserve_status.code(), absl::StatusCode::kDeadlineExceeded);
  engine->Release(1);
  AwaitAllFree(*engine);
  EXPECT_EQ(waiter->Now().ends, 0) << "after a refusal OnFinished is not called";
}

TEST(EngineFaultsTest, CancelDuringAStepTakesEffectAfterIt) {
  FakeEngine engine;
  Gate gate(engine.model);
  auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine->Submit(Request(1, SequenceMode::kPrefill, Prompt(500, 1)), sink).ok());
  gate.AwaitHeld();
  engine->Cancel(1);
  engine->Cancel(1);
  gate.Open();
  const Record record = sink->AwaitEnd();
  EXPECT_EQ(record.status.code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(record.calls, Contains("progress"));
  EXPECT_GT(engine->load().blocks_used, 0) << "kept until Release";
  engine->Release(1);
  AwaitAllFree(*engine);
}

TEST(EngineFaultsTest, ReleaseOfARunningPrefillCancelsIt) {
  FakeEngine engine;
  Gate gate(engine.model);
  auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine->Submit(Request(1, SequenceMode::kPrefill, Prompt(500, 1)), sink).ok());
  gate.AwaitHeld();
  engine->Release(1);
  gate.Open();
  EXPECT_EQ(sink->AwaitEnd().status.code(), absl::StatusCode::kCancelled);
  AwaitAllFree(*engine);
}

TEST(EngineFaultsTest, ShutdownEndsEverySequenceOnce) {
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  {
    FakeEngineOptions options;
    options.engine.max_sequences = 4;
    FakeEngine engine(options);
    Gate gate(engine.model);
    const SequenceMode modes[] = {SequenceMode::kLocal, SequenceMode::kPrefill,
                                  SequenceMode::kDecode};
    for (int id = 0; id < 12; ++id) {
      sinks.push_back(std::make_shared<RecordingSink>());
      auto request = Request(id, modes[id % 3], Prompt(900, id),
                             {.max_tokens = 1000, .ignore_eos = true});
      ASSERT_TRUE((id % 3 == 2 ? engine->Reserve(request, sinks.back())
                               : engine->Submit(request, sinks.back()))
                      .ok());
    }
    gate.AwaitHeld();
    gate.Open();
  }
  for (int id = 0; id < 12; ++id) {
    const Record record = sinks[id]->Now();
    const absl::Status status = record.ends > 0 ? record.status : record.reserve_status;
    // What computes may have been complete before the engine was told to stop.
    if (!status.ok()) {
      EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << id;
    } else {
      ASSERT_NE(id % 3, 2) << id;
      EXPECT_EQ(record.reason, id % 3 == 0 ? FinishReason::kLength : FinishReason::kNone) << id;
    }
    EXPECT_LE(record.ends, 1);
  }
}

TEST(EngineFaultsTest, CancelStormLeaksNothingAndHarmsNobody) {
  for (uint32_t seed = 0; seed < 6; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    FakeEngineOptions options;
    options.engine.max_sequences = 6;
    options.engine.chunk_tokens = 64 * (1 + seed % 3);
    options.engine.snapshot_slabs = 2;
    options.engine.snapshot_interval_tokens = 128;
    options.num_blocks = 40;
    options.has_window_layers = seed % 2 == 0;
    FakeEngine engine(options);
    struct Client {
      std::shared_ptr<RecordingSink> sink = std::make_shared<RecordingSink>();
      SequenceRequest request;
    };
    std::vector<Client> clients(150);
    std::vector<SequenceId> live;
    for (size_t i = 0; i < clients.size(); ++i) {
      Client& client = clients[i];
      client.request = Request(i, static_cast<SequenceMode>(random() % 3),
                               Prompt(1 + static_cast<int>(random() % 500), random() % 3),
                               {.temperature = 0, .max_tokens = 1 + int32_t(random() % 30)});
      if (random() % 5 == 0) {
        client.request.deadline = absl::Now() + absl::Milliseconds(random() % 9);
      }
      const absl::Status status = client.request.mode == SequenceMode::kDecode
                                      ? engine->Reserve(client.request, client.sink)
                                      : engine->Submit(client.request, client.sink);
      ASSERT_EQ(status, absl::OkStatus());
      live.push_back(i);
      for (int action = static_cast<int>(random() % 3); action > 0 && !live.empty(); --action) {
        const SequenceId id = live[random() % live.size()];
        switch (random() % 3) {
          case 0: engine->Cancel(id); break;
          case 1: engine->Release(id); break;
          case 2: engine->Resume(id, 1); break;
        }
      }
    }
    auto ended = [](const Record& record) {
      return record.ends > 0 || !record.reserve_status.ok();
    };
    for (const Client& client : clients) {
      if (client.request.mode != SequenceMode::kLocal) {
        // Prefills hold memory until released, reservations until released or resumed.
        if (client.request.mode == SequenceMode::kPrefill) client.sink->Await(ended);
        engine->Release(client.request.id);
      }
    }
    for (const Client& client : clients) EXPECT_LE(client.sink->Await(ended).ends, 1);
    AwaitAllFree(*engine);
    // And what the cache has learnt in the storm is right.
    FakeEngineOptions plain = options;
    plain.engine.prefix_cache = false;
    FakeEngine reference(plain);
    for (uint32_t family = 0; family < 3; ++family) {
      const auto request = Request(1000 + family, SequenceMode::kLocal, Prompt(499, family));
      EXPECT_EQ(RunLocal(*engine, request).tokens, RunLocal(*reference, request).tokens);
    }
  }
}

}  // namespace
}  // namespace hyserve::runtime
