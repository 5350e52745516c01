// Hand-offs between two real processes with device memory, on whatever device the build's tests
// name (HYSERVE_TEST_DEVICE): "fake" everywhere, which UCX cannot use, so everything is staged;
// "cuda:0" on a machine with a GPU, where both ways are tried.
#include <signal.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kv_transfer/importer.h"
#include "kv_transfer/link_probe.h"
#include "kv_transfer/ucx/ucx_transport.h"
#include "tests/kv_transfer/handoff_pool.h"
#include "tests/kv_transfer/handoff_process.h"
#include "tests/kv_transfer/path_policy.h"
#include "tests/kv_transfer/test_device.h"

namespace hyserve::kv_transfer {
namespace {

constexpr int kLayers = 3;
constexpr int kHeadDim = 64;  // slices of 16 KiB
constexpr size_t kSlabBytes = 300'000;
constexpr int64_t kNumBlocks = 1024;  // 48 MiB
constexpr int64_t kTokens = 20'000;   // 313 blocks, the last one partly filled
constexpr int64_t kManyTokens = kNumBlocks * 64;
const std::string kDevice = HYSERVE_TEST_DEVICE;
const bool kIsFake = kDevice == "fake";
// What kAuto finds: two processes on one GPU reach each other's memory.
const DataPath kBest = kIsFake ? DataPath::kStaged : DataPath::kDirect;

struct Peers {
  std::string exporter_device = kDevice;
  std::string importer_device = kDevice;
  std::string policy = "auto";
  size_t message_bytes = 0;
  size_t staging_bytes = size_t{128} << 20;
  size_t slab_bytes = kSlabBytes;  // there is one slab: none for transfers at the same time
};

class DeviceHandoffTest : public testing::Test {
 protected:
  void Start(const Peers& peers, const ImporterOptions& importer_options = {}) {
    peer_ = std::make_unique<HandoffPeer>(std::vector<std::string>{
        "exporter", std::to_string(kLayers), std::to_string(kHeadDim),
        std::to_string(peers.slab_bytes), std::to_string(kNumBlocks),
        std::to_string(peers.message_bytes), peers.exporter_device, peers.policy,
        std::to_string(peers.staging_bytes)});
    UcxOptions options;
    options.net_devices = "lo";
    options.device = OpenTestDevice(peers.importer_device);
    options.device_path = PolicyOf(peers.policy);
    options.message_bytes = peers.message_bytes;
    options.staging_bytes = peers.staging_bytes;
    pool_ = std::make_unique<HandoffPool>(TestLayout(kLayers, kHeadDim, peers.slab_bytes),
                                          kNumBlocks, 1, options.device);
    auto transport = CreateUcxTransport(options);
    ASSERT_TRUE(transport.ok()) << transport.status();
    transport_ = *std::move(transport);
    auto importer = Importer::Create(transport_.get(), pool_->regions(), importer_options);
    ASSERT_TRUE(importer.ok()) << importer.status();
    importer_ = *std::move(importer);
  }
  absl::Status Pull(uint64_t seed, int64_t tokens, const std::vector<int32_t>& blocks,
                    WaitingPull& pull) {
    return importer_->Pull({.id = TestId(seed), .epoch = 1, .source = peer_->address,
                            .num_tokens = tokens, .blocks = blocks,
                            .slab = pool_->layout().slab_bytes > 0 ? 0 : -1},
                           pull.Callback());
  }
  void Offer(uint64_t seed, int64_t tokens, int32_t first, bool all = true) {
    std::ostringstream line;
    line << "OFFER " << seed << " 1 " << tokens << " " << first << " " << (all ? 1 : 0);
    peer_->Say(line.str());
  }
  // One transfer, checked byte for byte.
  void Transfer(uint64_t seed, int32_t step = 1) {
    const std::vector<int32_t> blocks = BlockRun(kTokens, 7, step);
    pool_->Poison(blocks, 0);
    WaitingPull pull;
    ASSERT_TRUE(Pull(seed, kTokens, blocks, pull).ok());
    Offer(seed, kTokens, static_cast<int32_t>(3 * seed));
    pull.done.WaitForNotification();
    ASSERT_TRUE(pull.result.status.ok()) << pull.result.status;
    EXPECT_TRUE(pool_->Holds(seed, blocks, 0));
    EXPECT_EQ(pull.result.payload.total(), pool_->layout().HandoffBytes(kTokens));
    EXPECT_EQ(peer_->Line(), "RELEASED " + std::to_string(seed) + " committed");
  }
  void ExpectAllBy(DataPath path) {
    const TransferStats& stats = importer_->stats();
    const int64_t bytes = stats.block_bytes.value() + stats.slab_bytes.value();
    EXPECT_GT(bytes, 0);
    for (int i = 0; i < kNumDataPaths; ++i) {
      EXPECT_EQ(stats.paths->received_bytes[i].value(), i == static_cast<int>(path) ? bytes : 0)
          << Name(static_cast<DataPath>(i));
    }
  }
  void WaitForBytes(int64_t bytes) {
    while (importer_->stats().block_bytes.value() < bytes) std::this_thread::yield();
  }

  std::unique_ptr<HandoffPeer> peer_;
  std::unique_ptr<HandoffPool> pool_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Importer> importer_;
};

TEST_F(DeviceHandoffTest, EveryByteArrivesTheBestWay) {
  Start({});
  for (uint64_t seed = 1; seed <= 4; ++seed) Transfer(seed, seed % 2 == 0 ? 2 : 1);
  ExpectAllBy(kBest);
}

TEST_F(DeviceHandoffTest, EveryByteArrivesStaged) {
  Start({.policy = "staged"});
  for (uint64_t seed = 1; seed <= 4; ++seed) Transfer(seed, seed % 2 == 0 ? 2 : 1);
  ExpectAllBy(DataPath::kStaged);
}

// Both sides' blocks in an order of their own: messages are gathered and scattered, not cut.
TEST_F(DeviceHandoffTest, ScatteredBlocksTravelInLargeMessages) {
  for (const std::string policy : {"auto", "staged"}) {
    Start({.policy = policy});
    std::vector<int32_t> blocks = BlockRun(kTokens, 0, 2);
    std::reverse(blocks.begin(), blocks.end());
    pool_->Poison(blocks, 0);
    const std::vector<int32_t> between = BlockRun(kTokens - 64, 1, 2);
    pool_->Poison(between, -1);
    WaitingPull pull;
    ASSERT_TRUE(Pull(1, kTokens, blocks, pull).ok());
    Offer(1, kTokens, 5);
    pull.done.WaitForNotification();
    ASSERT_TRUE(pull.result.status.ok()) << pull.result.status;
    EXPECT_TRUE(pool_->Holds(1, blocks, 0));
    EXPECT_TRUE(pool_->IsPoisoned(between, -1)) << "bytes fell between the blocks";
    // 313 blocks: three messages a layer, and the slab.
    EXPECT_EQ(importer_->stats().data_messages.value(), 3 * kLayers + 1);
    ExpectAllBy(policy == "auto" ? kBest : DataPath::kStaged);
    importer_.reset();
    transport_.reset();
  }
}

TEST_F(DeviceHandoffTest, DeviceToHost) {
  Start({.importer_device = "cpu"});
  Transfer(1);
  Transfer(2);
  ExpectAllBy(DataPath::kHost);
}

TEST_F(DeviceHandoffTest, HostToDevice) {
  // Many small messages: those below UCX's threshold come whole, with their announcement.
  Start({.exporter_device = "cpu", .message_bytes = 16384});
  Transfer(1);
  Transfer(2, 2);
  ExpectAllBy(DataPath::kStaged);
}

TEST_F(DeviceHandoffTest, LittleStagingMemoryIsWaitedFor) {
  // Room for two messages, four of each transfer in flight, and several transfers.
  Start({.policy = "staged", .message_bytes = 65536, .staging_bytes = 2 * 65536,
         .slab_bytes = 0});
  constexpr int kTransfers = 4;
  constexpr int64_t kShort = 200 * 64;
  std::vector<WaitingPull> pulls(kTransfers);
  for (int i = 0; i < kTransfers; ++i) {
    const auto seed = static_cast<uint64_t>(i) + 1;
    ASSERT_TRUE(Pull(seed, kShort, BlockRun(kShort, 200 * i), pulls[static_cast<size_t>(i)]).ok());
    Offer(seed, kShort, 200 * i);
  }
  for (int i = 0; i < kTransfers; ++i) {
    WaitingPull& pull = pulls[static_cast<size_t>(i)];
    pull.done.WaitForNotification();
    ASSERT_TRUE(pull.result.status.ok()) << pull.result.status;
    EXPECT_TRUE(pool_->Holds(static_cast<uint64_t>(i) + 1, BlockRun(kShort, 200 * i), -1));
  }
  ExpectAllBy(DataPath::kStaged);
}

TEST_F(DeviceHandoffTest, AMessageLargerThanTheStagingMemoryEndsTheOffer) {
  Start({.policy = "staged", .message_bytes = 65536, .staging_bytes = 32768});
  WaitingPull pull;
  ASSERT_TRUE(Pull(1, kTokens, BlockRun(kTokens, 0), pull).ok());
  Offer(1, kTokens, 0);
  pull.done.WaitForNotification();
  EXPECT_FALSE(pull.result.status.ok());
  EXPECT_EQ(peer_->Line(), "RELEASED 1 aborted");
}

TEST_F(DeviceHandoffTest, WithoutADirectPathThePolicyDirectRefuses) {
  if (!kIsFake) {
    Start({.policy = "direct"});
    Transfer(1);
    ExpectAllBy(DataPath::kDirect);
    return;
  }
  Start({.policy = "direct"});
  WaitingPull pull;
  ASSERT_TRUE(Pull(1, kTokens, BlockRun(kTokens, 0), pull).ok());
  Offer(1, kTokens, 0);
  pull.done.WaitForNotification();
  EXPECT_EQ(pull.result.status.code(), absl::StatusCode::kAborted) << pull.result.status;
  EXPECT_EQ(peer_->Line(), "RELEASED 1 aborted");
}

TEST_F(DeviceHandoffTest, AbortInTheMiddleAndReuse) {
  Start({});
  const std::vector<int32_t> blocks = BlockRun(kManyTokens, 0);
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    WaitingPull pull;
    const int64_t before = importer_->stats().block_bytes.value();
    ASSERT_TRUE(Pull(seed, kManyTokens, blocks, pull).ok());
    Offer(seed, kManyTokens, 0, false);
    WaitForBytes(before + (1 << 20));
    importer_->Abort(TestId(seed));
    pull.done.WaitForNotification();
    EXPECT_EQ(pull.result.status.code(), absl::StatusCode::kCancelled) << pull.result.status;
    pool_->Poison(blocks, 0);
    EXPECT_EQ(peer_->Line(), "RELEASED " + std::to_string(seed) + " aborted");
    EXPECT_TRUE(pool_->IsPoisoned(blocks, 0));
  }
}

TEST_F(DeviceHandoffTest, KilledExporterEndsThePullAndNothingLandsLater) {
  Start({});
  const std::vector<int32_t> blocks = BlockRun(kManyTokens, 0);
  WaitingPull pull;
  ASSERT_TRUE(Pull(1, kManyTokens, blocks, pull).ok());
  Offer(1, kManyTokens, 0, false);
  WaitForBytes(1 << 20);
  peer_->Signal(SIGKILL);
  pull.done.WaitForNotification();
  EXPECT_EQ(pull.result.status.code(), absl::StatusCode::kUnavailable) << pull.result.status;
  pool_->Poison(blocks, 0);
  peer_->Wait();
  importer_.reset();
  transport_.reset();
  EXPECT_TRUE(pool_->IsPoisoned(blocks, 0));
}

TEST_F(DeviceHandoffTest, FrozenExporterIsClosedByForceAndNothingLandsAfterItWakes) {
  ImporterOptions options;
  options.progress_timeout = absl::Milliseconds(200);
  options.silence_timeout = absl::Seconds(5);  // the one that wakes may take a while to answer
  options.renew_interval = absl::Milliseconds(50);
  Start({}, options);
  const std::vector<int32_t> blocks = BlockRun(kManyTokens, 0);
  WaitingPull pull;
  ASSERT_TRUE(Pull(1, kManyTokens, blocks, pull).ok());
  Offer(1, kManyTokens, 0, false);
  WaitForBytes(1 << 20);
  peer_->Stop();
  pull.done.WaitForNotification();
  EXPECT_EQ(pull.result.status.code(), absl::StatusCode::kDeadlineExceeded) << pull.result.status;
  pool_->Poison(blocks, 0);
  peer_->Signal(SIGCONT);
  // The same process serves another transfer in fresh blocks' place.
  WaitingPull again;
  ASSERT_TRUE(Pull(2, kTokens, BlockRun(kTokens, 0), again).ok());
  Offer(2, kTokens, 500);
  again.done.WaitForNotification();
  ASSERT_TRUE(again.result.status.ok()) << again.result.status;
  EXPECT_TRUE(pool_->Holds(2, BlockRun(kTokens, 0), 0));
  EXPECT_TRUE(pool_->IsPoisoned(BlockRun(kManyTokens - 400 * 64, 400), -1));
}

TEST_F(DeviceHandoffTest, ProbeSaysWhichWay) {
  Start({});
  const std::unique_ptr<LinkProbe> probe = LinkProbe::Create(transport_.get());
  const auto report = probe->MeasureAndWait(
      peer_->address, {.message_bytes = 1 << 20, .messages = 16, .round_trips = 8});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->bytes_per_second, 0);
  EXPECT_EQ(report->path, kBest);
  EXPECT_THAT(report->connection, testing::HasSubstr(std::string(Name(kBest))));
}

// As in a worker: the engine's thread allocated the memory, and the one that starts the transport
// has never used the device.
TEST(DeviceTransportTest, AThreadThatNeverUsedTheDeviceCanRegisterItsMemory) {
  UcxOptions options;
  options.net_devices = "lo";
  options.device = OpenTestDevice(kDevice);
  char* memory = *options.device->Allocate(DeviceMemory::Space::kDevice, 8 << 20);
  std::thread([&] {
    const auto transport = CreateUcxTransport(options);
    ASSERT_TRUE(transport.ok()) << transport.status();
    EXPECT_TRUE((*transport)->RegisterMemory(memory, 8 << 20, MemoryKind::kCuda).ok());
    const std::string text = (*transport)->Description();
    EXPECT_EQ(text.find("device memory: direct") != std::string::npos, !kIsFake) << text;
  }).join();
  options.device->Free(DeviceMemory::Space::kDevice, memory);
}

TEST(DeviceTransportTest, ForeignMemoryIsRefused) {
  UcxOptions options;
  options.net_devices = "lo";
  std::vector<char> host(4096);
  const auto plain = CreateUcxTransport(options);
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ((*plain)->RegisterMemory(host.data(), host.size(), MemoryKind::kCuda).code(),
            absl::StatusCode::kInvalidArgument);
  options.device = OpenTestDevice(kDevice);
  const auto device = CreateUcxTransport(options);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ((*device)->RegisterMemory(host.data(), host.size(), MemoryKind::kCuda).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace hyserve::kv_transfer
