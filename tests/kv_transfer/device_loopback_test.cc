// Device memory over the loopback transport: copies and checksums run on the device, and a device
// that fails ends transfers instead of losing them.
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "kv_transfer/exporter.h"
#include "kv_transfer/importer.h"
#include "kv_transfer/loopback/loopback_transport.h"
#include "tests/kv_transfer/handoff_pool.h"
#include "tests/kv_transfer/test_device.h"

namespace hyserve::kv_transfer {
namespace {

constexpr int kTransfers = 16;
constexpr int64_t kTokens = 300;  // 5 blocks
constexpr int kBlocks = 5;

class DeviceLoopbackTest : public testing::Test {
 protected:
  DeviceLoopbackTest() {
    exporter_ = *Exporter::Create(prefill_.get(), source_.regions(), {},
                                  [this](const TransferId&, ReleaseReason reason) {
                                    absl::MutexLock lock(&mutex_);
                                    released_.push_back(reason);
                                  });
    importer_ = *Importer::Create(decode_.get(), target_.regions(), {});
  }
  static std::vector<int32_t> Blocks(int transfer) {
    return BlockRun(kTokens, transfer * kBlocks);
  }
  void OfferAndPull(int transfer, PullCallback callback) {
    const uint64_t seed = static_cast<uint64_t>(transfer) + 1;
    ASSERT_TRUE(exporter_
                    ->Offer({.id = TestId(seed), .epoch = 1, .num_tokens = kTokens,
                             .blocks = Blocks(transfer), .slab = transfer})
                    .ok());
    exporter_->SlabReady(TestId(seed), HandoffPool::Selection(source_.layout(), seed, kBlocks), "");
    ASSERT_TRUE(importer_
                    ->Pull({.id = TestId(seed), .epoch = 1,
                            .source = {prefill_->local_address(), prefill_->incarnation()},
                            .num_tokens = kTokens, .blocks = Blocks(transfer), .slab = transfer},
                           std::move(callback))
                    .ok());
  }

  std::shared_ptr<DeviceMemory> device_ = OpenTestDevice(HYSERVE_TEST_DEVICE);
  HandoffPool source_{TestLayout(3, 2, 200), kTransfers * kBlocks, kTransfers, device_};
  HandoffPool target_{TestLayout(3, 2, 200), kTransfers * kBlocks, kTransfers, device_};
  LoopbackNetwork network_{{.device = device_}};
  std::unique_ptr<LoopbackTransport> prefill_ = network_.NewTransport();
  std::unique_ptr<LoopbackTransport> decode_ = network_.NewTransport();
  absl::Mutex mutex_;
  std::vector<ReleaseReason> released_;
  std::unique_ptr<Exporter> exporter_;
  std::unique_ptr<Importer> importer_;
};

TEST_F(DeviceLoopbackTest, EveryByteArrives) {
  absl::BlockingCounter done(kTransfers);
  for (int i = 0; i < kTransfers; ++i) source_.Fill(static_cast<uint64_t>(i) + 1, Blocks(i), i);
  for (int i = 0; i < kTransfers; ++i) {
    OfferAndPull(i, [&](const TransferId&, const PullResult& result) {
      EXPECT_TRUE(result.status.ok()) << result.status;
      done.DecrementCount();
    });
  }
  done.Wait();
  for (int i = 0; i < kTransfers; ++i) {
    EXPECT_TRUE(target_.Holds(static_cast<uint64_t>(i) + 1, Blocks(i), i));
  }
  EXPECT_GT(importer_->stats().paths->received_bytes[static_cast<int>(DataPath::kDirect)].value(),
            0);
}

TEST_F(DeviceLoopbackTest, ScatteredBlocksLandWhereTheyBelong) {
  const std::vector<int32_t> source = {9, 2, 7, 3, 4};
  const std::vector<int32_t> target = {1, 0, 8, 9, 5};
  source_.Fill(1, source, 0);
  target_.Poison(Blocks(0), 0);
  target_.Poison(Blocks(1), 1);
  absl::Notification done;
  ASSERT_TRUE(exporter_
                  ->Offer({.id = TestId(1), .epoch = 1, .num_tokens = kTokens, .blocks = source,
                           .slab = 0})
                  .ok());
  exporter_->SlabReady(TestId(1), HandoffPool::Selection(source_.layout(), 1, kBlocks), "");
  ASSERT_TRUE(importer_
                  ->Pull({.id = TestId(1), .epoch = 1,
                          .source = {prefill_->local_address(), prefill_->incarnation()},
                          .num_tokens = kTokens, .blocks = target, .slab = 0},
                         [&](const TransferId&, const PullResult& result) {
                           EXPECT_TRUE(result.status.ok()) << result.status;
                           done.Notify();
                         })
                  .ok());
  done.WaitForNotification();
  EXPECT_TRUE(target_.Holds(1, target, 0));
  EXPECT_TRUE(target_.IsPoisoned({2, 3, 4, 6, 7}, -1));
  EXPECT_EQ(importer_->stats().data_messages.value(), 3 + 1);
}

TEST_F(DeviceLoopbackTest, ABrokenDeviceEndsBothSides) {
  auto* fake = dynamic_cast<FakeDeviceMemory*>(device_.get());
  if (fake == nullptr) GTEST_SKIP() << "only a fake can be broken and mended";
  fake->Break();
  absl::Notification done;
  OfferAndPull(1, [&](const TransferId&, const PullResult& result) {
    EXPECT_EQ(result.status.code(), absl::StatusCode::kAborted) << result.status;
    done.Notify();
  });
  done.WaitForNotification();
  importer_.reset();
  exporter_.reset();
  absl::MutexLock lock(&mutex_);
  EXPECT_EQ(released_, std::vector<ReleaseReason>{ReleaseReason::kAborted});
}

TEST_F(DeviceLoopbackTest, HostMemoryOfAHostNetworkIsNotMixedUp) {
  LoopbackNetwork host_network{{}};
  const auto transport = host_network.NewTransport();
  EXPECT_EQ(Importer::Create(transport.get(), target_.regions(), {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace hyserve::kv_transfer
