#include "services/worker/request_conversion.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"

namespace hyserve::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

v1::TransferTicket GoodTicket() {
  v1::TransferTicket ticket;
  ticket.set_transfer_id(kv_transfer::TransferId::Random().ToBytes());
  ticket.set_attempt(3);
  ticket.mutable_source()->set_transport_address("127.0.0.1:1");
  ticket.mutable_source()->set_incarnation(5);
  ticket.mutable_source()->set_transport("ucx");
  ticket.set_layout_fingerprint("layout");
  return ticket;
}

absl::StatusCode CodeOf(const v1::TransferTicket& ticket) {
  return ParseTicket(ticket, 3, "layout", "ucx").status().code();
}

TEST(Ticket, Good) {
  const v1::TransferTicket ticket = GoodTicket();
  const auto parsed = ParseTicket(ticket, 3, "layout", "ucx");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->id.ToBytes(), ticket.transfer_id());
  EXPECT_EQ(parsed->epoch, 3u);
  EXPECT_EQ(parsed->source.incarnation, 5u);
  EXPECT_EQ(parsed->source.transport_address, "127.0.0.1:1");
}

TEST(Ticket, EveryFieldIsChecked) {
  v1::TransferTicket ticket = GoodTicket();
  ticket.set_transfer_id("short");
  EXPECT_EQ(CodeOf(ticket), absl::StatusCode::kInvalidArgument);
  ticket = GoodTicket();
  ticket.set_transfer_id(std::string(16, '\0'));
  EXPECT_EQ(CodeOf(ticket), absl::StatusCode::kInvalidArgument);
  ticket = GoodTicket();
  ticket.set_attempt(2);
  EXPECT_EQ(CodeOf(ticket), absl::StatusCode::kInvalidArgument);
  ticket = GoodTicket();
  ticket.mutable_source()->set_incarnation(0);
  EXPECT_EQ(CodeOf(ticket), absl::StatusCode::kInvalidArgument);
  ticket = GoodTicket();
  ticket.mutable_source()->clear_transport_address();
  EXPECT_EQ(CodeOf(ticket), absl::StatusCode::kInvalidArgument);
  ticket = GoodTicket();
  ticket.mutable_source()->set_transport("loopback");
  EXPECT_EQ(CodeOf(ticket), absl::StatusCode::kFailedPrecondition);
  ticket = GoodTicket();
  ticket.set_layout_fingerprint("other");
  EXPECT_EQ(CodeOf(ticket), absl::StatusCode::kFailedPrecondition);
}

TEST(RequestId, LengthAndAttempt) {
  v1::RequestId id;
  id.set_attempt(1);
  EXPECT_FALSE(CheckRequestId(id).ok());
  id.set_request_id(std::string(kMaxRequestIdBytes, 'a'));
  EXPECT_TRUE(CheckRequestId(id).ok());
  id.set_request_id(std::string(kMaxRequestIdBytes + 1, 'a'));
  EXPECT_FALSE(CheckRequestId(id).ok());
  id.set_request_id("a");
  id.set_attempt(0);
  EXPECT_FALSE(CheckRequestId(id).ok());
  EXPECT_TRUE(CheckCacheScope(std::string(kMaxCacheScopeBytes, 'a')).ok());
  EXPECT_FALSE(CheckCacheScope(std::string(kMaxCacheScopeBytes + 1, 'a')).ok());
}

TEST(Sampling, EveryFieldArrives) {
  v1::WorkerSampling from;
  from.set_temperature(0.5f);
  from.set_top_p(0.25f);
  from.set_min_p(0.125f);
  from.set_top_k(4);
  from.set_frequency_penalty(0.75f);
  from.set_presence_penalty(-0.5f);
  from.set_repetition_penalty(1.5f);
  from.set_seed(~uint64_t{0});
  (*from.mutable_logit_bias())[7] = 2;
  (*from.mutable_logit_bias())[3] = -1;
  from.set_max_tokens(9);
  from.set_min_tokens(2);
  from.add_stop_token_ids(11);
  from.set_ignore_eos(true);
  from.set_num_logprobs(5);
  const sampling::SamplingParams to = ToSamplingParams(from);
  EXPECT_EQ(to.temperature, 0.5f);
  EXPECT_EQ(to.top_p, 0.25f);
  EXPECT_EQ(to.min_p, 0.125f);
  EXPECT_EQ(to.top_k, 4);
  EXPECT_EQ(to.frequency_penalty, 0.75f);
  EXPECT_EQ(to.presence_penalty, -0.5f);
  EXPECT_EQ(to.repetition_penalty, 1.5f);
  EXPECT_EQ(to.seed, ~uint64_t{0});
  EXPECT_THAT(to.logit_bias, ElementsAre(Pair(3, -1.f), Pair(7, 2.f)));
  EXPECT_EQ(to.max_tokens, 9);
  EXPECT_EQ(to.min_tokens, 2);
  EXPECT_THAT(to.stop_token_ids, ElementsAre(11));
  EXPECT_TRUE(to.ignore_eos);
  EXPECT_EQ(to.num_logprobs, 5);
}

TEST(Deadline, IsNeverInfinite) {
  const absl::Time before = absl::Now();
  const absl::Time clamped = ClampDeadline(absl::InfiniteFuture(), absl::Minutes(1));
  EXPECT_LE(clamped, absl::Now() + absl::Minutes(1));
  EXPECT_EQ(ClampDeadline(before + absl::Seconds(1), absl::Minutes(1)), before + absl::Seconds(1));
}

}  // namespace
}  // namespace hyserve::worker
