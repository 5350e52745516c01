#include "tests/engine/kernels/sample_tokens_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace hyserve::kernels::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr double kMargin = 1e-9;

// Tokens kept of those sorted best first, with weights and their running sums.
int64_t NumKept(const std::vector<double>& weights, const std::vector<long double>& running,
                const SampleRow& row, double top_p, double min_p) {
  auto kept = static_cast<int64_t>(weights.size());
  if (row.top_k > 0) kept = std::min<int64_t>(kept, row.top_k);
  if (row.top_p < 1) {
    const long double enough = top_p * running[kept - 1];
    const auto reached = std::lower_bound(running.begin(), running.begin() + kept, enough);
    kept = std::min<int64_t>(kept, reached - running.begin() + 1);
  }
  while (kept > 1 && weights[kept - 1] < min_p) --kept;
  return kept;
}

}  // namespace

SampleTokensReference::SampleTokensReference(std::vector<float> logits,
                                             const std::vector<LogitEdit>& edits)
    : logits_(std::move(logits)) {
  for (float& x : logits_) {
    if (std::isnan(x)) x = -kInfinity;
    if (x == kInfinity) x = kLargest;
  }
  for (const LogitEdit& edit : edits) {
    float& x = logits_[edit.token_id];
    x += edit.bias;
    x = x > 0 ? x / edit.repetition : x * edit.repetition;
    x = std::min(x, kLargest) - edit.penalty;
  }
  for (int32_t id = 0; id < static_cast<int32_t>(logits_.size()); ++id) {
    if (logits_[id] > -kInfinity) order_.push_back(id);
  }
  std::stable_sort(order_.begin(), order_.end(),
                   [this](int32_t a, int32_t b) { return logits_[a] > logits_[b]; });
  if (order_.empty()) return;
  const double max = logits_[order_[0]];
  long double sum = 0;
  for (const int32_t id : order_) sum += std::exp(logits_[id] - max);
  log_sum_exp_ = max + std::log(sum);
}

double SampleTokensReference::Logprob(int32_t token_id) const {
  return static_cast<double>(logits_[token_id] - log_sum_exp_);
}

SampleTokensReference::Distribution SampleTokensReference::Of(const SampleRow& row) const {
  Distribution result;
  if (order_.empty()) return result;
  result.drawn_ = row.given_token < 0 && row.temperature > 0;
  result.best_ = row.given_token >= 0 ? row.given_token : order_[0];
  result.num_kept_ = 1;
  if (!result.drawn_) return result;
  const bool by_id = row.top_p >= 1 && row.min_p <= 0 &&
                     (row.top_k <= 0 || row.top_k >= static_cast<int64_t>(logits_.size()));
  result.ids_ = order_;
  if (by_id) std::sort(result.ids_.begin(), result.ids_.end());
  std::vector<double> weights;
  long double sum = 0;
  size_t used = 0;
  for (const int32_t id : result.ids_) {
    const double weight =
        std::exp((static_cast<double>(logits_[id]) - logits_[order_[0]]) / row.temperature);
    if (weight == 0) continue;
    result.ids_[used++] = id;
    weights.push_back(weight);
    result.running_.push_back(sum += weight);
  }
  result.ids_.resize(used);
  const auto all = static_cast<int64_t>(used);
  result.num_kept_ =
      by_id ? all : NumKept(weights, result.running_, row, row.top_p, row.min_p);
  result.fewest_kept_ =
      by_id ? all
            : NumKept(weights, result.running_, row, row.top_p * (1 - kMargin),
                      row.min_p + kMargin * (row.min_p > 0));
  result.most_kept_ =
      by_id ? all
            : NumKept(weights, result.running_, row, row.top_p * (1 + kMargin),
                      row.min_p - kMargin);
  return result;
}

int64_t SampleTokensReference::Distribution::PlaceOf(double uniform, int64_t num_kept) const {
  const long double wanted = uniform * running_[num_kept - 1];
  const auto passed = std::upper_bound(running_.begin(), running_.begin() + num_kept, wanted);
  return std::min<int64_t>(passed - running_.begin(), num_kept - 1);
}

int32_t SampleTokensReference::Distribution::TokenAt(double uniform) const {
  return drawn_ ? ids_[PlaceOf(uniform, num_kept_)] : best_;
}

bool SampleTokensReference::Distribution::IsNearly(int32_t token_id, double uniform) const {
  if (!drawn_) return token_id == best_;
  const int64_t first = PlaceOf(std::max(uniform - kMargin, 0.0), fewest_kept_);
  const int64_t last = PlaceOf(uniform + kMargin, most_kept_);
  return std::find(ids_.begin() + first, ids_.begin() + last + 1, token_id) !=
         ids_.begin() + last + 1;
}

}  // namespace hyserve::kernels::testing
