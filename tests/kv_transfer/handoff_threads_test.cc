// Exporter and Importer over the loopback transport with real threads: callbacks, destruction in
// the middle, many callers at once. Run it under the thread sanitizer.
#include <atomic>
#include <thread>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "kv_transfer/exporter.h"
#include "kv_transfer/importer.h"
#include "kv_transfer/loopback/loopback_transport.h"
#include "tests/kv_transfer/handoff_pool.h"

namespace hyserve::kv_transfer {
namespace {

constexpr int kTransfers = 64;
constexpr int64_t kTokens = 300;  // 5 blocks
constexpr int kBlocks = 5;

class HandoffThreadsTest : public testing::Test {
 protected:
  HandoffThreadsTest() {
    exporter_ = *Exporter::Create(prefill_.get(), source_.regions(), {},
                                  [this](const TransferId&, ReleaseReason reason) {
                                    if (reason == ReleaseReason::kCommitted) ++committed_;
                                    ++released_;
                                  });
    importer_ = *Importer::Create(decode_.get(), target_.regions(), {});
  }
  static std::vector<int32_t> Blocks(int transfer) {
    return BlockRun(kTokens, transfer * kBlocks);
  }
  absl::Status Offer(int transfer) {
    return exporter_->Offer({.id = Id(transfer), .epoch = 1, .num_tokens = kTokens,
                             .blocks = Blocks(transfer), .slab = transfer});
  }
  absl::Status Pull(int transfer, PullCallback callback) {
    return importer_->Pull({.id = Id(transfer), .epoch = 1,
                            .source = {prefill_->local_address(), prefill_->incarnation()},
                            .num_tokens = kTokens, .blocks = Blocks(transfer), .slab = transfer},
                           std::move(callback));
  }
  void MakeReady(int transfer) {
    const uint64_t seed = static_cast<uint64_t>(transfer);
    source_.Fill(seed, Blocks(transfer), transfer);
    exporter_->SlabReady(Id(transfer), HandoffPool::Selection(source_.layout(), seed, kBlocks), "");
  }
  static TransferId Id(int transfer) { return TestId(static_cast<uint64_t>(transfer)); }

  HandoffPool source_{TestLayout(3, 2, 200), kTransfers * kBlocks, kTransfers};
  HandoffPool target_{TestLayout(3, 2, 200), kTransfers * kBlocks, kTransfers};
  LoopbackNetwork network_{{}};
  std::unique_ptr<LoopbackTransport> prefill_ = network_.NewTransport();
  std::unique_ptr<LoopbackTransport> decode_ = network_.NewTransport();
  std::atomic<int> committed_{0}, released_{0};
  std::unique_ptr<Exporter> exporter_;
  std::unique_ptr<Importer> importer_;
};

TEST_F(HandoffThreadsTest, ManyCallersOnBothSides) {
  absl::BlockingCounter done(kTransfers);
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = t; i < kTransfers; i += 4) {
        EXPECT_TRUE(Pull(i, [&, i](const TransferId&, const PullResult& result) {
                      right += result.status.ok() &&
                               target_.Holds(static_cast<uint64_t>(i), Blocks(i), i);
                      done.DecrementCount();
                    }).ok());
        EXPECT_TRUE(Offer(i).ok());
        MakeReady(i);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  done.Wait();
  EXPECT_EQ(right, kTransfers);
  importer_.reset();
  exporter_.reset();
  EXPECT_EQ(released_, kTransfers);
}

TEST_F(HandoffThreadsTest, DestructionEndsWhatIsOpen) {
  std::atomic<int> cancelled{0};
  for (int i = 0; i < 8; ++i) {
    EXPECT_TRUE(Offer(i).ok());
    EXPECT_TRUE(Pull(i, [&](const TransferId&, const PullResult& result) {
                  cancelled += result.status.code() == absl::StatusCode::kCancelled;
                }).ok());
  }
  importer_.reset();
  EXPECT_EQ(cancelled, 8);
  exporter_.reset();
  EXPECT_EQ(released_, 8);
}

TEST_F(HandoffThreadsTest, ALostTransportEndsPullsAndOffers) {
  absl::Notification failed;
  PullResult result;
  EXPECT_TRUE(Offer(0).ok());
  EXPECT_TRUE(Pull(0, [&](const TransferId&, PullResult r) {
                result = std::move(r);
                failed.Notify();
              }).ok());
  exporter_->LayerReady(Id(0), 0, 64);
  while (importer_->stats().block_bytes.value() == 0) std::this_thread::yield();
  exporter_.reset();
  prefill_.reset();
  failed.WaitForNotification();
  EXPECT_TRUE(result.status.code() == absl::StatusCode::kAborted ||
              result.status.code() == absl::StatusCode::kUnavailable)
      << result.status;
}

TEST_F(HandoffThreadsTest, BadArgumentsAreRefusedAtOnce) {
  const auto never = [](const TransferId&, const PullResult&) { ADD_FAILURE(); };
  OfferSpec offer{.id = Id(1), .epoch = 1, .num_tokens = kTokens, .blocks = Blocks(1), .slab = 1};
  const auto refused = [&](auto change) {
    OfferSpec spec = offer;
    change(spec);
    return exporter_->Offer(spec).code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](OfferSpec& s) { s.id = {}; }));
  EXPECT_TRUE(refused([](OfferSpec& s) { s.num_tokens = 0; }));
  EXPECT_TRUE(refused([](OfferSpec& s) { s.num_tokens = INT64_MAX; }));
  EXPECT_TRUE(refused([](OfferSpec& s) { s.blocks.pop_back(); }));
  EXPECT_TRUE(refused([](OfferSpec& s) { s.blocks[0] = -1; }));
  EXPECT_TRUE(refused([](OfferSpec& s) { s.blocks[0] = kTransfers * kBlocks; }));
  EXPECT_TRUE(refused([](OfferSpec& s) { s.slab = -1; }));
  EXPECT_TRUE(refused([](OfferSpec& s) { s.slab = kTransfers; }));
  EXPECT_TRUE(exporter_->Offer(offer).ok());
  EXPECT_EQ(exporter_->Offer(offer).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(importer_->Pull({}, never).code(), absl::StatusCode::kInvalidArgument);

  absl::Notification done;
  PullSpec nowhere{.id = Id(2), .epoch = 1, .source = {"nonsense", 1}, .num_tokens = kTokens,
                   .blocks = Blocks(2), .slab = 2};
  EXPECT_TRUE(importer_->Pull(nowhere, [&](const TransferId&, const PullResult& result) {
                EXPECT_EQ(result.status.code(), absl::StatusCode::kUnavailable);
                done.Notify();
              }).ok());
  done.WaitForNotification();
}

}  // namespace
}  // namespace hyserve::kv_transfer
