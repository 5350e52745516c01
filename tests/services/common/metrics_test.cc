#include "services/common/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include <regex>
#include <set>

#include "services/common/metrics_server.h"

namespace hyserve::common {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(MetricTable, FollowsItsRules) {
  std::set<std::string_view> names;
  for (const MetricSpec* spec : metric::kAll) {
    const std::string name(spec->name);
    EXPECT_TRUE(names.insert(spec->name).second) << name;
    EXPECT_TRUE(std::regex_match(name, std::regex("(vllm:|hyserve_)[a-z][a-z0-9_]*"))) << name;
    EXPECT_FALSE(spec->help.empty()) << name;
    EXPECT_NE(spec->roles, 0) << name;
    EXPECT_EQ(spec->kind == MetricKind::kHistogram, !spec->buckets.empty()) << name;
    if (spec->kind == MetricKind::kCounter) {
      EXPECT_TRUE(name.ends_with("_total")) << name;
    }
    for (size_t i = 1; i < spec->buckets.size(); ++i) {
      EXPECT_LT(spec->buckets[i - 1], spec->buckets[i]) << name;
    }
  }
}

TEST(MetricTable, BucketsAreASupersetOfWhatDashboardsExpect) {
  const auto contains = [](const MetricSpec& spec, std::initializer_list<double> borders) {
    for (const double border : borders) {
      if (std::find(spec.buckets.begin(), spec.buckets.end(), border) == spec.buckets.end()) {
        ADD_FAILURE() << spec.name << " lacks " << border;
      }
    }
  };
  contains(metric::kTimeToFirstToken, {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                       1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560});
  contains(metric::kInterTokenLatency,
           {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80});
  contains(metric::kE2eLatency, {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680});
}

TEST(Metrics, EveryMetricOfARoleMoves) {
  for (const char* role : {"router", "prefill", "decode", "monolithic"}) {
    Metrics metrics("m", role);
    const uint8_t bit = std::string(role) == "router"    ? kRouterRole
                        : std::string(role) == "prefill" ? kPrefillRole
                        : std::string(role) == "decode"  ? kDecodeRole
                                                         : kMonolithicRole;
    int moved = 0;
    for (const MetricSpec* spec : metric::kAll) {
      if ((spec->roles & bit) == 0) continue;
      MetricLabels labels;
      for (const std::string_view label : spec->labels) labels[std::string(label)] = "x";
      std::string suffix;
      switch (spec->kind) {
        case MetricKind::kCounter: metrics.Counter(*spec, labels).Increment(3); break;
        case MetricKind::kGauge: metrics.Gauge(*spec, labels).Set(3); break;
        case MetricKind::kHistogram:
          metrics.Histogram(*spec, labels).Observe(3);
          suffix = "_sum";
          break;
      }
      const std::string text = metrics.Expose();
      const std::regex line("(^|\n)" + std::string(spec->name) + suffix + "\\{[^\n]*\\} 3(\n|$)");
      EXPECT_TRUE(std::regex_search(text, line)) << spec->name;
      ++moved;
    }
    EXPECT_GT(moved, 20);
  }
}

TEST(Metrics, VllmSeriesHaveTheLabelsThatPickersRead) {
  Metrics metrics("my-model", "decode");
  EXPECT_THAT(metrics.Expose(), HasSubstr("vllm:num_requests_running{engine=\"0\",model_name="
                                          "\"my-model\",role=\"decode\"} 0"));
  EXPECT_THAT(metrics.Expose(), Not(HasSubstr("hyserve_router_requests_total")));
}

TEST(Metrics, RemovedGaugesAreGone) {
  Metrics metrics("m", "router");
  metrics.Gauge(metric::kPairHealth, {{"pair", "a->b"}}).Set(1);
  EXPECT_THAT(metrics.Expose(), HasSubstr("a->b"));
  metrics.RemoveGauge(metric::kPairHealth, {{"pair", "a->b"}});
  EXPECT_THAT(metrics.Expose(), Not(HasSubstr("a->b")));
}

TEST(MetricsDeathTest, WrongUseIsABrokenInvariant) {
  Metrics metrics("m", "router");
  EXPECT_DEATH(metrics.Counter(metric::kRequests, {{"code", "OK"}}), "hyserve_requests_total");
  EXPECT_DEATH(metrics.Gauge(metric::kRequests), "hyserve_requests_total");
  EXPECT_DEATH(metrics.Gauge(metric::kKvBlocksCapacity), "hyserve_kv_blocks_capacity");
}

TEST(LocalHistogram, GivesTheSameAsDirectObservations) {
  Metrics direct("m", "router"), local("m", "router");
  LocalHistogram histogram(&local.Histogram(metric::kInterTokenLatency),
                           metric::kInterTokenLatency);
  for (const double value : {0.0, 0.0005, 0.00051, 0.01, 80.0, 81.0, 0.01}) {
    direct.Histogram(metric::kInterTokenLatency).Observe(value);
    histogram.Observe(value);
  }
  EXPECT_NE(direct.Expose(), local.Expose());
  EXPECT_EQ(histogram.pending(), 7);
  histogram.Flush();
  histogram.Flush();
  EXPECT_EQ(direct.Expose(), local.Expose());
}

TEST(MetricsServer, ServesThreePagesAndNothingElse) {
  Metrics metrics("m", "router");
  std::atomic<bool> ready{false};
  std::atomic<int> scrapes{0};
  const auto server = MetricsServer::Start(
      "127.0.0.1:0", &metrics, [&] { return std::string(ready ? "" : "loading"); },
      [&] { ++scrapes; });
  ASSERT_TRUE(server.ok()) << server.status();
  httplib::Client client("127.0.0.1", (*server)->port());
  EXPECT_EQ(client.Get("/livez")->status, 200);
  EXPECT_EQ(client.Get("/readyz")->status, 503);
  EXPECT_EQ(client.Get("/readyz")->body, "loading\n");
  ready = true;
  EXPECT_EQ(client.Get("/readyz")->status, 200);
  const auto page = client.Get("/metrics");
  EXPECT_EQ(page->status, 200);
  EXPECT_EQ(page->body, metrics.Expose());
  EXPECT_THAT(page->get_header_value("Content-Type"), HasSubstr("version=0.0.4"));
  EXPECT_EQ(scrapes, 1);
  EXPECT_EQ(client.Get("/")->status, 404);
  EXPECT_EQ(client.Get("/metrics/../etc")->status, 404);
  EXPECT_EQ(client.Post("/metrics", "x", "text/plain")->status, 405);
  EXPECT_EQ(client.Delete("/metrics")->status, 405);
}

TEST(MetricsServer, SaysWhichAddressIsTaken) {
  Metrics metrics("m", "router");
  const auto ready = [] { return std::string(); };
  const auto first = MetricsServer::Start("127.0.0.1:0", &metrics, ready);
  ASSERT_TRUE(first.ok());
  const std::string address = "127.0.0.1:" + std::to_string((*first)->port());
  const auto second = MetricsServer::Start(address, &metrics, ready);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(address));
  EXPECT_FALSE(MetricsServer::Start("nonsense", &metrics, ready).ok());
}

}  // namespace
}  // namespace hyserve::common
