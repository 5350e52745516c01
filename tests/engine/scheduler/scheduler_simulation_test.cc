// Random events against a simulated pool whose memory remembers what was written, so that a block
// or a slab that reaches the wrong sequence, or is read before it is copied, is seen at once.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "engine/kv_cache/kv_layout.h"
#include "engine/scheduler/chunk_policy.h"
#include "engine/scheduler/scheduler.h"

namespace hyserve::scheduler {
namespace {

constexpr int kBlocks = 40;
constexpr int kSequences = 5;
constexpr int kSnapshots = 3;
constexpr int32_t kEos = 9;

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15u + (hash << 6) + (hash >> 2);
  return hash * 0xff51afd7ed558ccdu;
}

class Simulation {
 public:
  Simulation(uint32_t seed, bool windows)
      : random_(seed), windows_(windows), chunk_tokens_(64 * (1 + seed % 4)) {
    SchedulerOptions options;
    options.num_blocks = kBlocks;
    options.num_slabs = windows ? kSequences + kSnapshots : 0;
    options.has_window_layers = windows;
    options.max_sequences = kSequences;
    options.max_queue = 8;
    options.max_context_tokens = 900;
    options.chunk_tokens = chunk_tokens_;
    options.snapshot_interval_tokens = seed % 3 * 128;
    options.snapshot_slabs = kSnapshots;
    options.eos_token_ids = {kEos};
    options.layout_fingerprint = "simulated";
    options.reuse_order =
        seed % 2 ? kv_cache::ReuseOrder::kLifo : kv_cache::ReuseOrder::kFifo;
    scheduler_ = std::make_unique<Scheduler>(options);
    cells_.resize(kBlocks * 64);
    slabs_.resize(kSequences + kSnapshots);
  }

  void Run(int steps) {
    for (int step = 0; step < steps && !testing::Test::HasFailure(); ++step) {
      now_ += absl::Milliseconds(1);
      RandomEvents();
      Advance();
    }
    // The end: everybody is released, everything is free again.
    for (const SequenceId id : scheduler_->ids()) scheduler_->Release(id);
    PassOn();
    EXPECT_TRUE(scheduler_->ids().empty());
    EXPECT_EQ(scheduler_->blocks().used(), 0);
    EXPECT_EQ(scheduler_->blocks().free() + scheduler_->blocks().cached(), kBlocks);
    EXPECT_EQ(scheduler_->slabs().used(), 0);
    EXPECT_EQ(scheduler_->CheckInvariants(), absl::OkStatus());
    for (const auto& [id, ends] : ends_) EXPECT_EQ(ends, 1) << "sequence " << id;
  }

  int64_t hits = 0, finished = 0;

 private:
  // State of the simulated model after the first `count` tokens.
  static uint64_t StateOf(std::span<const int32_t> tokens, size_t count) {
    uint64_t hash = 1;
    for (size_t i = 0; i < count; ++i) hash = Mix(hash, static_cast<uint64_t>(tokens[i]));
    return hash;
  }
  uint64_t& Cell(const PlannedRows& rows, int32_t position) {
    return cells_[rows.blocks[position / 64] * 64 + position % 64];
  }

  void RandomEvents() {
    const std::vector<SequenceId> ids = scheduler_->ids();
    auto pick = [&] { return ids[random_() % ids.size()]; };
    if (random_() % 3 == 0) Add();
    if (!ids.empty() && random_() % 12 == 0) scheduler_->Cancel(pick());
    if (!ids.empty() && random_() % 10 == 0) scheduler_->Release(pick());
    for (const SequenceId id : ids) {
      const Sequence* sequence = scheduler_->Find(id);
      if (sequence == nullptr) continue;
      if (sequence->state == State::kReserved && random_() % 3 == 0) Transfer(*sequence);
      sequence = scheduler_->Find(id);
      if (sequence != nullptr && sequence->state == State::kHeld && random_() % 3 == 0) {
        scheduler_->Release(id);
      }
    }
    PassOn();
  }

  void Add() {
    SequenceSpec spec;
    spec.id = next_id_++;
    spec.mode = static_cast<Mode>(random_() % 3);
    // Prompts share prefixes: few families, cut at random places.
    const int32_t family = static_cast<int32_t>(random_() % 3) * 1000;
    const int32_t shared = static_cast<int32_t>(random_() % 400);
    for (int32_t i = 0; i < shared; ++i) spec.prompt.push_back(100 + family + i);
    for (int i = static_cast<int>(random_() % 100); i >= 0; --i) {
      spec.prompt.push_back(10 + static_cast<int32_t>(random_() % 50));
    }
    spec.sampling.max_tokens = 1 + static_cast<int32_t>(random_() % 80);
    spec.wants_prompt_logprobs = spec.mode != Mode::kDecode && random_() % 8 == 0;
    spec.use_prefix_cache = random_() % 8 != 0;
    spec.cache_scope = random_() % 4 == 0 ? "other" : "";
    if (random_() % 4 == 0) spec.deadline = now_ + absl::Milliseconds(random_() % 60);
    const SequenceId id = spec.id;
    if (scheduler_->Add(std::move(spec)).ok()) ends_[id] = 0;
  }

  // The KV of a hand-off arrives.
  void Transfer(const Sequence& sequence) {
    for (int32_t p = 0; p < sequence.prompt_tokens; ++p) {
      cells_[sequence.block_table[p / 64] * 64 + p % 64] = StateOf(sequence.tokens, p + 1);
    }
    if (windows_) {
      slabs_[kv_cache::Index(sequence.slab)] = StateOf(sequence.tokens, sequence.prompt_tokens);
    }
    scheduler_->Resume(sequence.spec.id, 10 + static_cast<int32_t>(random_() % 50));
  }

  void PassOn() {
    for (const SlabCopy& copy : scheduler_->TakeSlabCopies()) {
      slabs_[kv_cache::Index(copy.to)] = slabs_[kv_cache::Index(copy.from)];
    }
    for (const Event& event : scheduler_->TakeEvents()) {
      if (event.kind == Event::Kind::kAdmitted) hits += event.cached_tokens > 0;
      if (event.kind == Event::Kind::kFinished || event.kind == Event::Kind::kRefused) {
        ++ends_[event.id];
        finished += event.status.ok();
      }
      if (event.kind == Event::Kind::kReserved) {
        // A transfer may write at once: nobody else may read these.
        for (const int32_t block : event.blocks) {
          std::fill_n(cells_.begin() + block * 64, 64, uint64_t{0xdead});
        }
        if (windows_) slabs_[event.slab] = 0xdead;
      }
    }
    ASSERT_EQ(scheduler_->CheckInvariants(), absl::OkStatus());
  }

  void Advance() {
    const StepPlan plan = scheduler_->PlanStep(now_);
    PassOn();
    ASSERT_LE(plan.prompt_tokens, chunk_tokens_);
    ASSERT_LE(plan.prompt_tokens + plan.decode_tokens,
              MostRowsPerStep(chunk_tokens_, kSequences));
    std::vector<RowOutcome> outcomes(plan.rows.size());
    std::set<SequenceId> in_step;
    for (size_t i = 0; i < plan.rows.size(); ++i) {
      const PlannedRows& rows = plan.rows[i];
      ASSERT_TRUE(in_step.insert(rows.id).second) << "twice in one step";
      const Sequence& sequence = *scheduler_->Find(rows.id);
      // What the sequence reads is what its own tokens would have written.
      uint64_t state = 1;
      for (int32_t p = 0; p < rows.first_position; ++p) {
        state = Mix(state, static_cast<uint64_t>(sequence.tokens[p]));
        ASSERT_EQ(Cell(rows, p), state) << "sequence " << rows.id << " position " << p;
      }
      if (windows_ && rows.first_position > 0) {
        ASSERT_EQ(slabs_[rows.slab], state) << "sequence " << rows.id;
      }
      for (size_t r = 0; r < rows.token_ids.size(); ++r) {
        state = Mix(state, static_cast<uint64_t>(rows.token_ids[r]));
        Cell(rows, rows.first_position + static_cast<int32_t>(r)) = state;
      }
      if (windows_) slabs_[rows.slab] = state;
      outcomes[i].token_id = 9 + static_cast<int32_t>(random_() % 50);
      if (random_() % 200 == 0) outcomes[i].status = absl::InternalError("device");
    }
    if (!plan.rows.empty()) scheduler_->CompleteStep(plan, outcomes);
    PassOn();
  }

  std::mt19937 random_;
  const bool windows_;
  const int32_t chunk_tokens_;
  absl::Time now_ = absl::UnixEpoch();
  SequenceId next_id_ = 1;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<uint64_t> cells_;
  std::vector<uint64_t> slabs_;
  std::map<SequenceId, int> ends_;
};

class SchedulerSimulationTest : public testing::TestWithParam<bool> {};

TEST_P(SchedulerSimulationTest, NothingMixesAndNothingLeaks) {
  int64_t hits = 0, finished = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    Simulation simulation(seed, GetParam());
    simulation.Run(400);
    if (HasFailure()) return;
    hits += simulation.hits;
    finished += simulation.finished;
  }
  EXPECT_GT(hits, 100) << "the simulation no longer exercises the prefix cache";
  EXPECT_GT(finished, 500);
}

INSTANTIATE_TEST_SUITE_P(WindowLayers, SchedulerSimulationTest, testing::Bool());

}  // namespace
}  // namespace hyserve::scheduler
