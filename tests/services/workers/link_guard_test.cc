#include "services/decode_worker/link_guard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace hyserve::decode_worker {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// Answers when the test says so.
class ManualProbe final : public kv_transfer::LinkProbe {
 public:
  void Measure(const kv_transfer::PeerAddress& peer, const kv_transfer::LinkProbeOptions& options,
               kv_transfer::LinkCallback callback) override {
    callbacks.push_back(std::move(callback));
  }
  void Answer(double bytes_per_second) {
    kv_transfer::LinkReport report;
    report.bytes_per_second = bytes_per_second;
    Answer(absl::StatusOr<kv_transfer::LinkReport>(report));
  }
  void Answer(const absl::StatusOr<kv_transfer::LinkReport>& report) {
    const kv_transfer::LinkCallback callback = std::move(callbacks.back());
    callbacks.pop_back();
    callback(report);
  }
  std::vector<kv_transfer::LinkCallback> callbacks;
};

class LinkGuardTest : public ::testing::Test {
 protected:
  absl::Status Check(uint64_t incarnation = 1) {
    return guard_.Check({.transport_address = "10.0.0.1:5", .incarnation = incarnation}, &probe_);
  }
  absl::Time now_ = absl::UnixEpoch();
  LinkGuard guard_{{.floor_bytes_per_second = 100e6, .clock = [this] { return now_; }}};
  ManualProbe probe_;
};

TEST_F(LinkGuardTest, MeasuresOncePerPeerAndNobodyWaits) {
  EXPECT_TRUE(Check().ok());
  EXPECT_TRUE(Check().ok());
  EXPECT_EQ(probe_.callbacks.size(), 1u) << "one measurement at a time";
  probe_.Answer(100e6);
  EXPECT_TRUE(Check().ok());
  now_ += 2 * kRemeasureAfter;
  EXPECT_TRUE(Check().ok());
  EXPECT_TRUE(probe_.callbacks.empty()) << "a good link is not measured again";
  EXPECT_TRUE(Check(/*incarnation=*/2).ok());
  EXPECT_EQ(probe_.callbacks.size(), 1u) << "another process at that address is another link";
}

TEST_F(LinkGuardTest, ASlowLinkIsRefusedUntilItIsFastEnough) {
  EXPECT_TRUE(Check().ok());
  probe_.Answer(99e6);
  const absl::Status refused = Check();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.message()), StartsWith("handoff_failed: the link to 10.0.0.1:5"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("99 MB/s, the floor is 100"));
  EXPECT_TRUE(probe_.callbacks.empty());
  now_ += kRemeasureAfter;
  EXPECT_FALSE(Check().ok()) << "still, while it is measured again";
  ASSERT_EQ(probe_.callbacks.size(), 1u);
  probe_.Answer(200e6);
  EXPECT_TRUE(Check().ok());
}

TEST_F(LinkGuardTest, AMeasurementThatFailedSaysNothing) {
  EXPECT_TRUE(Check().ok());
  probe_.Answer(absl::UnavailableError("busy"));
  EXPECT_TRUE(Check().ok());
  EXPECT_EQ(probe_.callbacks.size(), 1u) << "tried again";
}

}  // namespace
}  // namespace hyserve::decode_worker
