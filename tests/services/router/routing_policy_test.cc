#include "services/router/routing_policy.h"

#include <gtest/gtest.h>

#include <map>

namespace hyserve::router {
namespace {

WorkerView Make(uint64_t id) {
  WorkerView worker;
  worker.id = id;
  worker.max_sequences = 10;
  worker.blocks_free = worker.blocks_total = 1000;
  worker.kv_bytes_per_token = 1000;
  worker.prefill_tokens_per_second = 1000;
  worker.decode_step_ms = 10;
  worker.link_bytes_per_second = 1e9;
  return worker;
}

RoutingSnapshot TwoByTwo() {
  RoutingSnapshot snapshot;
  snapshot.prefill = {Make(1), Make(2)};
  snapshot.decode = {Make(11), Make(12)};
  return snapshot;
}

const RoutingRequest kRequest = {.prompt_tokens = 640, .max_tokens = 64, .tie_seed = 7};

TEST(PickWorkers, NeedsAPairOfOneGroup) {
  EXPECT_EQ(PickWorkers({}, kRequest).result, PickResult::kNoWorkers);
  RoutingSnapshot snapshot;
  snapshot.prefill = {Make(1)};
  EXPECT_EQ(PickWorkers(snapshot, kRequest).result, PickResult::kNoWorkers);
  snapshot.decode = {Make(11)};
  EXPECT_EQ(PickWorkers(snapshot, kRequest).result, PickResult::kPicked);
  snapshot.decode[0].group = 1;
  EXPECT_EQ(PickWorkers(snapshot, kRequest).result, PickResult::kNoWorkers);
  snapshot.decode.push_back(Make(12));
  EXPECT_EQ(PickWorkers(snapshot, kRequest).decode, 1);
}

TEST(PickWorkers, PrefersTheShorterPrefillQueue) {
  RoutingSnapshot snapshot = TwoByTwo();
  snapshot.prefill[0].waiting_tokens = 5000;
  EXPECT_EQ(PickWorkers(snapshot, kRequest).prefill, 1);
  snapshot.prefill[0].prefill_tokens_per_second = 1e6;  // much faster: the queue is gone sooner
  EXPECT_EQ(PickWorkers(snapshot, kRequest).prefill, 0);
}

TEST(PickWorkers, ACachedPrefixIsWorthItsTokensAndNoMore) {
  RoutingSnapshot snapshot = TwoByTwo();
  snapshot.prefill[0].cached_tokens = 576;
  snapshot.prefill[0].waiting_tokens = 500;
  EXPECT_EQ(PickWorkers(snapshot, kRequest).prefill, 0);
  snapshot.prefill[0].waiting_tokens = 700;
  EXPECT_EQ(PickWorkers(snapshot, kRequest).prefill, 1);
}

TEST(PickWorkers, PrefersTheEmptierDecodeWorker) {
  RoutingSnapshot snapshot = TwoByTwo();
  snapshot.decode[0].sequences = 9;
  EXPECT_EQ(PickWorkers(snapshot, kRequest).decode, 1);
}

TEST(PickWorkers, SkipsFullAndDrainingDecodeWorkersAndWaitsWhenAllAre) {
  RoutingSnapshot snapshot = TwoByTwo();
  snapshot.decode[0].sequences = 10;
  EXPECT_EQ(PickWorkers(snapshot, kRequest).decode, 1);
  snapshot.decode[1].blocks_free = 10;  // 11 are needed
  EXPECT_EQ(PickWorkers(snapshot, kRequest).result, PickResult::kBusy);
  snapshot.decode[1].blocks_free = 11;
  EXPECT_EQ(PickWorkers(snapshot, kRequest).decode, 1);
  snapshot.decode[1].draining = true;
  EXPECT_EQ(PickWorkers(snapshot, kRequest).result, PickResult::kBusy);
}

TEST(PickWorkers, SaysWhenARequestCanNeverFit) {
  RoutingSnapshot snapshot = TwoByTwo();
  for (WorkerView& worker : snapshot.decode) worker.blocks_total = worker.blocks_free = 10;
  EXPECT_EQ(PickWorkers(snapshot, kRequest).result, PickResult::kNeverFits);
}

TEST(PickWorkers, AvoidsBadPairsButUsesThemAsALastResort) {
  RoutingSnapshot snapshot = TwoByTwo();
  snapshot.decode[1].sequences = 9;
  const Pick free = PickWorkers(snapshot, kRequest);
  ASSERT_EQ(free.decode, 0);
  snapshot.bad_pairs = {{1, 11}, {2, 11}};
  EXPECT_EQ(PickWorkers(snapshot, kRequest).decode, 1);
  snapshot.bad_pairs = {{1, 11}, {2, 11}, {1, 12}, {2, 12}};
  EXPECT_EQ(PickWorkers(snapshot, kRequest).result, PickResult::kPicked);
}

TEST(PickWorkers, ARetryAvoidsTheWorkersThatFailed) {
  RoutingSnapshot snapshot = TwoByTwo();
  RoutingRequest retry = kRequest;
  const Pick first = PickWorkers(snapshot, retry);
  retry.avoid_workers = {snapshot.prefill[first.prefill].id};
  EXPECT_EQ(PickWorkers(snapshot, retry).prefill, 1 - first.prefill);
  retry.avoid_workers = {1, 2};
  EXPECT_EQ(PickWorkers(snapshot, retry).result, PickResult::kPicked);
  retry.avoid_workers.clear();
  retry.avoid_pairs = {{snapshot.prefill[first.prefill].id, snapshot.decode[first.decode].id}};
  const Pick other = PickWorkers(snapshot, retry);
  EXPECT_FALSE(other.prefill == first.prefill && other.decode == first.decode);
}

TEST(PickWorkers, LooksBeyondTheBestFewWhenTheyDoNotPair) {
  RoutingSnapshot snapshot;
  for (uint64_t i = 0; i < 20; ++i) {
    snapshot.prefill.push_back(Make(1 + i));
    snapshot.prefill.back().waiting_tokens = 10.0 * i;
    snapshot.decode.push_back(Make(101 + i));
    snapshot.decode.back().group = 1;
  }
  snapshot.prefill[19].group = 1;
  const Pick pick = PickWorkers(snapshot, kRequest);
  EXPECT_EQ(pick.result, PickResult::kPicked);
  EXPECT_EQ(pick.prefill, 19);
}

TEST(PickWorkers, TiesAreRepeatableAndSpreadEvenly) {
  const RoutingSnapshot snapshot = TwoByTwo();
  std::map<std::pair<int, int>, int> counts;
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    RoutingRequest request = kRequest;
    request.tie_seed = seed;
    const Pick pick = PickWorkers(snapshot, request);
    const Pick again = PickWorkers(snapshot, request);
    ASSERT_EQ(pick.prefill, again.prefill);
    ASSERT_EQ(pick.decode, again.decode);
    ++counts[{pick.prefill, pick.decode}];
  }
  ASSERT_EQ(counts.size(), 4u);
  for (const auto& [pair, count] : counts) EXPECT_NEAR(count, 1000, 150);
}

TEST(PickWorkers, UsesMonolithicWorkersWhereThereIsNoPair) {
  RoutingSnapshot snapshot;
  snapshot.monolithic = {Make(21), Make(22)};
  snapshot.monolithic[0].waiting_tokens = 1e6;
  const Pick pick = PickWorkers(snapshot, kRequest);
  EXPECT_EQ(pick.result, PickResult::kPicked);
  EXPECT_EQ(pick.prefill, -1);
  EXPECT_EQ(pick.decode, 1);
}

TEST(PickWorkers, PredictsTheTimeToTheFirstToken) {
  RoutingSnapshot snapshot = TwoByTwo();
  for (WorkerView& worker : snapshot.prefill) worker.waiting_tokens = 360;
  const Pick pick = PickWorkers(snapshot, kRequest);
  EXPECT_NEAR(pick.predicted_ttft_ms, 1000, 1e-6);  // (360 + 640) tokens at 1000 tokens/s
  EXPECT_TRUE(pick.measured);
  for (WorkerView& worker : snapshot.prefill) worker.prefill_tokens_per_second = 0;
  EXPECT_FALSE(PickWorkers(snapshot, kRequest).measured);
}

TEST(PairHealth, IsBadForAWhileThatDoubles) {
  PairHealth health(absl::Seconds(30));
  const WorkerPair pair(1, 2);
  absl::Time now = absl::UnixEpoch();
  EXPECT_FALSE(health.IsBad(pair, now));
  health.RecordFailure(pair, now);
  EXPECT_TRUE(health.IsBad(pair, now + absl::Seconds(29)));
  EXPECT_FALSE(health.IsBad(pair, now + absl::Seconds(30)));
  health.RecordFailure(pair, now);
  EXPECT_TRUE(health.IsBad(pair, now + absl::Seconds(59)));
  EXPECT_FALSE(health.IsBad(pair, now + absl::Seconds(60)));
  for (int i = 0; i < 20; ++i) health.RecordFailure(pair, now);
  EXPECT_FALSE(health.IsBad(pair, now + absl::Minutes(8)));
  health.RecordFailure(pair, now);
  health.RecordSuccess(pair);
  EXPECT_FALSE(health.IsBad(pair, now));
  EXPECT_TRUE(health.empty());
}

}  // namespace
}  // namespace hyserve::router
