// The importer's state machine by scripts: one event at a time, a fake clock, no threads.
#include "kv_transfer/import_table.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kv_transfer/handoff_pool.h"

namespace hyserve::kv_transfer {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint64_t kSelf = 200;
constexpr uint64_t kPeer = 100;
constexpr EndpointId kLane = 7;
constexpr int64_t kTokens = 3 * 64 - 10;
constexpr uint32_t kCrc = 1234;

class ImportTableTest : public testing::Test {
 protected:
  ImportTableTest() { Build({}); }

  void Build(const Fences& fences) {
    ImportTable::Config config;
    config.options.fences = fences;
    config.layout = layout_;
    config.layout_hash = LayoutHash(layout_);
    config.incarnation = kSelf;
    table_ = std::make_unique<ImportTable>(config, &stats_);
  }
  template <typename Event>
  std::vector<std::string> Do(Event event) {
    ImportTable::Actions actions;
    event(actions);
    std::vector<std::string> said;
    for (const ImportTable::Action& action : actions) {
      if (const auto* close = std::get_if<ImportTable::CloseEndpoint>(&action)) {
        said.push_back("close" + std::to_string(close->endpoint));
      } else if (const auto* finished = std::get_if<ImportTable::Finished>(&action)) {
        result_ = finished->result;
        said.push_back(absl::StatusCodeToString(result_.status.code()));
      } else {
        const auto& body = std::get<ImportTable::SendControl>(action).message.body;
        const char* names[] = {"pull",  "renew",  "commit", "cancel",
                               "final", "failed", "ack",    "ack"};
        std::string name = names[body.index()];
        if (const auto* cancel = std::get_if<CancelBody>(&body)) name += cancel->release ? "!" : "";
        said.push_back(name);
      }
    }
    EXPECT_EQ(table_->CheckInvariants(), "");
    return said;
  }
  std::vector<std::string> Pull(std::vector<int32_t> blocks = {4, 5, 9}) {
    return Do([&](auto& actions) {
      table_->Pull({.id = TestId(1), .epoch = 5, .source = {"p", kPeer}, .num_tokens = kTokens,
                    .blocks = blocks, .slab = 2},
                   kLane, deadline_, now_, actions);
    });
  }
  Envelope From(uint64_t generation = 1) {
    return {.id = TestId(1), .epoch = 5, .sender_incarnation = kPeer,
            .receiver_incarnation = kSelf, .generation = generation};
  }
  DataHeader Blocks(uint32_t layer, uint32_t first, uint32_t count) {
    return {.envelope = From(), .kind = MessageKind::kBlocks, .layer_slot = layer,
            .first_block = first, .num_blocks = count, .offset = 0,
            .length = count * layout_.slice_bytes(), .crc = kCrc};
  }
  DataHeader Slab(uint64_t offset, uint64_t length) {
    return {.envelope = From(), .kind = MessageKind::kSlab, .offset = offset, .length = length,
            .crc = kCrc};
  }
  // Announces; true when a landing was granted (kept in landings_).
  bool Announce(const DataHeader& header, EndpointId from = kLane) {
    std::optional<ImportTable::Landing> landing;
    said_ = Do([&](auto& actions) {
      landing = table_->OnData(from, header, header.length, now_, actions);
    });
    if (landing) landings_.push_back(*landing);
    return landing.has_value();
  }
  std::vector<std::string> Landed(uint32_t crc = kCrc, absl::Status status = absl::OkStatus()) {
    const ImportTable::Landing landing = landings_.front();
    landings_.erase(landings_.begin());
    return Do([&](auto& actions) {
      table_->OnReceived(landing.operation, status, crc, now_, actions);
    });
  }
  std::vector<std::string> Say(ControlBody body, uint64_t generation = 1) {
    return Do([&](auto& actions) {
      table_->OnControl(kLane, ControlMessage(From(generation), body), now_, actions);
    });
  }
  FinalBody Final() { return {LayoutHash(layout_), kTokens, {0, -1, 2, 1}, "token 1"}; }
  std::vector<std::string> Abort() {
    return Do([&](auto& actions) { table_->Abort(TestId(1), now_, actions); });
  }
  std::vector<std::string> After(absl::Duration wait) {
    now_ += wait;
    return Do([&](auto& actions) { table_->OnTimer(now_, actions); });
  }
  std::vector<std::string> Closed() {
    return Do([&](auto& actions) {
      table_->OnEndpointClosed(kLane, absl::UnavailableError("gone"), now_, actions);
    });
  }

  kv_cache::KvLayout layout_ = TestLayout(2, 1, 50);
  TransferStats stats_;
  std::unique_ptr<ImportTable> table_;
  ClockTime now_ = absl::Seconds(10);
  ClockTime deadline_ = absl::InfiniteDuration();
  std::vector<ImportTable::Landing> landings_;
  std::vector<std::string> said_;
  PullResult result_;
};

TEST_F(ImportTableTest, EverythingVerifiedThenCommitRepeatedUntilAcked) {
  EXPECT_THAT(Pull(), ElementsAre("pull"));
  ASSERT_TRUE(Announce(Blocks(0, 0, 2)));
  EXPECT_EQ(landings_[0].block, 4);
  ASSERT_TRUE(Announce(Blocks(0, 2, 1)));
  EXPECT_EQ(landings_[1].block, 9);
  ASSERT_TRUE(Announce(Blocks(1, 2, 1)));
  EXPECT_EQ(landings_[2].layer_slot, 1);
  ASSERT_TRUE(Announce(Blocks(1, 0, 2)));
  ASSERT_TRUE(Announce(Slab(20, 30)));
  EXPECT_EQ(landings_[4].slab, 2);
  EXPECT_EQ(landings_[4].offset, 20u);
  for (int i = 0; i < 5; ++i) EXPECT_THAT(Landed(), IsEmpty());
  EXPECT_THAT(Say(Final()), IsEmpty());
  ASSERT_TRUE(Announce(Slab(0, 20)));
  now_ += absl::Milliseconds(5);
  EXPECT_THAT(Landed(), ElementsAre("commit", "OK"));
  EXPECT_EQ(result_.payload.total(), layout_.HandoffBytes(kTokens));
  EXPECT_THAT(result_.selection, ElementsAre(0, -1, 2, 1));
  EXPECT_EQ(result_.trailer, "token 1");
  EXPECT_NEAR(result_.exposed_seconds, 0.005, 1e-9);
  EXPECT_THAT(After(absl::Milliseconds(500)), ElementsAre("commit"));
  EXPECT_THAT(Say(CommitAckBody{}), IsEmpty());
  EXPECT_THAT(After(absl::Seconds(5)), IsEmpty());
  EXPECT_EQ(table_->NextTimer(), absl::InfiniteDuration());
}

TEST_F(ImportTableTest, AnUnansweredCommitIsGivenUpWithTheLease) {
  layout_ = TestLayout(1, 1, 0);
  Build({});
  Pull({4, 5, 6});
  Announce(Blocks(0, 0, 3));
  Landed();
  EXPECT_THAT(Say(Final()), ElementsAre("commit", "OK"));
  int repeated = 0;
  for (int i = 0; i < 40; ++i) repeated += static_cast<int>(After(absl::Milliseconds(500)).size());
  EXPECT_EQ(repeated, 19);
  EXPECT_EQ(table_->num_committing(), 0);
}

TEST_F(ImportTableTest, EveryPartLandsOnce) {
  Pull();
  ASSERT_TRUE(Announce(Blocks(0, 0, 2)));
  EXPECT_FALSE(Announce(Blocks(0, 0, 2)));
  EXPECT_THAT(said_, IsEmpty()) << "a repeated message is no failure";
  ASSERT_TRUE(Announce(Slab(0, 20)));
  EXPECT_FALSE(Announce(Slab(0, 20)));
  EXPECT_EQ(stats_.duplicate_messages.value(), 2);
}

TEST_F(ImportTableTest, RangesThatCannotBeAreRefused) {
  const std::vector<DataHeader> bad = {
      Blocks(2, 0, 1),                    // no such layer
      Blocks(0, 0, 0),                    // nothing
      Blocks(0, 3, 1),                    // beyond the end
      Blocks(0, 0xFFFFFFFF, 2),           // would overflow 32 bits
      Blocks(0, 1, 2),                    // blocks 5 and 9 are not contiguous here
      Slab(51, 1),   Slab(0, 51), Slab(10, ~uint64_t{0} - 5), Slab(0, 0),
  };
  for (const DataHeader& header : bad) {
    Build({});
    Pull();
    EXPECT_FALSE(Announce(header));
    EXPECT_THAT(said_, ElementsAre("cancel", "DATA_LOSS"));
  }
  Build({});
  Pull();
  DataHeader wrong_length = Blocks(0, 0, 1);
  wrong_length.length -= 1;
  EXPECT_FALSE(Announce(wrong_length));
  EXPECT_THAT(said_, ElementsAre("cancel", "DATA_LOSS"));
  Build({});
  Pull();
  ASSERT_TRUE(Announce(Slab(10, 20)));
  EXPECT_FALSE(Announce(Slab(29, 5)));
  EXPECT_THAT(said_, ElementsAre("cancel")) << "and waits for the landing";
  EXPECT_THAT(Landed(), ElementsAre("DATA_LOSS"));
  landings_.clear();
  Build({});
  Pull();
  ASSERT_TRUE(Announce(Blocks(0, 0, 1)));
  EXPECT_FALSE(Announce(Blocks(0, 0, 2))) << "overlaps";
  EXPECT_THAT(Landed(), ElementsAre("DATA_LOSS"));
}

TEST_F(ImportTableTest, SelectionIndicesAreRangeChecked) {
  for (const std::vector<int32_t>& selection :
       std::vector<std::vector<int32_t>>{{0, 1, 2, 3}, {0, 1, 2, -2}, {0, 1, 2}}) {
    Build({});
    Pull();
    FinalBody body = Final();
    body.selection = selection;
    EXPECT_THAT(Say(body), ElementsAre("cancel", "DATA_LOSS"));
  }
}

TEST_F(ImportTableTest, AbortWaitsForLandingsAndThenForcesThem) {
  Pull();
  Announce(Blocks(0, 0, 2));
  Announce(Blocks(1, 0, 2));
  EXPECT_THAT(Abort(), ElementsAre("cancel!"));
  EXPECT_EQ(stats_.quarantined_blocks.value(), 3);
  EXPECT_FALSE(Announce(Blocks(1, 2, 1))) << "nothing new lands";
  EXPECT_THAT(Landed(), IsEmpty());
  EXPECT_THAT(After(absl::Seconds(2)), ElementsAre("close7"));
  EXPECT_THAT(After(absl::Hours(1)), IsEmpty()) << "never by time alone";
  EXPECT_THAT(Landed(0, absl::CancelledError()), ElementsAre("CANCELLED"));
  EXPECT_EQ(stats_.quarantined_blocks.value(), 0);
  EXPECT_EQ(table_->NextTimer(), absl::InfiniteDuration());
}

TEST_F(ImportTableTest, RenewsWhileThePrefillComputesAndFailsWhenItIsSilent) {
  Pull();
  for (int i = 0; i < 20; ++i) {
    EXPECT_THAT(After(absl::Seconds(2)), ElementsAre("renew"));
    Say(RenewAckBody{});
  }
  EXPECT_THAT(After(absl::Seconds(2)), ElementsAre("renew"));
  EXPECT_THAT(After(absl::Seconds(2)), ElementsAre("renew"));
  EXPECT_THAT(After(absl::Seconds(2)), ElementsAre("cancel", "close7", "DEADLINE_EXCEEDED"));
}

TEST_F(ImportTableTest, NoProgressClosesTheEndpointButAnotherPullsProgressCounts) {
  Pull();
  Announce(Blocks(0, 0, 2));
  Announce(Blocks(1, 0, 2));
  now_ += absl::Milliseconds(1500);
  Landed();
  EXPECT_THAT(After(absl::Milliseconds(1500)), ElementsAre("renew"));
  EXPECT_THAT(After(absl::Milliseconds(500)), ElementsAre("cancel", "close7"));
  EXPECT_THAT(Landed(0, absl::CancelledError()), ElementsAre("DEADLINE_EXCEEDED"));
}

TEST_F(ImportTableTest, ALinkBelowTheFloorEndsThePull) {
  Pull();
  Say(Final());
  std::vector<std::string> said;
  for (uint32_t i = 0; said.empty() && i < 3; ++i) {  // steady progress, yet too slow
    Announce(Blocks(i % 2, i == 2 ? 2 : 0, 1));
    now_ += absl::Milliseconds(800);
    Landed();
    Say(RenewAckBody{});
    said = After(absl::ZeroDuration());
    if (said == std::vector<std::string>{"renew"}) said.clear();
  }
  EXPECT_THAT(said, ElementsAre("cancel", "close7", "DEADLINE_EXCEEDED"));
}

TEST_F(ImportTableTest, TheRequestsDeadlineReleasesTheSource) {
  deadline_ = now_ + absl::Seconds(1);
  Pull();
  EXPECT_THAT(After(absl::Seconds(1)), ElementsAre("cancel!", "DEADLINE_EXCEEDED"));
}

TEST_F(ImportTableTest, ALostConnectionEndsThePull) {
  Pull();
  Announce(Blocks(0, 0, 2));
  EXPECT_THAT(Landed(0, absl::UnavailableError("reset")), ElementsAre("UNAVAILABLE"));
  EXPECT_THAT(Closed(), IsEmpty());
  Build({});
  Pull();
  EXPECT_THAT(Closed(), ElementsAre("UNAVAILABLE"));
}

TEST_F(ImportTableTest, TheExportersRefusalsAreTranslated) {
  const std::vector<std::pair<Failure, std::string>> cases = {
      {Failure::kUnknownTransfer, "UNAVAILABLE"},
      {Failure::kLayoutMismatch, "FAILED_PRECONDITION"},
      {Failure::kStaleEpoch, "FAILED_PRECONDITION"},
      {Failure::kStaleIncarnation, "FAILED_PRECONDITION"},
      {Failure::kAborted, "ABORTED"},
      {Failure::kOverloaded, "UNAVAILABLE"},
      {Failure::kLeaseExpired, "UNAVAILABLE"},
  };
  for (const auto& [failure, code] : cases) {
    Build({});
    Pull();
    EXPECT_THAT(Say(FailedBody{failure}), ElementsAre(code));
  }
}

TEST_F(ImportTableTest, EachFenceDropsAndWithoutItTheBytesWouldLand) {
  struct Case {
    const char* name;
    bool Fences::*fence;
    std::function<void(Envelope&)> spoil;
  };
  const std::vector<Case> cases = {
      {"epoch", &Fences::epoch, [](Envelope& e) { e.epoch = 4; }},
      {"generation", &Fences::generation, [](Envelope& e) { e.generation = 2; }},
      {"incarnation", &Fences::incarnation, [](Envelope& e) { e.sender_incarnation = 1; }},
      {"incarnation", &Fences::incarnation, [](Envelope& e) { e.receiver_incarnation = 1; }},
  };
  for (const Case& c : cases) {
    for (const bool on : {true, false}) {
      Fences fences;
      fences.*c.fence = on;
      Build(fences);
      Pull();
      DataHeader header = Blocks(0, 0, 2);
      c.spoil(header.envelope);
      EXPECT_EQ(Announce(header), !on) << c.name;
      EXPECT_THAT(said_, IsEmpty());
      landings_.clear();
    }
  }
  for (const bool on : {true, false}) {
    Fences fences;
    fences.checksum = on;
    Build(fences);
    Pull();
    Announce(Blocks(0, 0, 2));
    EXPECT_EQ(Landed(kCrc + 1).empty(), !on);
    fences = {};
    fences.layout = on;
    Build(fences);
    Pull();
    FinalBody final = Final();
    final.layout_hash ^= 1;
    EXPECT_EQ(Say(final).empty(), !on);
    fences = {};
    fences.quiesce = on;
    Build(fences);
    Pull();
    landings_.clear();
    Announce(Blocks(0, 0, 2));
    EXPECT_EQ(Abort().size(), on ? 1u : 2u);
    landings_.clear();
  }
}

TEST_F(ImportTableTest, AnotherEndpointIsAStranger) {
  Pull();
  EXPECT_FALSE(Announce(Blocks(0, 0, 2), 99));
  EXPECT_EQ(stats_.stale_messages.value(), 1);
}

}  // namespace
}  // namespace hyserve::kv_transfer
