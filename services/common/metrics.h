// All metrics of a process, over prometheus-cpp. What exists is in metric_table.h; this class makes
// each of them once and hands out the objects, which the caller keeps.
#ifndef HYSERVE_SERVICES_COMMON_METRICS_H_
#define HYSERVE_SERVICES_COMMON_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "services/common/metric_table.h"

namespace hyserve::common {

using MetricLabels = std::map<std::string, std::string>;

// Thread-safe. The returned objects live as long as the Metrics and are thread-safe themselves, but
// a histogram takes a lock in each Observe(): per token use LocalHistogram.
class Metrics {
 public:
  // `role`: router, prefill, decode or monolithic; only metrics of that role are made. Metrics
  // without labels of their own exist from the start, with 0.
  Metrics(std::string model_name, std::string role, std::string engine = "0");
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // `labels` must be exactly the label names of the spec. A spec of another kind or role, or other
  // label names, is a broken invariant.
  prometheus::Counter& Counter(const MetricSpec& spec, const MetricLabels& labels = {});
  prometheus::Gauge& Gauge(const MetricSpec& spec, const MetricLabels& labels = {});
  prometheus::Histogram& Histogram(const MetricSpec& spec, const MetricLabels& labels = {});
  // Forgets one time series of a gauge, e.g. of a worker that is gone.
  void RemoveGauge(const MetricSpec& spec, const MetricLabels& labels);

  // The text exposition format, version 0.0.4.
  std::string Expose() const;

 private:
  struct Families;
  MetricLabels AllLabels(const MetricSpec& spec, const MetricLabels& labels) const;

  const std::string model_name_;
  const std::string role_;
  const std::string engine_;
  std::unique_ptr<Families> families_;
};

// Observations of one owner (a stream), given to the shared histogram in one call. Not thread-safe.
class LocalHistogram {
 public:
  LocalHistogram(prometheus::Histogram* histogram, const MetricSpec& spec);
  void Observe(double value, int count = 1);
  void Flush();
  int pending() const { return pending_; }

 private:
  prometheus::Histogram* histogram_;
  const MetricSpec* spec_;
  std::vector<double> counts_;
  double sum_ = 0;
  int pending_ = 0;
};

}  // namespace hyserve::common

#endif  // HYSERVE_SERVICES_COMMON_METRICS_H_
