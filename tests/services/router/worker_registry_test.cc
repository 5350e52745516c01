#include "services/router/worker_registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace hyserve::router {
namespace {

using ::testing::HasSubstr;

const absl::Time kNow = absl::UnixEpoch() + absl::Hours(1);

v1::Registration Describe(const std::string& name, v1::WorkerRole role, uint64_t incarnation = 1) {
  v1::Registration registration;
  registration.set_name(name);
  registration.set_role(role);
  registration.set_address("127.0.0.1:1");
  registration.mutable_transfer()->set_incarnation(incarnation);
  registration.set_model_name("m");
  registration.set_model_digest("d");
  registration.set_layout_fingerprint("l");
  registration.set_vocab_size(100);
  registration.set_max_context_tokens(1000);
  registration.set_max_sequences(8);
  registration.set_protocol_version(1);
  return registration;
}

v1::LoadReport Idle(int64_t blocks = 100) {
  v1::LoadReport load;
  load.set_blocks_total(blocks);
  load.set_blocks_free(blocks);
  return load;
}

class Listener : public WorkerLostListener {
 public:
  void OnWorkerLost(BookingId booking, WorkerSide side) override {
    lost.emplace_back(booking, side);
  }
  std::vector<std::pair<BookingId, WorkerSide>> lost;
};

class RegistryTest : public ::testing::Test {
 protected:
  WorkerId Add(const std::string& name, v1::WorkerRole role, int64_t blocks = 100) {
    const auto id = registry_.Add(Describe(name, role), nullptr);
    EXPECT_TRUE(id.ok()) << id.status();
    registry_.UpdateLoad(*id, Idle(blocks));
    return *id;
  }
  AssignmentResult Assign(int32_t prompt_tokens = 64, int32_t max_tokens = 64) {
    RouteRequest request;
    request.routing.prompt_tokens = prompt_tokens;
    request.routing.max_tokens = max_tokens;
    std::vector<int32_t> prompt(prompt_tokens);
    std::iota(prompt.begin(), prompt.end(), 0);
    request.block_hashes = HashBlocks(prompt, "", 1);
    return registry_.Assign(request, listener_, kNow);
  }
  std::shared_ptr<Listener> listener_ = std::make_shared<Listener>();
  WorkerRegistry registry_{RegistryOptions{}};
};

TEST_F(RegistryTest, RefusesWithAReason) {
  Add("p", v1::WORKER_ROLE_PREFILL);
  const auto reason = [this](const v1::Registration& registration) {
    const auto id = registry_.Add(registration, nullptr);
    EXPECT_EQ(id.status().code(), absl::StatusCode::kFailedPrecondition);
    return std::string(id.status().message());
  };
  v1::Registration other = Describe("x", v1::WORKER_ROLE_DECODE);
  other.set_protocol_version(2);
  EXPECT_THAT(reason(other), HasSubstr("protocol_version"));
  other = Describe("x", v1::WORKER_ROLE_DECODE);
  other.set_model_name("n");
  EXPECT_THAT(reason(other), HasSubstr("model_name"));
  other = Describe("x", v1::WORKER_ROLE_DECODE);
  other.set_vocab_size(99);
  EXPECT_THAT(reason(other), HasSubstr("vocab_size"));
  EXPECT_THAT(reason(Describe("", v1::WORKER_ROLE_DECODE)), HasSubstr("name"));
  EXPECT_THAT(reason(Describe("x", v1::WORKER_ROLE_UNSPECIFIED)), HasSubstr("role"));
  EXPECT_THAT(reason(Describe("p", v1::WORKER_ROLE_PREFILL)), HasSubstr("registered already"));
}

TEST_F(RegistryTest, PairsOnlyEqualLayoutAndDigest) {
  Add("p", v1::WORKER_ROLE_PREFILL);
  v1::Registration other = Describe("d0", v1::WORKER_ROLE_DECODE);
  other.set_layout_fingerprint("another");
  registry_.UpdateLoad(*registry_.Add(other, nullptr), Idle());
  other = Describe("d1", v1::WORKER_ROLE_DECODE);
  other.set_model_digest("another");
  registry_.UpdateLoad(*registry_.Add(other, nullptr), Idle());
  EXPECT_EQ(Assign().result, PickResult::kNoWorkers);
  EXPECT_FALSE(registry_.stats(kNow).can_serve);
  Add("d2", v1::WORKER_ROLE_DECODE);
  const AssignmentResult result = Assign();
  ASSERT_EQ(result.result, PickResult::kPicked);
  EXPECT_EQ(result.assignment.decode->registration.name(), "d2");
  EXPECT_TRUE(registry_.stats(kNow).can_serve);
}

TEST_F(RegistryTest, BooksAtOnceAndReleasesOnce) {
  Add("p", v1::WORKER_ROLE_PREFILL);
  Add("d", v1::WORKER_ROLE_DECODE, /*blocks=*/4);
  const AssignmentResult first = Assign();   // 2 blocks
  const AssignmentResult second = Assign();  // 2 more
  ASSERT_EQ(second.result, PickResult::kPicked);
  EXPECT_EQ(Assign().result, PickResult::kBusy);
  EXPECT_EQ(Assign(1000, 1000).result, PickResult::kNeverFits);
  registry_.ReleaseDecode(first.assignment.booking);
  registry_.ReleaseDecode(first.assignment.booking);
  ASSERT_EQ(Assign().result, PickResult::kPicked);
  EXPECT_EQ(Assign().result, PickResult::kBusy);
  EXPECT_EQ(registry_.stats(kNow).bookings, 3);
}

TEST_F(RegistryTest, ARequestThatFollowsItsPrefixSticksToTheWorker) {
  Add("p0", v1::WORKER_ROLE_PREFILL);
  Add("p1", v1::WORKER_ROLE_PREFILL);
  Add("d", v1::WORKER_ROLE_DECODE, 1000);
  const AssignmentResult first = Assign(640, 1);
  EXPECT_EQ(first.assignment.cached_tokens, 0);
  registry_.ReleasePrefill(first.assignment.booking);
  registry_.ReleaseDecode(first.assignment.booking);
  for (int i = 0; i < 5; ++i) {
    const AssignmentResult next = Assign(640, 1);
    EXPECT_EQ(next.assignment.prefill->id, first.assignment.prefill->id);
    EXPECT_EQ(next.assignment.cached_tokens, 640);
    registry_.ReleasePrefill(next.assignment.booking);
    registry_.ReleaseDecode(next.assignment.booking);
  }
}

TEST_F(RegistryTest, TellsTheHoldersOfALostWorker) {
  const WorkerId prefill = Add("p", v1::WORKER_ROLE_PREFILL);
  const WorkerId decode = Add("d", v1::WORKER_ROLE_DECODE);
  const AssignmentResult a = Assign();
  const AssignmentResult b = Assign();
  registry_.ReleasePrefill(a.assignment.booking);
  EXPECT_TRUE(registry_.Remove(prefill));
  EXPECT_EQ(listener_->lost,
            (decltype(listener_->lost){{b.assignment.booking, WorkerSide::kPrefill}}));
  EXPECT_FALSE(registry_.Remove(prefill));
  listener_->lost.clear();
  EXPECT_TRUE(registry_.Remove(decode));
  EXPECT_EQ(listener_->lost.size(), 2u);
  registry_.ReleaseDecode(a.assignment.booking);
  registry_.ReleaseDecode(b.assignment.booking);
  registry_.ReleasePrefill(b.assignment.booking);
  EXPECT_EQ(registry_.stats(kNow).bookings, 0);
}

TEST_F(RegistryTest, ANewIncarnationReplacesTheOld) {
  Add("p", v1::WORKER_ROLE_PREFILL);
  Add("d", v1::WORKER_ROLE_DECODE);
  const AssignmentResult before = Assign();
  const auto id = registry_.Add(Describe("d", v1::WORKER_ROLE_DECODE, /*incarnation=*/2), nullptr);
  ASSERT_TRUE(id.ok());
  EXPECT_EQ(listener_->lost.size(), 1u);
  registry_.UpdateLoad(*id, Idle());
  const AssignmentResult after = Assign();
  EXPECT_EQ(after.assignment.decode->id, *id);
  EXPECT_NE(before.assignment.decode->id, *id);
}

TEST_F(RegistryTest, DrainingWorkersGetNothingAndLeaveWithoutACrash) {
  Add("p", v1::WORKER_ROLE_PREFILL);
  const WorkerId decode = Add("d", v1::WORKER_ROLE_DECODE);
  v1::LoadReport load = Idle();
  load.set_draining(true);
  registry_.UpdateLoad(decode, load);
  EXPECT_EQ(Assign().result, PickResult::kBusy);
  EXPECT_FALSE(registry_.stats(kNow).can_serve);
  EXPECT_FALSE(registry_.Remove(decode));
}

TEST_F(RegistryTest, IgnoresNonsenseLoads) {
  Add("p", v1::WORKER_ROLE_PREFILL);
  const WorkerId decode = Add("d", v1::WORKER_ROLE_DECODE);
  v1::LoadReport bad = Idle();
  bad.set_blocks_free(1'000'000);
  registry_.UpdateLoad(decode, bad);
  bad = Idle();
  bad.set_decode_step_ms(std::numeric_limits<double>::quiet_NaN());
  bad.set_draining(true);
  registry_.UpdateLoad(decode, bad);
  EXPECT_EQ(Assign(64, 100 * 64).result, PickResult::kNeverFits);
  EXPECT_EQ(Assign().result, PickResult::kPicked);
}

TEST_F(RegistryTest, AWorkerWithoutALoadReportIsNotUsedYet) {
  Add("p", v1::WORKER_ROLE_PREFILL);
  ASSERT_TRUE(registry_.Add(Describe("d", v1::WORKER_ROLE_DECODE), nullptr).ok());
  EXPECT_EQ(Assign().result, PickResult::kNoWorkers);
}

TEST_F(RegistryTest, AFailedHandoffShowsInThePairsHealth) {
  const WorkerId prefill = Add("p", v1::WORKER_ROLE_PREFILL);
  const WorkerId decode = Add("d", v1::WORKER_ROLE_DECODE);
  registry_.RecordHandoff(prefill, decode, false, kNow);
  auto stats = registry_.stats(kNow);
  ASSERT_EQ(stats.pairs.size(), 1u);
  EXPECT_EQ(stats.pairs[0], (std::pair<std::string, bool>("p->d", false)));
  EXPECT_TRUE(registry_.stats(kNow + absl::Seconds(31)).pairs[0].second);
  registry_.RecordHandoff(prefill, decode, true, kNow);
  EXPECT_TRUE(registry_.stats(kNow).pairs.empty());
}

TEST_F(RegistryTest, AnotherModelMayFollowWhenAllWorkersAreGone) {
  const WorkerId id = Add("p", v1::WORKER_ROLE_PREFILL);
  EXPECT_EQ(registry_.model()->name, "m");
  registry_.Remove(id);
  v1::Registration other = Describe("p", v1::WORKER_ROLE_PREFILL);
  other.set_model_name("n");
  other.set_vocab_size(7);
  EXPECT_TRUE(registry_.Add(other, nullptr).ok());
  EXPECT_EQ(registry_.model()->name, "n");
}

}  // namespace
}  // namespace hyserve::router
