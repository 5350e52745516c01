#include "services/common/metrics.h"

#include <prometheus/text_serializer.h>

#include <algorithm>

#include "absl/base/internal/raw_logging.h"
#include "base/strings.h"

namespace hyserve::common {
namespace {

uint8_t RoleBit(std::string_view role) {
  if (role == "router") return kRouterRole;
  if (role == "prefill") return kPrefillRole;
  if (role == "decode") return kDecodeRole;
  if (role != "monolithic") ABSL_RAW_LOG(FATAL, "no such role: %s", std::string(role).c_str());
  return kMonolithicRole;
}

void CheckSpec(bool ok, const MetricSpec& spec, const char* what) {
  if (!ok) ABSL_RAW_LOG(FATAL, "%s: %s", std::string(spec.name).c_str(), what);
}

prometheus::Histogram::BucketBoundaries Borders(const MetricSpec& spec) {
  return {spec.buckets.begin(), spec.buckets.end()};
}

}  // namespace

struct Metrics::Families {
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  std::map<const MetricSpec*, prometheus::Family<prometheus::Counter>*> counters;
  std::map<const MetricSpec*, prometheus::Family<prometheus::Gauge>*> gauges;
  std::map<const MetricSpec*, prometheus::Family<prometheus::Histogram>*> histograms;

  template <typename T>
  static prometheus::Family<T>& At(
      const std::map<const MetricSpec*, prometheus::Family<T>*>& families, const MetricSpec& spec) {
    const auto found = families.find(&spec);
    CheckSpec(found != families.end(), spec, "another kind, or not of this role");
    return *found->second;
  }
};

Metrics::Metrics(std::string model_name, std::string role, std::string engine)
    : model_name_(std::move(model_name)),
      role_(std::move(role)),
      engine_(std::move(engine)),
      families_(std::make_unique<Families>()) {
  prometheus::Registry& registry = *families_->registry;
  for (const MetricSpec* spec : metric::kAll) {
    if ((spec->roles & RoleBit(role_)) == 0) continue;
    const std::string name(spec->name), help(spec->help);
    switch (spec->kind) {
      case MetricKind::kCounter:
        families_->counters[spec] =
            &prometheus::BuildCounter().Name(name).Help(help).Register(registry);
        if (spec->labels.empty()) Counter(*spec);
        break;
      case MetricKind::kGauge:
        families_->gauges[spec] =
            &prometheus::BuildGauge().Name(name).Help(help).Register(registry);
        if (spec->labels.empty()) Gauge(*spec);
        break;
      case MetricKind::kHistogram:
        families_->histograms[spec] =
            &prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
        if (spec->labels.empty()) Histogram(*spec);
        break;
    }
  }
  Gauge(metric::kBuildInfo, {{"version", std::string(kHyServeVersion)}}).Set(1);
}

Metrics::~Metrics() = default;

MetricLabels Metrics::AllLabels(const MetricSpec& spec, const MetricLabels& labels) const {
  CheckSpec(labels.size() == spec.labels.size(), spec, "wrong number of labels");
  for (const std::string_view label : spec.labels) {
    CheckSpec(labels.count(std::string(label)) == 1, spec, "a label is missing");
  }
  MetricLabels all = labels;
  const bool vllm = spec.name.substr(0, 5) == "vllm:";
  if (vllm) all["engine"] = engine_;
  all[vllm ? "model_name" : "model"] = model_name_;
  all["role"] = role_;
  return all;
}

prometheus::Counter& Metrics::Counter(const MetricSpec& spec, const MetricLabels& labels) {
  return Families::At(families_->counters, spec).Add(AllLabels(spec, labels));
}

prometheus::Gauge& Metrics::Gauge(const MetricSpec& spec, const MetricLabels& labels) {
  return Families::At(families_->gauges, spec).Add(AllLabels(spec, labels));
}

prometheus::Histogram& Metrics::Histogram(const MetricSpec& spec, const MetricLabels& labels) {
  return Families::At(families_->histograms, spec).Add(AllLabels(spec, labels), Borders(spec));
}

void Metrics::RemoveGauge(const MetricSpec& spec, const MetricLabels& labels) {
  prometheus::Family<prometheus::Gauge>& family = Families::At(families_->gauges, spec);
  family.Remove(&family.Add(AllLabels(spec, labels)));
}

std::string Metrics::Expose() const {
  return prometheus::TextSerializer().Serialize(families_->registry->Collect());
}

LocalHistogram::LocalHistogram(prometheus::Histogram* histogram, const MetricSpec& spec)
    : histogram_(histogram), spec_(&spec), counts_(spec.buckets.size() + 1) {}

void LocalHistogram::Observe(double value, int count) {
  // Borders are inclusive, as in prometheus::Histogram.
  const auto bucket = std::lower_bound(spec_->buckets.begin(), spec_->buckets.end(), value);
  counts_[bucket - spec_->buckets.begin()] += count;
  sum_ += value * count;
  pending_ += count;
}

void LocalHistogram::Flush() {
  if (pending_ == 0) return;
  histogram_->ObserveMultiple(counts_, sum_);
  std::fill(counts_.begin(), counts_.end(), 0);
  sum_ = 0;
  pending_ = 0;
}

}  // namespace hyserve::common
