// Scripts: events in, plans and events out.
#include "engine/scheduler/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hyserve::scheduler {
namespace {

using sampling::FinishReason;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr int32_t kEos = 2;

class SchedulerTest : public testing::Test {
 protected:
  SchedulerTest() {
    options_.num_blocks = 64;
    options_.num_slabs = 8;
    options_.max_sequences = 4;
    options_.snapshot_slabs = 4;
    options_.max_context_tokens = 2048;
    options_.chunk_tokens = 256;
    options_.snapshot_interval_tokens = 0;
    options_.eos_token_ids = {kEos};
  }
  void TearDown() override {
    if (scheduler_ == nullptr) return;
    EXPECT_EQ(scheduler_->CheckInvariants(), absl::OkStatus());
  }

  Scheduler& scheduler() {
    if (scheduler_ == nullptr) scheduler_ = std::make_unique<Scheduler>(options_);
    return *scheduler_;
  }
  SequenceSpec Spec(SequenceId id, Mode mode, int prompt, int max_tokens = 4,
                    int32_t first_token = 100) {
    SequenceSpec spec;
    spec.id = id;
    spec.mode = mode;
    for (int i = 0; i < prompt; ++i) spec.prompt.push_back(first_token + i);
    spec.sampling.max_tokens = max_tokens;
    return spec;
  }
  void Add(SequenceSpec spec) { EXPECT_EQ(scheduler().Add(std::move(spec)), absl::OkStatus()); }

  // "1:p0+64 2:d70" - prompt rows of 1 from position 0, one decode row of 2 at position 70.
  std::string Step(int32_t token = 50, absl::Status status = {}) {
    const StepPlan plan = scheduler().PlanStep(now_);
    const std::string text = absl::StrJoin(
        plan.rows, " ", [](std::string* out, const PlannedRows& rows) {
          absl::StrAppend(out, rows.id, ":", rows.is_prompt ? "p" : "d", rows.first_position);
          if (rows.is_prompt) absl::StrAppend(out, "+", rows.token_ids.size());
          if (rows.is_prompt && rows.samples_token) absl::StrAppend(out, "!");
        });
    std::vector<RowOutcome> outcomes(plan.rows.size(), {.status = status, .token_id = token});
    if (!plan.rows.empty()) scheduler().CompleteStep(plan, outcomes);
    EXPECT_EQ(scheduler().CheckInvariants(), absl::OkStatus());
    return text;
  }
  // "admitted 1 cached 0", "finished 1 OK 3"
  std::vector<std::string> Events() {
    std::vector<std::string> texts;
    for (const Event& event : scheduler().TakeEvents()) {
      switch (event.kind) {
        case Event::Kind::kAdmitted:
          texts.push_back(absl::StrCat("admitted ", event.id, " cached ", event.cached_tokens));
          break;
        case Event::Kind::kReserved:
          texts.push_back(absl::StrCat("reserved ", event.id, " blocks ", event.blocks.size()));
          break;
        case Event::Kind::kRefused:
          texts.push_back(absl::StrCat("refused ", event.id, " ",
                                       absl::StatusCodeToString(event.status.code())));
          break;
        case Event::Kind::kFinished:
          texts.push_back(absl::StrCat(
              "finished ", event.id, " ", absl::StatusCodeToString(event.status.code()), " ",
              static_cast<int>(event.reason), " generated ", event.generated_tokens,
              event.gone ? "" : " held"));
          break;
        case Event::Kind::kReleased: texts.push_back(absl::StrCat("released ", event.id)); break;
      }
    }
    return texts;
  }
  std::vector<std::string> Copies() {
    std::vector<std::string> texts;
    for (const SlabCopy& copy : scheduler().TakeSlabCopies()) {
      const bool snapshot = copy.kind == SlabCopy::Kind::kSnapshot;
      texts.push_back(absl::StrCat(snapshot ? "snapshot " : "restore ", copy.id));
    }
    return texts;
  }
  void ExpectAllFree() {
    EXPECT_EQ(scheduler().blocks().used(), 0);
    EXPECT_EQ(scheduler().slabs().used(), 0);
    EXPECT_EQ(scheduler().blocks().free() + scheduler().blocks().cached(), options_.num_blocks);
    EXPECT_TRUE(scheduler().ids().empty());
  }

  SchedulerOptions options_;
  absl::Time now_ = absl::UnixEpoch();
  std::unique_ptr<Scheduler> scheduler_;
};

TEST_F(SchedulerTest, LocalSequenceFromPromptToLength) {
  options_.prefix_cache = false;
  Add(Spec(1, Mode::kLocal, 300, 3));
  EXPECT_EQ(Step(), "1:p0+256");
  EXPECT_EQ(Step(), "1:p256+44!");
  EXPECT_EQ(Step(), "1:d300");
  EXPECT_THAT(Events(), ElementsAre("admitted 1 cached 0"));
  EXPECT_EQ(Step(), "1:d301");
  EXPECT_THAT(Events(), ElementsAre("finished 1 OK 3 generated 3"));
  EXPECT_EQ(Step(), "");
  EXPECT_FALSE(scheduler().HasWork());
  ExpectAllFree();
}

TEST_F(SchedulerTest, TokenThatEndsTheSequenceEndsItAtOnce) {
  Add(Spec(1, Mode::kLocal, 10, 5));
  EXPECT_EQ(Step(), "1:p0+10!");
  Step(kEos);
  EXPECT_THAT(Events(), ElementsAre("admitted 1 cached 0", "finished 1 OK 2 generated 2"));
  Add(Spec(2, Mode::kLocal, 10, 1));
  Step();
  EXPECT_THAT(Events(), ElementsAre("admitted 2 cached 0", "finished 2 OK 3 generated 1"));
  ExpectAllFree();
}

TEST_F(SchedulerTest, PrefillKeepsItsMemoryUntilRelease) {
  Add(Spec(1, Mode::kPrefill, 128));
  EXPECT_EQ(Step(), "1:p0+64");
  EXPECT_THAT(Copies(), ElementsAre("snapshot 1"));
  EXPECT_EQ(Step(), "1:p64+64!");
  EXPECT_THAT(Events(), ElementsAre("admitted 1 cached 0", "finished 1 OK 0 generated 1 held"));
  EXPECT_EQ(scheduler().blocks().used(), 2);
  EXPECT_EQ(scheduler().slabs().used(), 1);
  scheduler().Cancel(1);
  EXPECT_THAT(Events(), IsEmpty());
  scheduler().Release(1);
  scheduler().Release(1);
  EXPECT_THAT(Events(), ElementsAre("released 1"));
  EXPECT_EQ(scheduler().blocks().cached(), 1);
  EXPECT_EQ(scheduler().slabs().cached(), 1);
  ExpectAllFree();
}

TEST_F(SchedulerTest, TheSamePromptAgainComputesAtMostOneBlock) {
  for (const int length : {1, 63, 64, 65, 127, 128, 129, 500}) {
    SCOPED_TRACE(length);
    scheduler_.reset();
    Add(Spec(1, Mode::kLocal, length, 1));
    while (!Step().empty()) {
    }
    Copies();
    Add(Spec(2, Mode::kLocal, length, 1));
    const int hit = (length - 1) / 64 * 64;
    EXPECT_EQ(Step(), absl::StrCat("2:p", hit, "+", length - hit, "!"));
    EXPECT_EQ(Copies().size(), hit > 0 ? 1u : 0u);
  }
}

TEST_F(SchedulerTest, ChunksEndAtSnapshotPositions) {
  options_.snapshot_interval_tokens = 128;
  Add(Spec(1, Mode::kLocal, 400, 1));
  EXPECT_EQ(Step(), "1:p0+128");
  EXPECT_EQ(Step(), "1:p128+128");
  EXPECT_EQ(Step(), "1:p256+128");
  EXPECT_EQ(Step(), "1:p384+16!");
  EXPECT_THAT(Copies(), ElementsAre("snapshot 1", "snapshot 1", "snapshot 1"));
  Add(Spec(2, Mode::kLocal, 300, 1));
  EXPECT_EQ(Step(), "2:p256+44!");
  EXPECT_THAT(Copies(), ElementsAre("restore 2"));
}

TEST_F(SchedulerTest, WithoutWindowLayersNoChunkIsCutForTheCache) {
  options_.has_window_layers = false;
  options_.num_slabs = 0;
  Add(Spec(1, Mode::kLocal, 200, 2));
  EXPECT_EQ(Step(), "1:p0+200!");
  EXPECT_EQ(Step(), "1:d200");
  EXPECT_THAT(Copies(), IsEmpty());
  Add(Spec(2, Mode::kLocal, 150, 1));
  EXPECT_EQ(Step(), "2:p128+22!");
}

TEST_F(SchedulerTest, AWhollyKnownPromptStillComputesItsLastBlock) {
  options_.has_window_layers = false;
  options_.num_slabs = 0;
  Add(Spec(1, Mode::kLocal, 300, 1));
  while (!Step().empty()) {
  }
  Add(Spec(2, Mode::kLocal, 128, 1));
  EXPECT_EQ(Step(), "2:p64+64!");
}

TEST_F(SchedulerTest, WithoutWindowLayersGeneratedBlocksAreCachedToo) {
  options_.has_window_layers = false;
  options_.num_slabs = 0;
  Add(Spec(1, Mode::kLocal, 120, 10));
  while (!Step(50).empty()) {
  }
  SequenceSpec next = Spec(2, Mode::kLocal, 120, 1);
  for (int i = 0; i < 10; ++i) next.prompt.push_back(50);
  Add(std::move(next));
  EXPECT_EQ(Step(), "2:p128+2!");
}

TEST_F(SchedulerTest, PromptLogprobsComputeEveryRow) {
  for (int id = 1; id <= 2; ++id) {
    SequenceSpec spec = Spec(id, Mode::kLocal, 129, 1);
    spec.wants_prompt_logprobs = true;
    Add(std::move(spec));
    if (id == 1) {  // stops to leave the prefix behind; the second finds it there but computes all
      EXPECT_EQ(Step(), "1:p0+128");
      EXPECT_EQ(Step(), "1:p128+1!");
    } else {
      EXPECT_EQ(Step(), "2:p0+129!");
    }
  }
}

TEST_F(SchedulerTest, DecodeReservesResumesAndGenerates) {
  Add(Spec(1, Mode::kDecode, 100, 30));
  EXPECT_EQ(Step(), "");
  EXPECT_THAT(Events(), ElementsAre("reserved 1 blocks 2"));
  EXPECT_EQ(scheduler().blocks().used(), 3) << "129 positions";
  EXPECT_EQ(Step(), "") << "nothing runs before the KV has arrived";
  scheduler().Resume(1, 77);
  for (int i = 0; i < 29; ++i) EXPECT_EQ(Step(), absl::StrCat("1:d", 100 + i));
  EXPECT_THAT(Events(), ElementsAre("finished 1 OK 3 generated 30"));
  ExpectAllFree();
}

TEST_F(SchedulerTest, FirstTokenMayEndADecodeSequence) {
  Add(Spec(1, Mode::kDecode, 10, 30));
  Add(Spec(2, Mode::kDecode, 10, 1));
  Step();
  Events();
  scheduler().Resume(1, kEos);
  scheduler().Resume(2, 50);
  EXPECT_THAT(Events(), ElementsAre("finished 1 OK 2 generated 1", "finished 2 OK 3 generated 1"));
  ExpectAllFree();
}

TEST_F(SchedulerTest, EndBeforeResumeKeepsMemoryUntilRelease) {
  Add(Spec(1, Mode::kDecode, 100));
  Step();
  scheduler().Cancel(1);
  EXPECT_THAT(Events(),
              ElementsAre("reserved 1 blocks 2", "finished 1 CANCELLED 4 generated 0 held"));
  EXPECT_GT(scheduler().blocks().used(), 0);
  scheduler().Resume(1, 50);
  EXPECT_EQ(Step(), "") << "too late";
  scheduler().Release(1);
  EXPECT_THAT(Events(), ElementsAre("released 1"));
  ExpectAllFree();
}

TEST_F(SchedulerTest, WaitingSequencesEndWithoutMemory) {
  options_.max_sequences = 1;
  Add(Spec(1, Mode::kDecode, 10));
  Add(Spec(2, Mode::kDecode, 10));
  Add(Spec(3, Mode::kPrefill, 10));
  Add(Spec(4, Mode::kDecode, 10));
  Step();
  Events();
  scheduler().Cancel(2);
  scheduler().Cancel(3);
  scheduler().Resume(4, 50);
  EXPECT_THAT(Events(), ElementsAre("refused 2 CANCELLED", "finished 3 CANCELLED 4 generated 0",
                                    "refused 4 FAILED_PRECONDITION"));
  scheduler().Release(1);
  ExpectAllFree();
}

TEST_F(SchedulerTest, DeadlinesEndSequencesInEveryState) {
  options_.max_sequences = 3;
  const absl::Time deadline = now_ + absl::Seconds(5);
  for (int id = 1; id <= 4; ++id) {
    const Mode modes[] = {Mode::kLocal, Mode::kPrefill, Mode::kDecode, Mode::kDecode};
    SequenceSpec spec = Spec(id, modes[id - 1], 1000);
    spec.deadline = deadline;
    Add(std::move(spec));
  }
  Step();
  Events();
  EXPECT_EQ(scheduler().NextDeadline(), deadline);
  now_ = deadline - absl::Nanoseconds(1);
  Step();
  EXPECT_THAT(Events(), IsEmpty());
  now_ = deadline;
  EXPECT_EQ(Step(), "");
  EXPECT_THAT(Events(), testing::UnorderedElementsAre(
                            "finished 1 DEADLINE_EXCEEDED 4 generated 0",
                            "finished 2 DEADLINE_EXCEEDED 4 generated 0 held",
                            "finished 3 DEADLINE_EXCEEDED 4 generated 0 held",
                            "refused 4 DEADLINE_EXCEEDED"));
  EXPECT_EQ(scheduler().NextDeadline(), absl::InfiniteFuture());
  scheduler().Release(2);
  scheduler().Release(3);
  ExpectAllFree();
}

TEST_F(SchedulerTest, AdmissionIsFirstComeFirstServedAndWaitsForMemory) {
  options_.num_blocks = 10;
  options_.prefix_cache = false;
  Add(Spec(1, Mode::kPrefill, 512));  // 8 blocks
  Add(Spec(2, Mode::kPrefill, 256));  // 4 blocks: waits
  Add(Spec(3, Mode::kPrefill, 64));   // would fit, does not overtake
  EXPECT_EQ(Step(), "1:p0+256");
  EXPECT_EQ(Step(), "1:p256+256!");
  EXPECT_EQ(Step(), "");
  EXPECT_FALSE(scheduler().HasWork()) << "waiting for memory must not spin";
  scheduler().Release(1);
  EXPECT_TRUE(scheduler().HasWork());
  EXPECT_EQ(Step(), "2:p0+192 3:p0+64!");
}

TEST_F(SchedulerTest, CachedBlocksMakeRoomForNewSequences) {
  options_.num_blocks = 4;
  Add(Spec(1, Mode::kLocal, 250, 1));
  while (!Step().empty()) {
  }
  EXPECT_EQ(scheduler().blocks().cached(), 3);
  Add(Spec(2, Mode::kLocal, 250, 1, 5000));
  EXPECT_EQ(Step(), "2:p0+192");
  EXPECT_EQ(scheduler().blocks().cached(), 0);
}

TEST_F(SchedulerTest, RefusesWhatCanNeverFitAFullQueueAndALiveId) {
  options_.num_blocks = 4;
  options_.max_queue = 2;
  EXPECT_EQ(scheduler().Add(Spec(1, Mode::kLocal, 250, 8)).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(scheduler().Add(Spec(1, Mode::kPrefill, 250, 1000)), absl::OkStatus());
  EXPECT_EQ(scheduler().Add(Spec(1, Mode::kPrefill, 1)).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(scheduler().Add(Spec(2, Mode::kPrefill, 1)), absl::OkStatus());
  EXPECT_EQ(scheduler().Add(Spec(3, Mode::kPrefill, 1)).code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(SchedulerTest, GenerationEndsWithTheContext) {
  options_.max_context_tokens = 100;
  Add(Spec(1, Mode::kLocal, 98, 1000));
  while (!Step().empty()) {
  }
  EXPECT_THAT(Events(), ElementsAre("admitted 1 cached 0", "finished 1 OK 3 generated 2"));
  Add(Spec(2, Mode::kLocal, 100, 1000, 7000));
  while (!Step().empty()) {
  }
  EXPECT_THAT(Events(), ElementsAre("admitted 2 cached 0", "finished 2 OK 3 generated 1"));
}

TEST_F(SchedulerTest, EverySequenceGeneratesInEveryStepWhilePromptsAreCapped) {
  options_.prefix_cache = false;
  Add(Spec(1, Mode::kLocal, 10, 100));
  Add(Spec(2, Mode::kLocal, 10, 100, 900));
  EXPECT_EQ(Step(), "1:p0+10! 2:p0+10!");
  Add(Spec(3, Mode::kLocal, 1000, 2, 2000));
  EXPECT_EQ(Step(), "1:d10 2:d10 3:p0+64");
  EXPECT_EQ(Step(), "1:d11 2:d11 3:p64+64");
}

TEST_F(SchedulerTest, ErrorOfAStepEndsItsSequencesOnly) {
  options_.prefix_cache = false;
  Add(Spec(1, Mode::kLocal, 10, 5));
  Add(Spec(2, Mode::kDecode, 10, 5));
  Add(Spec(3, Mode::kPrefill, 10, 5, 900));
  Step(50, absl::InternalError("device"));
  EXPECT_THAT(Events(),
              ElementsAre("admitted 1 cached 0", "reserved 2 blocks 1", "admitted 3 cached 0",
                          "finished 1 INTERNAL 5 generated 0",
                          "finished 3 INTERNAL 5 generated 0 held"));
  scheduler().Resume(2, 50);
  EXPECT_EQ(Step(), "2:d10");
  scheduler().Release(3);
  scheduler().Release(2);
  EXPECT_THAT(Events(), ElementsAre("released 3", "finished 2 CANCELLED 4 generated 2"));
  ExpectAllFree();
}

TEST_F(SchedulerTest, AFailedSnapshotIsNotRestored) {
  Add(Spec(1, Mode::kLocal, 100, 1));
  Step();
  for (const SlabCopy& copy : scheduler().TakeSlabCopies()) scheduler().SnapshotFailed(copy.to);
  Step();
  Add(Spec(2, Mode::kLocal, 100, 1));
  EXPECT_EQ(Step(), "2:p0+64");
}

TEST_F(SchedulerTest, ScopesAreSeparateAndTheCacheCanBeDeclined) {
  auto with_scope = [&](SequenceId id, std::string scope, bool use) {
    SequenceSpec spec = Spec(id, Mode::kLocal, 100, 1);
    spec.cache_scope = std::move(scope);
    spec.use_prefix_cache = use;
    Add(std::move(spec));
  };
  with_scope(1, "a", true);
  while (!Step().empty()) {
  }
  with_scope(2, "b", true);
  EXPECT_EQ(Step(), "2:p0+64");
  scheduler().Cancel(2);
  with_scope(3, "a", false);
  EXPECT_EQ(Step(), "3:p0+100!");
  with_scope(4, "a", true);
  EXPECT_EQ(Step(), "4:p64+36!");
}

TEST_F(SchedulerTest, LoadCountsWhatWaitsAndRuns) {
  options_.max_sequences = 2;
  options_.prefix_cache = false;
  Add(Spec(1, Mode::kLocal, 300, 5));
  Add(Spec(2, Mode::kLocal, 20, 5, 900));
  Add(Spec(3, Mode::kLocal, 70, 5, 1800));
  Step();
  const SchedulerLoad load = scheduler().load();
  EXPECT_EQ(load.waiting_sequences, 1);
  EXPECT_EQ(load.running_sequences, 2);
  EXPECT_EQ(load.waiting_tokens, 70 + 300 - 192);
  EXPECT_EQ(load.context_tokens, 20 + 192);
}

}  // namespace
}  // namespace hyserve::scheduler
