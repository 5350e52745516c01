// The exporter's state machine by scripts: one event at a time, a fake clock, no threads.
#include "kv_transfer/offer_table.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kv_transfer/handoff_pool.h"

namespace hyserve::kv_transfer {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint64_t kSelf = 100;
constexpr uint64_t kPeer = 200;
constexpr EndpointId kLane = 7;
constexpr int64_t kTokens = 3 * 64 - 10;  // 3 blocks, the last one partly filled

class OfferTableTest : public testing::Test {
 protected:
  explicit OfferTableTest(const Fences& fences = {}) { Build(fences); }

  void Build(const Fences& fences) {
    OfferTable::Config config;
    config.options.max_message_bytes = 1 << 20;
    config.options.max_messages_in_flight = 2;
    config.options.fences = fences;
    config.layout = layout_;
    config.layout_hash = LayoutHash(layout_);
    config.incarnation = kSelf;
    table_ = std::make_unique<OfferTable>(config, &stats_);
  }
  // Runs an event and describes what followed, one word per action.
  template <typename Event>
  std::vector<std::string> Do(Event event) {
    OfferTable::Actions actions;
    event(actions);
    std::vector<std::string> said;
    for (const OfferTable::Action& action : actions) said.push_back(Describe(action));
    EXPECT_EQ(table_->CheckInvariants(), "");
    return said;
  }
  std::string Describe(const OfferTable::Action& action) {
    if (const auto* send = std::get_if<OfferTable::SendData>(&action)) {
      sends_.push_back(send->operation);
      headers_.push_back(send->header);
      if (send->part.layer_slot < 0) return "slab";
      return "L" + std::to_string(send->part.layer_slot) + ":" +
             std::to_string(send->part.first_block) + "+" + std::to_string(send->part.num_blocks) +
             "@" + std::to_string(send->first_physical_block);
    }
    if (const auto* close = std::get_if<OfferTable::CloseEndpoint>(&action)) {
      return "close" + std::to_string(close->endpoint);
    }
    if (const auto* released = std::get_if<OfferTable::Released>(&action)) {
      return std::string(Name(released->reason));
    }
    const auto& message = std::get<OfferTable::SendControl>(action).message;
    if (std::holds_alternative<FinalBody>(message.body)) return "final";
    if (std::holds_alternative<RenewAckBody>(message.body)) return "renew-ack";
    if (std::holds_alternative<CommitAckBody>(message.body)) return "commit-ack";
    if (const auto* failed = std::get_if<FailedBody>(&message.body)) {
      return "failed" + std::to_string(static_cast<int>(failed->failure));
    }
    return "?";
  }
  std::vector<std::string> Offer(uint64_t id = 1) {
    return Do([&](auto& actions) {
      table_->Offer({.id = TestId(id), .epoch = 5, .num_tokens = kTokens, .blocks = {4, 5, 9},
                     .slab = 2},
                    deadline_, now_, actions);
    });
  }
  Envelope From(uint64_t id = 1, uint32_t epoch = 5, uint64_t generation = 1) {
    return {.id = TestId(id), .epoch = epoch, .sender_incarnation = kPeer,
            .receiver_incarnation = kSelf, .generation = generation};
  }
  std::vector<std::string> Say(const Envelope& envelope, ControlBody body,
                               EndpointId from = kLane) {
    return Do([&](auto& actions) {
      table_->OnControl(from, ControlMessage(envelope, body), now_, actions);
    });
  }
  PullBody PullOf(std::vector<int32_t> target = {0, 1, 2}) {
    return {LayoutHash(layout_), kTokens, BreakMap(target)};
  }
  std::vector<std::string> Ready(int layer, int64_t tokens) {
    return Do([&](auto& actions) { table_->LayerReady(TestId(1), layer, tokens, actions); });
  }
  std::vector<std::string> Slab() {
    return Do([&](auto& actions) {
      table_->SlabReady(TestId(1), std::vector<int32_t>(4), "t", now_, actions);
    });
  }
  std::vector<std::string> Sent(bool possible = true) {
    const OperationId operation = sends_.front();
    sends_.erase(sends_.begin());
    return Do([&](auto& actions) { table_->OnSent(operation, now_, actions, possible); });
  }
  std::vector<std::string> Abort() {
    return Do([&](auto& actions) { table_->Abort(TestId(1), now_, actions); });
  }
  std::vector<std::string> After(absl::Duration wait) {
    now_ += wait;
    return Do([&](auto& actions) { table_->OnTimer(now_, actions); });
  }
  std::vector<std::string> Closed(EndpointId endpoint = kLane) {
    return Do([&](auto& actions) { table_->OnEndpointClosed(endpoint, now_, actions); });
  }

  kv_cache::KvLayout layout_ = TestLayout(2, 1, 50);
  TransferStats stats_;
  std::unique_ptr<OfferTable> table_;
  ClockTime now_ = absl::Seconds(10);
  ClockTime deadline_ = absl::InfiniteDuration();
  std::vector<OperationId> sends_;
  std::vector<DataHeader> headers_;
};

TEST_F(OfferTableTest, SendsLayersAsTheyBecomeReadyAndReleasesOnCommit) {
  EXPECT_THAT(Offer(), IsEmpty());
  EXPECT_THAT(Say(From(), PullOf()), IsEmpty());
  EXPECT_THAT(Ready(0, 130), ElementsAre("L0:0+2@4"));
  EXPECT_THAT(Ready(0, 140), IsEmpty()) << "no whole block more";
  EXPECT_THAT(Ready(0, kTokens), ElementsAre("L0:2+1@9"));
  EXPECT_THAT(Ready(1, kTokens), IsEmpty()) << "two messages are in flight";
  EXPECT_THAT(Sent(), ElementsAre("L1:0+2@4"));
  EXPECT_THAT(Slab(), ElementsAre("final"));
  EXPECT_THAT(Sent(), ElementsAre("L1:2+1@9"));
  EXPECT_THAT(Sent(), ElementsAre("slab"));
  EXPECT_THAT(Sent(), IsEmpty());
  EXPECT_THAT(Sent(), IsEmpty());
  EXPECT_EQ(headers_[0].envelope.epoch, 5u);
  EXPECT_EQ(headers_[0].envelope.generation, 1u);
  EXPECT_EQ(headers_[0].length, 2 * layout_.slice_bytes());
  EXPECT_THAT(Say(From(), CommitBody{}), ElementsAre("commit-ack", "committed"));
  EXPECT_THAT(Say(From(), CommitBody{}), ElementsAre("commit-ack")) << "a repeated commit";
  EXPECT_EQ(stats_.block_bytes.value() + stats_.slab_bytes.value() + stats_.selection_bytes.value(),
            static_cast<int64_t>(layout_.HandoffBytes(kTokens)));
}

TEST_F(OfferTableTest, APullThatComesFirstWaitsForItsOffer) {
  EXPECT_THAT(Say(From(), PullOf()), IsEmpty());
  EXPECT_THAT(After(absl::Seconds(9)), IsEmpty());
  EXPECT_THAT(Say(From(), RenewBody{}), ElementsAre("renew-ack"));
  EXPECT_THAT(After(absl::Seconds(9)), IsEmpty()) << "renewed";
  Offer();
  EXPECT_THAT(Ready(1, 64), ElementsAre("L1:0+1@4"));
}

TEST_F(OfferTableTest, APullThatNobodyOffersIsRefusedInTime) {
  Say(From(), PullOf());
  EXPECT_THAT(After(absl::Seconds(10)), ElementsAre("failed1"));
  EXPECT_EQ(table_->num_pending_pulls(), 0);
  EXPECT_EQ(table_->NextTimer(), absl::InfiniteDuration());
}

TEST_F(OfferTableTest, PendingPullsAreBounded) {
  for (uint64_t id = 1; id <= 4096; ++id) EXPECT_THAT(Say(From(id), PullOf()), IsEmpty());
  EXPECT_THAT(Say(From(5000), PullOf()), ElementsAre("failed6"));
}

TEST_F(OfferTableTest, ACancelBeforeTheOfferEndsTheOfferAtOnce) {
  Say(From(), PullOf());
  EXPECT_THAT(Say(From(), CancelBody{true}), IsEmpty());
  EXPECT_THAT(Offer(), ElementsAre("aborted"));
  EXPECT_EQ(table_->num_offers(), 0);
}

TEST_F(OfferTableTest, AnIdIsNeverUsedTwice) {
  Offer();
  EXPECT_THAT(Abort(), ElementsAre("aborted"));
  EXPECT_THAT(Offer(), ElementsAre("aborted"));
  EXPECT_THAT(Say(From(), PullOf()), ElementsAre("failed1"));
}

TEST_F(OfferTableTest, WhatCannotBeSentEndsTheOfferWhenTheOtherSendsHaveEnded) {
  Offer();
  Say(From(), PullOf());
  EXPECT_THAT(Ready(0, kTokens), ElementsAre("L0:0+2@4", "L0:2+1@9"));
  EXPECT_THAT(Sent(false), ElementsAre("failed5"));
  EXPECT_THAT(Sent(false), ElementsAre("aborted"));
}

TEST_F(OfferTableTest, AbortWaitsForSendsAndThenForcesThem) {
  Offer();
  Say(From(), PullOf());
  Ready(0, kTokens);
  EXPECT_THAT(Abort(), ElementsAre("failed5"));
  EXPECT_EQ(stats_.draining_blocks.value(), 3);
  EXPECT_THAT(Sent(), IsEmpty());
  EXPECT_THAT(After(absl::Seconds(2)), ElementsAre("close7"));
  EXPECT_THAT(After(absl::Seconds(100)), IsEmpty()) << "never by time alone";
  EXPECT_EQ(table_->num_offers(), 1);
  EXPECT_THAT(Sent(), ElementsAre("aborted"));
  EXPECT_EQ(stats_.draining_blocks.value(), 0);
}

TEST_F(OfferTableTest, TheLeaseStartsWithTheSlabAndIsRenewedByTheReceiver) {
  Offer();
  EXPECT_THAT(After(absl::Hours(1)), IsEmpty()) << "prefill may take its time";
  Slab();
  EXPECT_THAT(After(absl::Seconds(9)), IsEmpty());
  Say(From(), PullOf());
  EXPECT_THAT(After(absl::Seconds(9)), IsEmpty());
  EXPECT_THAT(Say(From(), RenewBody{}), ElementsAre("renew-ack"));
  EXPECT_THAT(After(absl::Seconds(9)), IsEmpty());
  EXPECT_THAT(After(absl::Seconds(1)), ElementsAre("failed7"));
  EXPECT_THAT(Sent(), IsEmpty());
  EXPECT_THAT(Sent(), ElementsAre("lease_expired"));
}

TEST_F(OfferTableTest, ALostReceiverMayBeReplacedWithinTheGrace) {
  Offer();
  Say(From(), PullOf());
  Ready(0, 64);
  Sent();  // the transport ends every operation before it reports the end of the endpoint
  EXPECT_THAT(Closed(), IsEmpty());
  EXPECT_THAT(After(absl::Seconds(1)), IsEmpty());
  EXPECT_THAT(Say(From(1, 5, 2), PullOf({0, 5, 6}), 8), ElementsAre("L0:0+1@4"))
      << "from the start";
  EXPECT_THAT(After(absl::Seconds(2)), IsEmpty());
  EXPECT_THAT(Closed(8), IsEmpty());
  sends_.clear();
  OfferTable::Actions none;
  table_->OnSent(2, now_, none);
  EXPECT_THAT(After(absl::Seconds(2)), ElementsAre("peer_lost"));
}

TEST_F(OfferTableTest, ACancelledPullKeepsTheOfferForAnotherOne) {
  Offer();
  Say(From(), PullOf());
  EXPECT_THAT(Say(From(), CancelBody{false}), IsEmpty());
  EXPECT_THAT(Say(From(1, 5, 2), PullOf()), IsEmpty());
  EXPECT_THAT(Ready(0, 64), ElementsAre("L0:0+1@4"));
  EXPECT_EQ(headers_.back().envelope.generation, 2u);
  EXPECT_THAT(Say(From(1, 5, 2), CancelBody{true}), IsEmpty());
  EXPECT_THAT(Sent(), ElementsAre("aborted"));
}

TEST_F(OfferTableTest, TheRequestsDeadlineEndsAnOffer) {
  deadline_ = now_ + absl::Seconds(3);
  Offer();
  EXPECT_THAT(After(absl::Seconds(3)), ElementsAre("aborted"));
}

TEST_F(OfferTableTest, ACommitOfWhatWasNotSentChangesNothing) {
  Offer();
  Say(From(), PullOf());
  EXPECT_THAT(Say(From(), CommitBody{}), IsEmpty());
  Slab();
  EXPECT_THAT(Say(From(), CommitBody{}), IsEmpty());
  EXPECT_EQ(table_->num_offers(), 1);
  EXPECT_EQ(stats_.malformed_messages.value(), 2);
}

TEST_F(OfferTableTest, ASelectionOfTheWrongSizeAbortsTheOffer) {
  Offer();
  EXPECT_THAT(Do([&](auto& actions) {
                table_->SlabReady(TestId(1), std::vector<int32_t>(3), "", now_, actions);
              }),
              ElementsAre("aborted"));
}

TEST_F(OfferTableTest, StrangersChangeNothing) {
  Offer();
  Say(From(), PullOf());
  EXPECT_THAT(Say(From(), RenewBody{}, 99), IsEmpty()) << "another endpoint";
  EXPECT_THAT(Say(From(1, 5, 9), CancelBody{true}), IsEmpty()) << "another generation";
  EXPECT_THAT(Say(From(1, 6), CancelBody{true}), IsEmpty()) << "another epoch";
  EXPECT_THAT(Say(From(2), CancelBody{true}), IsEmpty()) << "another transfer";
  EXPECT_THAT(Say(From(), FinalBody{}), IsEmpty()) << "not for an exporter";
  EXPECT_EQ(table_->num_offers(), 1);
  EXPECT_EQ(stats_.stale_messages.value(), 3);
}

TEST_F(OfferTableTest, EachFenceRefusesAndWithoutItThePullIsServed) {
  struct Case {
    const char* name;
    bool Fences::*fence;
    std::vector<std::string> refusal;
    std::function<void(Envelope&, PullBody&)> spoil;
  };
  const std::vector<Case> cases = {
      {"epoch", &Fences::epoch, {"failed3"}, [](Envelope& e, PullBody&) { e.epoch = 4; }},
      {"incarnation", &Fences::incarnation, {"failed4"},
       [](Envelope& e, PullBody&) { e.receiver_incarnation = kSelf + 1; }},
      {"layout", &Fences::layout, {"failed2", "aborted"},
       [](Envelope&, PullBody& b) { b.layout_hash ^= 1; }},
  };
  for (const Case& c : cases) {
    for (const bool on : {true, false}) {
      Fences fences;
      fences.*c.fence = on;
      Build(fences);
      Offer();
      Ready(0, 64);
      Envelope envelope = From();
      PullBody body = PullOf();
      c.spoil(envelope, body);
      const std::vector<std::string> served = {"L0:0+1@4"};
      EXPECT_EQ(Say(envelope, body), on ? c.refusal : served) << c.name;
    }
  }
}

// Nobody else will come for that offer: its memory is free at once, not when the lease ends.
TEST_F(OfferTableTest, APullOfAnotherLengthIsRefusedAndEndsTheOffer) {
  PullBody longer = PullOf();
  longer.num_tokens += 1;
  for (const PullBody& body : {longer, PullOf({0, 1})}) {
    const uint64_t id = body.num_tokens;
    Offer(id);
    EXPECT_THAT(Say(From(id), body), ElementsAre("failed2", "aborted"));
    EXPECT_EQ(table_->num_offers(), 0);
  }
  // Before the offer: refused as soon as it is there.
  EXPECT_THAT(Say(From(), longer), IsEmpty());
  EXPECT_THAT(Offer(), ElementsAre("failed2", "aborted"));
}

TEST_F(OfferTableTest, AWrongPullDoesNotDisturbARightOne) {
  Offer();
  Ready(0, 64);
  EXPECT_THAT(Say(From(), PullOf()), ElementsAre("L0:0+1@4"));
  EXPECT_THAT(Say(From(1, 5, 2), PullOf({0, 1})), ElementsAre("failed2"));
  EXPECT_EQ(table_->num_offers(), 1);
}

}  // namespace
}  // namespace hyserve::kv_transfer
