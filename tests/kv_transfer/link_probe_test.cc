#include "kv_transfer/link_probe.h"

#include "gtest/gtest.h"
#include "kv_transfer/loopback/loopback_transport.h"

namespace hyserve::kv_transfer {
namespace {

class LinkProbeTest : public testing::Test {
 protected:
  LoopbackNetwork network_{{}};
  std::unique_ptr<LoopbackTransport> here_ = network_.NewTransport();
  std::unique_ptr<LoopbackTransport> there_ = network_.NewTransport();
  std::unique_ptr<LinkProbe> probe_ = LinkProbe::Create(here_.get());
  PeerAddress Peer() const { return {there_->local_address(), there_->incarnation()}; }
};

TEST_F(LinkProbeTest, MeasuresAnAnsweringPeer) {
  const auto answerer = LinkProbe::Create(there_.get());
  const auto report =
      probe_->MeasureAndWait(Peer(), {.message_bytes = 100'000, .messages = 20, .round_trips = 5});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->bytes_per_second, 0);
  EXPECT_GT(report->latency_us, 0);
  EXPECT_EQ(report->connection, "loopback");
}

TEST_F(LinkProbeTest, APeerThatDoesNotAnswerCostsTheTimeoutOnly) {
  const auto report = probe_->MeasureAndWait(Peer(), {.timeout = absl::Milliseconds(20)});
  EXPECT_EQ(report.status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(LinkProbeTest, AnotherIncarnationAndABusyPeerRefuse) {
  const auto busy = LinkProbe::Create(there_.get(), 0);
  EXPECT_EQ(probe_->MeasureAndWait(Peer(), {.message_bytes = 10}).status().code(),
            absl::StatusCode::kUnavailable);
  PeerAddress earlier = Peer();
  earlier.incarnation ^= 1;
  EXPECT_EQ(probe_->MeasureAndWait(earlier, {.message_bytes = 10}).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(LinkProbeTest, OptionsAndAddressesAreChecked) {
  EXPECT_EQ(probe_->MeasureAndWait(Peer(), {.message_bytes = size_t{65} << 20}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(probe_->MeasureAndWait(Peer(), {.messages = 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(probe_->MeasureAndWait({"nowhere", 1}, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(probe_->MeasureAndWait({"loopback:999999", 1}, {}).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(LinkProbeTest, DestructionEndsARunningProbe) {
  absl::Status status;
  probe_->Measure(Peer(), {.timeout = absl::Hours(1)},
                  [&](absl::StatusOr<LinkReport> report) { status = report.status(); });
  probe_.reset();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace hyserve::kv_transfer
