// Series that a healthy run of the workers does not move.
#include "services/worker/worker_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/services/workers/worker_harness.h"

namespace hyserve::worker {
namespace {

double Value(WorkerMetrics& metrics, const std::string& name, const std::string& label = "") {
  return test::SeriesValue(metrics.registry()->Expose(), name, label);
}

RequestOutcome EndedWith(const absl::Status& status) {
  RequestOutcome outcome;
  outcome.status = status;
  return outcome;
}

TEST(WorkerMetrics, StepsAndPreemptions) {
  WorkerMetrics metrics("m", "monolithic");
  metrics.OnStep({.prefill_tokens = 64, .decode_tokens = 3, .seconds = 0.5,
                  .prefix_query_tokens = 100, .prefix_hit_tokens = 64, .preemptions = 2});
  EXPECT_EQ(Value(metrics, "vllm:num_preemptions_total"), 2);
  EXPECT_EQ(Value(metrics, "vllm:prefix_cache_queries_total"), 100);
  EXPECT_EQ(Value(metrics, "vllm:prefix_cache_hits_total"), 64);
  EXPECT_EQ(Value(metrics, "vllm:iteration_tokens_total_sum"), 67);
  EXPECT_EQ(Value(metrics, "hyserve_engine_step_seconds_sum"), 0.5);
}

TEST(WorkerMetrics, QueuesAndBlocks) {
  WorkerMetrics metrics("m", "decode");
  kv_transfer::TransferStats stats;
  stats.quarantined_blocks.Set(3);
  runtime::EngineLoad load;
  load.waiting_sequences = 4;
  load.waiting_tokens = 500;
  load.blocks_total = 20;
  load.blocks_free = 8;
  load.blocks_cached = 2;
  load.blocks_used = 10;
  metrics.Refresh(load, &stats, "ucx");
  EXPECT_EQ(Value(metrics, "vllm:num_requests_waiting"), 4);
  EXPECT_EQ(Value(metrics, "hyserve_queue_requests"), 4);
  EXPECT_EQ(Value(metrics, "hyserve_queue_tokens"), 500);
  EXPECT_EQ(Value(metrics, "vllm:kv_cache_usage_perc"), 0.5);
  EXPECT_EQ(Value(metrics, "hyserve_kv_blocks", "state=\"free\""), 8);
  EXPECT_EQ(Value(metrics, "hyserve_kv_blocks", "state=\"cached\""), 2);
  EXPECT_EQ(Value(metrics, "hyserve_kv_blocks", "state=\"used\""), 7);
  EXPECT_EQ(Value(metrics, "hyserve_kv_blocks", "state=\"quarantined\""), 3);
  EXPECT_EQ(Value(metrics, "hyserve_quarantined_pages"), 3);
}

TEST(WorkerMetrics, TransferTotalsAreRaisedNotAdded) {
  WorkerMetrics metrics("m", "decode");
  kv_transfer::TransferStats stats;
  stats.integrity_failures.Add(2);
  stats.forced_closes.Add(3);
  stats.peer_lost.Add(4);
  stats.deadline_exceeded.Add(5);
  for (int i = 0; i < 2; ++i) metrics.Refresh({}, &stats, "ucx");
  EXPECT_EQ(Value(metrics, "hyserve_kv_integrity_failures_total"), 2);
  EXPECT_EQ(Value(metrics, "hyserve_kv_forced_closes_total"), 3);
  EXPECT_EQ(Value(metrics, "hyserve_kv_transfer_failures_total", "reason=\"peer_lost\""),
            4);
  stats.peer_lost.Add(1);
  metrics.Refresh({}, &stats, "ucx");
  EXPECT_EQ(Value(metrics, "hyserve_kv_transfer_failures_total", "reason=\"peer_lost\""),
            5);
}

TEST(WorkerMetrics, EndsByReason) {
  WorkerMetrics metrics("m", "decode");
  metrics.OnRequestEnded(EndedWith(absl::UnavailableError("handoff_failed: peer lost")));
  metrics.OnRequestEnded(EndedWith(absl::CancelledError("whatever a peer says")));
  metrics.OnSlowConsumer();
  metrics.OnStaleAttempt();
  metrics.OnRejected("INVALID_ARGUMENT");
  const std::string text = metrics.registry()->Expose();
  EXPECT_THAT(text, testing::HasSubstr("reason=\"handoff_failed\""));
  EXPECT_THAT(text, testing::HasSubstr("reason=\"cancelled\""));
  EXPECT_THAT(text, testing::Not(testing::HasSubstr("whatever")));
  EXPECT_EQ(Value(metrics, "hyserve_slow_consumers_total"), 1);
  EXPECT_EQ(Value(metrics, "hyserve_kv_stale_epoch_total"), 1);
  EXPECT_EQ(Value(metrics, "hyserve_rejected_total", "reason=\"INVALID_ARGUMENT\""),
            1);
}

TEST(WorkerMetrics, RecomputedTokensWouldShow) {
  WorkerMetrics metrics("m", "decode");
  metrics.OnPulled(100, "ucx", {}, 7);
  EXPECT_EQ(Value(metrics, "hyserve_prompt_tokens_recomputed_total", "reason=\"handoff\""),
            7);
}

}  // namespace
}  // namespace hyserve::worker
