// Exporters and importers over the loopback transport, with every interleaving of messages drawn at
// random, faults, aborts at every point and a fake clock. Memory is as tight and as quickly reused
// as it can be (pools of 1.2 x the demand, last freed first used), so a byte that lands late or in
// the wrong place is seen. The same run with one fence taken out must see one.
#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <thread>

#include "gtest/gtest.h"
#include "kv_transfer/exporter.h"
#include "kv_transfer/importer.h"
#include "kv_transfer/loopback/loopback_transport.h"
#include "tests/kv_transfer/fault_transport.h"
#include "tests/kv_transfer/handoff_pool.h"

namespace hyserve::kv_transfer {
namespace {

constexpr int kLayers = 2;
constexpr size_t kSlabBytes = 72;
constexpr int kConcurrent = 8;
constexpr int kMaxBlocks = 4;
constexpr int64_t kNumBlocks = kConcurrent * kMaxBlocks * 12 / 10;
constexpr int64_t kNumSlabs = kConcurrent * 12 / 10 + 1;

// A side's memory with LIFO free lists. Free memory is poisoned and must still be so when it is
// taken.
class Side {
 public:
  Side(LoopbackNetwork* network, uint64_t seed)
      : inner(network->NewTransport()),
        transport(inner.get(), seed),
        pool(TestLayout(kLayers, 1, kSlabBytes), kNumBlocks, kNumSlabs) {
    for (int32_t i = 0; i < kNumBlocks; ++i) Give({i}, -1);
    for (int32_t i = 0; i < kNumSlabs; ++i) Give({}, i);
  }
  bool CanTake(size_t count) const { return blocks_.size() >= count && !slabs_.empty(); }
  std::vector<int32_t> Take(size_t count, int32_t& slab, int64_t& violations) {
    std::vector<int32_t> taken;
    for (; count > 0; --count) {
      taken.push_back(blocks_.back());
      blocks_.pop_back();
    }
    slab = slabs_.back();
    slabs_.pop_back();
    if (!pool.IsPoisoned(taken, slab)) ++violations;  // somebody wrote into free memory
    return taken;
  }
  void Give(const std::vector<int32_t>& blocks, int32_t slab) {
    pool.Poison(blocks, slab);
    blocks_.insert(blocks_.end(), blocks.begin(), blocks.end());
    if (slab >= 0) slabs_.push_back(slab);
  }

  std::unique_ptr<LoopbackTransport> inner;
  FaultTransport transport;
  HandoffPool pool;
  std::unique_ptr<Exporter> exporter;
  std::unique_ptr<Importer> importer;
  int32_t free_blocks() const { return static_cast<int32_t>(blocks_.size()); }

 private:
  std::vector<int32_t> blocks_;
  std::vector<int32_t> slabs_;
};

struct Outcome {
  int64_t violations = 0;  // wrong bytes accepted, or bytes written into free memory
  int64_t unexplained_integrity_failures = 0;
  int64_t committed = 0, failed = 0, released_committed = 0;
  std::map<absl::StatusCode, int64_t> codes;
};

class World {
 public:
  World(uint64_t seed, const Faults& faults, const Fences& fences)
      : random_(seed), network_({.manual = true, .clock = [this] { return now_; }}) {
    for (int i = 0; i < 2; ++i) {
      prefill_.push_back(std::make_unique<Side>(&network_, random_()));
      decode_.push_back(std::make_unique<Side>(&network_, random_()));
    }
    ExporterOptions exporter_options;
    exporter_options.max_message_bytes = 600;
    exporter_options.max_messages_in_flight = 2;
    exporter_options.fences = fences;
    ImporterOptions importer_options;
    importer_options.fences = fences;
    for (auto& side : prefill_) {
      side->transport.faults = faults;
      side->exporter = *Exporter::Create(
          &side->transport, side->pool.regions(), exporter_options,
          [this, s = side.get()](const TransferId& id, ReleaseReason reason) {
            Released(*s, id, reason);
          });
    }
    for (auto& side : decode_) {
      side->transport.faults = faults;
      side->transport.faults.damage = 0;
      side->importer = *Importer::Create(&side->transport, side->pool.regions(), importer_options);
    }
  }

  // Facades wait for their thread when they go; without threads, somebody has to turn the crank.
  ~World() {
    for (auto& side : prefill_) side->transport.faults = {};
    for (auto& side : decode_) side->transport.faults = {};
    for (auto& [seed, transfer] : transfers_) {
      transfer.source->exporter->Abort(TestId(seed));
      transfer.target->importer->Abort(TestId(seed));
    }
    Settle();
    for (auto& side : decode_) Destroy(side->importer, *side);
    for (auto& side : prefill_) Destroy(side->exporter, *side);
  }

  Outcome Run(int64_t transfers) {
    while (started_ < transfers || !transfers_.empty()) {
      if (started_ < transfers && transfers_.size() < kConcurrent) Start();
      Step();
    }
    Settle();
    for (auto& side : prefill_) {
      EXPECT_EQ(side->exporter->open_offers(), 0);
      EXPECT_EQ(side->exporter->stats().draining_blocks.value(), 0);
      EXPECT_EQ(side->exporter->stats().messages_in_flight.value(), 0);
      EXPECT_EQ(side->free_blocks(), kNumBlocks);
    }
    int64_t damaged = 0;
    int64_t integrity = 0;
    for (auto& side : prefill_) damaged += side->transport.damaged;
    for (auto& side : decode_) {
      EXPECT_EQ(side->importer->open_pulls(), 0);
      EXPECT_EQ(side->importer->stats().quarantined_blocks.value(), 0);
      EXPECT_EQ(side->importer->stats().messages_in_flight.value(), 0);
      EXPECT_EQ(side->free_blocks(), kNumBlocks);
      integrity += side->importer->stats().integrity_failures.value();
    }
    outcome_.unexplained_integrity_failures = std::max<int64_t>(0, integrity - damaged);
    return outcome_;
  }

 private:
  struct Transfer {
    Side* source = nullptr;
    Side* target = nullptr;
    int64_t num_tokens = 0;
    std::vector<int32_t> source_blocks, target_blocks;
    int32_t source_slab = -1, target_slab = -1;
    bool offered = false, pulled = false, slab_ready = false;
    bool released = false, finished = false;
    std::vector<int64_t> ready;
  };

  size_t Pick(size_t n) { return random_() % n; }

  void Start() {
    Transfer transfer;
    transfer.source = prefill_[Pick(2)].get();
    transfer.target = decode_[Pick(2)].get();
    const size_t count = 1 + Pick(kMaxBlocks);
    if (!transfer.source->CanTake(count) || !transfer.target->CanTake(count)) return;
    const uint64_t seed = static_cast<uint64_t>(++started_);
    transfer.num_tokens = static_cast<int64_t>(64 * count - Pick(64));
    transfer.ready.assign(kLayers, 0);
    transfer.source_blocks =
        transfer.source->Take(count, transfer.source_slab, outcome_.violations);
    transfer.target_blocks =
        transfer.target->Take(count, transfer.target_slab, outcome_.violations);
    // The decode side's pages hold somebody's older data until they are overwritten.
    transfer.target->pool.Fill(~seed, transfer.target_blocks, transfer.target_slab);
    transfers_.emplace(seed, std::move(transfer));
  }

  void Step() {
    if (!transfers_.empty()) Act();
    std::vector<Side*> sides = {prefill_[0].get(), prefill_[1].get(), decode_[0].get(),
                                decode_[1].get()};
    bool any = false;
    for (int i = 0; i < 6; ++i) any |= sides[Pick(4)]->inner->RunOne(random_());
    now_ += absl::Microseconds(static_cast<int64_t>(Pick(any ? 100 : 200'000)));
  }

  // One thing that a worker's glue might do next.
  void Act() {
    auto it = transfers_.lower_bound(1 + random_() % static_cast<uint64_t>(started_));
    if (it == transfers_.end()) it = transfers_.begin();
    const uint64_t seed = it->first;
    Transfer& t = it->second;
    switch (Pick(6)) {
      case 0:
        if (t.pulled) break;
        t.pulled = true;
        if (t.finished) break;
        EXPECT_TRUE(t.target->importer
                        ->Pull({.id = TestId(seed), .epoch = 1,
                                .source = {t.source->transport.local_address(),
                                           t.source->transport.incarnation()},
                                .num_tokens = t.num_tokens, .blocks = t.target_blocks,
                                .slab = t.target_slab},
                               [this](const TransferId& id, const PullResult& result) {
                                 Finished(id, result);
                               })
                        .ok());
        break;
      case 1:
        if (t.offered) break;
        t.offered = true;
        // A prefill computes into its pages before it calls them ready.
        t.source->pool.Fill(seed, t.source_blocks, t.source_slab);
        EXPECT_TRUE(t.source->exporter
                        ->Offer({.id = TestId(seed), .epoch = 1, .num_tokens = t.num_tokens,
                                 .blocks = t.source_blocks, .slab = t.source_slab})
                        .ok());
        break;
      case 2: {
        if (!t.offered || t.released) break;
        const size_t layer = Pick(kLayers);
        t.ready[layer] = std::min(t.num_tokens, t.ready[layer] + static_cast<int64_t>(Pick(200)));
        t.source->exporter->LayerReady(TestId(seed), static_cast<int>(layer), t.ready[layer]);
        break;
      }
      case 3:
        if (!t.offered || t.released || t.slab_ready || Pick(3) != 0) break;
        t.slab_ready = true;
        t.source->exporter->SlabReady(
            TestId(seed),
            HandoffPool::Selection(t.source->pool.layout(), seed,
                                   static_cast<int64_t>(t.source_blocks.size())),
            std::to_string(seed));
        break;
      case 4:
        if (t.offered && Pick(60) == 0) t.source->exporter->Abort(TestId(seed));
        break;
      case 5:
        if (t.pulled && Pick(60) == 0) t.target->importer->Abort(TestId(seed));
        break;
    }
  }

  static uint64_t SeedOf(const TransferId& id) {
    uint64_t seed = 0;
    for (int i = 7; i >= 0; --i) seed = seed << 8 | id.bytes[static_cast<size_t>(i)];
    return seed;
  }

  void Released(Side& side, const TransferId& id, ReleaseReason reason) {
    Transfer& t = transfers_.at(SeedOf(id));
    EXPECT_EQ(t.source, &side);
    EXPECT_FALSE(t.released);
    t.released = true;
    if (reason == ReleaseReason::kCommitted) ++outcome_.released_committed;
    side.Give(t.source_blocks, t.source_slab);
    Forget(id);
  }

  void Finished(const TransferId& id, const PullResult& result) {
    const uint64_t seed = SeedOf(id);
    Transfer& t = transfers_.at(seed);
    EXPECT_FALSE(t.finished);
    t.finished = true;
    ++outcome_.codes[result.status.code()];
    if (result.status.ok()) {
      ++outcome_.committed;
      const bool right = t.target->pool.Holds(seed, t.target_blocks, t.target_slab) &&
                         result.trailer == std::to_string(seed) &&
                         result.payload.total() ==
                             t.target->pool.layout().HandoffBytes(t.num_tokens);
      if (!right) ++outcome_.violations;
    } else {
      ++outcome_.failed;
    }
    t.target->Give(t.target_blocks, t.target_slab);
    Forget(id);
  }

  void Forget(const TransferId& id) {
    const auto it = transfers_.find(SeedOf(id));
    Transfer& t = it->second;
    // A side that has not begun when the other has ended never begins.
    if (t.released && !t.pulled) {
      t.pulled = t.finished = true;
      t.target->Give(t.target_blocks, t.target_slab);
    }
    if (t.finished && !t.offered) {
      t.offered = t.released = true;
      t.source->Give(t.source_blocks, t.source_slab);
    }
    if (t.released && t.finished) transfers_.erase(it);
  }

  void Settle() {
    for (int quiet = 0; quiet < 4;) {
      bool any = false;
      for (auto* sides : {&prefill_, &decode_}) {
        for (auto& side : *sides) {
          while (side->inner->RunOne(random_())) any = true;
        }
      }
      now_ += absl::Seconds(5);
      quiet = any ? 0 : quiet + 1;
      if (++settle_rounds_ > 100'000) {
        ADD_FAILURE() << "does not come to rest";
        return;
      }
    }
  }

  template <typename Facade>
  void Destroy(std::unique_ptr<Facade>& facade, Side& side) {
    std::atomic<bool> gone{false};
    std::thread thread([&] {
      facade.reset();
      gone = true;
    });
    while (!gone) {
      if (!side.inner->RunOne(0)) std::this_thread::yield();
    }
    thread.join();
  }

  std::mt19937_64 random_;
  ClockTime now_ = absl::Seconds(1);
  LoopbackNetwork network_;
  std::vector<std::unique_ptr<Side>> prefill_, decode_;
  std::map<uint64_t, Transfer> transfers_;
  Outcome outcome_;
  int64_t started_ = 0;
  int64_t settle_rounds_ = 0;
};

constexpr Faults kHarsh{.drop_control = 0.01, .drop_data = 0.005, .double_control = 0.05,
                        .double_data = 0.05, .delay = 0.02, .damage = 0.005, .cut = 0.002};

TEST(HandoffStressTest, WithoutFaultsOnlyAbortsKeepATransferFromItsEnd) {
  World world(1, {}, {});
  const Outcome outcome = world.Run(20'000);
  EXPECT_EQ(outcome.violations, 0);
  EXPECT_EQ(outcome.unexplained_integrity_failures, 0);
  EXPECT_GT(outcome.committed, 10'000);
  for (const auto& [code, count] : outcome.codes) {
    EXPECT_TRUE(code == absl::StatusCode::kOk || code == absl::StatusCode::kCancelled ||
                code == absl::StatusCode::kAborted || code == absl::StatusCode::kUnavailable)
        << code << " " << count;
  }
}

TEST(HandoffStressTest, HundredThousandTransfersUnderFaultsNeverMix) {
  World world(2, kHarsh, {});
  const Outcome outcome = world.Run(100'000);
  EXPECT_EQ(outcome.violations, 0);
  EXPECT_EQ(outcome.unexplained_integrity_failures, 0);
  EXPECT_GT(outcome.committed, 20'000);
  EXPECT_GT(outcome.failed, 5'000);
  EXPECT_LE(outcome.released_committed, outcome.committed);
}

// Without the fence, the same world sees damage.
int64_t DamageWithout(bool Fences::*fence) {
  Fences fences;
  fences.*fence = false;
  World world(3, kHarsh, fences);
  const Outcome outcome = world.Run(20'000);
  return outcome.violations + outcome.unexplained_integrity_failures;
}

TEST(HandoffMutationTest, WithoutChecksumsDamagedBytesAreAccepted) {
  EXPECT_GT(DamageWithout(&Fences::checksum), 0);
}
TEST(HandoffMutationTest, WithoutQuiescenceBytesLandInReusedMemory) {
  EXPECT_GT(DamageWithout(&Fences::quiesce), 0);
}

}  // namespace
}  // namespace hyserve::kv_transfer
