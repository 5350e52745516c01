// Hand-offs between two real processes over UCX on 127.0.0.1: correct bytes and counts, and what
// happens when the other process is killed or frozen in the middle.
#include <sstream>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kv_transfer/exporter.h"
#include "kv_transfer/importer.h"
#include "kv_transfer/link_probe.h"
#include "kv_transfer/ucx/ucx_transport.h"
#include "tests/kv_transfer/handoff_pool.h"
#include "tests/kv_transfer/handoff_process.h"

namespace hyserve::kv_transfer {
namespace {

constexpr int kLayers = 3;
constexpr int kHeadDim = 64;  // slices of 16 KiB
constexpr size_t kSlabBytes = 300'000;
constexpr int64_t kNumBlocks = 2048;  // 96 MiB
constexpr int64_t kTokens = 20'000;   // 313 blocks, the last one partly filled
constexpr int64_t kManyTokens = kNumBlocks * 64;

std::unique_ptr<Transport> NewTransport() {
  UcxOptions options;
  options.net_devices = "lo";
  auto transport = CreateUcxTransport(options);
  EXPECT_TRUE(transport.ok()) << transport.status();
  return *std::move(transport);
}

// With the same memory in all tests.
class Peer : public HandoffPeer {
 public:
  explicit Peer(const std::string& role)
      : HandoffPeer({role, std::to_string(kLayers), std::to_string(kHeadDim),
                     std::to_string(kSlabBytes), std::to_string(kNumBlocks)}) {}
};

class UcxImporterTest : public testing::Test {
 protected:
  void Start(const ImporterOptions& options) {
    transport_ = NewTransport();
    auto importer = Importer::Create(transport_.get(), pool_.regions(), options);
    ASSERT_TRUE(importer.ok()) << importer.status();
    importer_ = *std::move(importer);
  }
  PullSpec Spec(uint64_t seed, int64_t tokens, const std::vector<int32_t>& blocks) {
    return {.id = TestId(seed), .epoch = 1, .source = peer_.address, .num_tokens = tokens,
            .blocks = blocks, .slab = 0};
  }
  void WaitForBytes(int64_t bytes) {
    while (importer_->stats().block_bytes.value() < bytes) std::this_thread::yield();
  }

  Peer peer_{"exporter"};
  HandoffPool pool_{TestLayout(kLayers, kHeadDim, kSlabBytes), kNumBlocks, 1};
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Importer> importer_;
};

TEST_F(UcxImporterTest, EveryByteArrivesAndIsCounted) {
  Start({});
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    const std::vector<int32_t> blocks = BlockRun(kTokens, 7, seed % 2 == 0 ? 2 : 1);
    pool_.Poison(blocks, 0);
    WaitingPull pull;
    ASSERT_TRUE(importer_->Pull(Spec(seed, kTokens, blocks), pull.Callback()).ok());
    std::ostringstream offer;
    offer << "OFFER " << seed << " 1 " << kTokens << " " << 3 * seed << " 1";
    peer_.Say(offer.str());
    pull.done.WaitForNotification();
    ASSERT_TRUE(pull.result.status.ok()) << pull.result.status;
    EXPECT_TRUE(pool_.Holds(seed, blocks, 0));
    EXPECT_EQ(pull.result.payload.total(), pool_.layout().HandoffBytes(kTokens));
    EXPECT_EQ(pull.result.selection,
              HandoffPool::Selection(pool_.layout(), seed, static_cast<int64_t>(blocks.size())));
    EXPECT_EQ(peer_.Line(), "RELEASED " + std::to_string(seed) + " committed");
  }
  EXPECT_EQ(importer_->stats().block_bytes.value() + importer_->stats().slab_bytes.value() +
                importer_->stats().selection_bytes.value(),
            static_cast<int64_t>(4 * pool_.layout().HandoffBytes(kTokens)));
  EXPECT_EQ(importer_->open_pulls(), 0);
}

TEST_F(UcxImporterTest, KilledExporterEndsThePullAndNothingLandsLater) {
  Start({});
  const std::vector<int32_t> blocks = BlockRun(kManyTokens, 0);
  WaitingPull pull;
  ASSERT_TRUE(importer_->Pull(Spec(1, kManyTokens, blocks), pull.Callback()).ok());
  peer_.Say("OFFER 1 1 " + std::to_string(kManyTokens) + " 0 0");
  WaitForBytes(1 << 20);
  peer_.Signal(SIGKILL);
  pull.done.WaitForNotification();
  EXPECT_EQ(pull.result.status.code(), absl::StatusCode::kUnavailable) << pull.result.status;
  pool_.Poison(blocks, 0);
  peer_.Wait();
  importer_.reset();
  transport_.reset();
  EXPECT_TRUE(pool_.IsPoisoned(blocks, 0));
}

TEST_F(UcxImporterTest, FrozenExporterIsClosedByForceAndNothingLandsAfterItWakes) {
  ImporterOptions options;
  options.progress_timeout = absl::Milliseconds(200);
  options.silence_timeout = absl::Milliseconds(300);
  options.renew_interval = absl::Milliseconds(50);
  Start(options);
  const std::vector<int32_t> blocks = BlockRun(kManyTokens, 0);
  WaitingPull pull;
  ASSERT_TRUE(importer_->Pull(Spec(1, kManyTokens, blocks), pull.Callback()).ok());
  peer_.Say("OFFER 1 1 " + std::to_string(kManyTokens) + " 0 0");
  WaitForBytes(1 << 20);
  peer_.Stop();
  pull.done.WaitForNotification();
  EXPECT_EQ(pull.result.status.code(), absl::StatusCode::kDeadlineExceeded) << pull.result.status;
  EXPECT_GE(importer_->stats().forced_closes.value(), 1);
  EXPECT_EQ(importer_->stats().quarantined_blocks.value(), 0);
  pool_.Poison(blocks, 0);
  peer_.Signal(SIGCONT);
  // The woken process learns that its connection is gone and gives the source's memory up.
  EXPECT_THAT((std::vector<std::string>{"RELEASED 1 peer_lost", "RELEASED 1 lease_expired"}),
              testing::Contains(peer_.Line()));
  EXPECT_TRUE(pool_.IsPoisoned(blocks, 0));

  // The pair works again over a new connection, with the same importer.
  WaitingPull again;
  ASSERT_TRUE(importer_->Pull(Spec(2, kTokens, BlockRun(kTokens, 0)), again.Callback()).ok());
  peer_.Say("OFFER 2 1 " + std::to_string(kTokens) + " 0 1");
  again.done.WaitForNotification();
  EXPECT_TRUE(again.result.status.ok()) << again.result.status;
  EXPECT_TRUE(pool_.Holds(2, BlockRun(kTokens, 0), 0));
}

TEST_F(UcxImporterTest, AbortInTheMiddleIsQuietBeforeItsCallback) {
  Start({});
  const std::vector<int32_t> blocks = BlockRun(kManyTokens, 0);
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    WaitingPull pull;
    const int64_t before = importer_->stats().block_bytes.value();
    ASSERT_TRUE(importer_->Pull(Spec(seed, kManyTokens, blocks), pull.Callback()).ok());
    peer_.Say("OFFER " + std::to_string(seed) + " 1 " + std::to_string(kManyTokens) + " 0 0");
    WaitForBytes(before + static_cast<int64_t>(seed << 20));
    importer_->Abort(TestId(seed));
    pull.done.WaitForNotification();
    EXPECT_EQ(pull.result.status.code(), absl::StatusCode::kCancelled) << pull.result.status;
    pool_.Poison(blocks, 0);
    EXPECT_EQ(peer_.Line(), "RELEASED " + std::to_string(seed) + " aborted");
    EXPECT_TRUE(pool_.IsPoisoned(blocks, 0));
  }
  EXPECT_EQ(importer_->stats().forced_closes.value(), 0) << "a healthy link needs no force";
}

TEST_F(UcxImporterTest, UnreachablePeerFailsThePull) {
  Start({});
  peer_.Signal(SIGKILL);
  peer_.Wait();
  WaitingPull pull;
  ASSERT_TRUE(importer_->Pull(Spec(1, kTokens, BlockRun(kTokens, 0)), pull.Callback()).ok());
  pull.done.WaitForNotification();
  EXPECT_EQ(pull.result.status.code(), absl::StatusCode::kUnavailable) << pull.result.status;
}

TEST_F(UcxImporterTest, ProbeMeasuresTheLink) {
  Start({});
  const std::unique_ptr<LinkProbe> probe = LinkProbe::Create(transport_.get());
  const auto report = probe->MeasureAndWait(
      peer_.address, {.message_bytes = 1 << 20, .messages = 32, .round_trips = 8});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->bytes_per_second, 0);
  EXPECT_GT(report->latency_us, 0);
  EXPECT_NE(report->connection.find("tcp/lo"), std::string::npos) << report->connection;
  const auto stranger = probe->MeasureAndWait({peer_.address.transport_address, 1}, {});
  EXPECT_EQ(stranger.status().code(), absl::StatusCode::kUnavailable);
}

TEST(UcxExporterTest, KilledImporterReleasesTheSource) {
  Peer peer("importer");
  const std::unique_ptr<Transport> transport = NewTransport();
  HandoffPool pool(TestLayout(kLayers, kHeadDim, kSlabBytes), kNumBlocks, 1);
  absl::Mutex mutex;
  std::vector<ReleaseReason> released;
  ExporterOptions options;
  options.peer_loss_grace = absl::Milliseconds(10);
  auto exporter = Exporter::Create(transport.get(), pool.regions(), options,
                                   [&](const TransferId&, ReleaseReason reason) {
                                     absl::MutexLock lock(&mutex);
                                     released.push_back(reason);
                                   });
  ASSERT_TRUE(exporter.ok()) << exporter.status();
  const std::vector<int32_t> blocks = BlockRun(kManyTokens, 0);
  pool.Fill(1, blocks, 0);
  ASSERT_TRUE((*exporter)
                  ->Offer({.id = TestId(1), .epoch = 1, .num_tokens = kManyTokens, .blocks = blocks,
                           .slab = 0})
                  .ok());
  (*exporter)->LayerReady(TestId(1), 0, kManyTokens);
  std::ostringstream line;
  line << "PULL 1 1 " << kManyTokens << " 0 " << transport->local_address() << " "
       << transport->incarnation();
  peer.Say(line.str());
  while ((*exporter)->stats().block_bytes.value() < (2 << 20)) std::this_thread::yield();
  peer.Signal(SIGKILL);
  absl::MutexLock lock(&mutex);
  mutex.Await(absl::Condition(
      +[](std::vector<ReleaseReason>* reasons) { return !reasons->empty(); }, &released));
  EXPECT_THAT(released, testing::ElementsAre(ReleaseReason::kPeerLost));
  EXPECT_EQ((*exporter)->stats().messages_in_flight.value(), 0);
}

TEST(UcxTransportTest, BadOptionsAreNamed) {
  UcxOptions options;
  options.listen_address = "localhost";
  EXPECT_EQ(CreateUcxTransport(options).status().code(), absl::StatusCode::kInvalidArgument);
  options = {};
  options.settings = {{"RNDV_THRESH", "banana"}};
  const absl::Status status = CreateUcxTransport(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_NE(status.message().find("RNDV_THRESH"), absl::string_view::npos) << status;
  // UCX 1.13 takes any name, later versions refuse what they do not know.
  options.settings = {{"NO_SUCH_SETTING_OF_UCX_AT_ALL", "1"}};
  const auto unknown = CreateUcxTransport(options);
  if (!unknown.ok()) {
    EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(unknown.status().message().find("NO_SUCH_SETTING"), absl::string_view::npos);
  }
}

TEST(UcxTransportTest, DescriptionSaysWhatIsInEffect) {
  const std::unique_ptr<Transport> transport = NewTransport();
  const std::string text = transport->Description();
  EXPECT_NE(text.find("TLS = tcp"), std::string::npos) << text;
  EXPECT_NE(text.find("NET_DEVICES = lo"), std::string::npos) << text;
  EXPECT_NE(text.find("address: 127.0.0.1:"), std::string::npos) << text;
}

}  // namespace
}  // namespace hyserve::kv_transfer
