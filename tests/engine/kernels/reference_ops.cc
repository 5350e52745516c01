#include "tests/engine/kernels/reference_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace hyserve::kernels::testing {

Doubles ReferenceLinear(const std::vector<float>& x, const std::vector<float>& w, int64_t m,
                        int64_t n, int64_t k) {
  Doubles y(m * n);
  for (int64_t row = 0; row < m; ++row) {
    for (int64_t col = 0; col < n; ++col) {
      double sum = 0;
      for (int64_t i = 0; i < k; ++i) {
        sum += static_cast<double>(x[row * k + i]) * static_cast<double>(w[col * k + i]);
      }
      y[row * n + col] = sum;
    }
  }
  return y;
}

double ReferenceSigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

ReferenceRow ReferenceAttention(const float* q, const KeyValues& kv, double scale,
                                const std::vector<int64_t>& positions, const float* sink) {
  Doubles logits;
  for (int64_t position : positions) {
    double dot = 0;
    for (int d = 0; d < kv.head_dim; ++d) {
      dot += static_cast<double>(q[d]) * static_cast<double>(kv.keys[position * kv.head_dim + d]);
    }
    logits.push_back(scale * dot);
  }
  double denominator = sink == nullptr ? 0.0 : std::exp(static_cast<double>(*sink));
  for (double logit : logits) denominator += std::exp(logit);
  ReferenceRow row;
  row.out.assign(kv.v_head_dim, 0.0);
  row.lse = std::log(denominator);
  const int64_t last = positions.empty() ? -1 : positions.back();
  row.block_scores.assign(last / 64 + 1, -std::numeric_limits<double>::infinity());
  for (size_t i = 0; i < positions.size(); ++i) {
    const double p = std::exp(logits[i]) / denominator;
    for (int d = 0; d < kv.v_head_dim; ++d) {
      row.out[d] += p * static_cast<double>(kv.values[positions[i] * kv.v_head_dim + d]);
    }
    double& score = row.block_scores[positions[i] / 64];
    score = std::max(score, logits[i] - row.lse);
    row.largest_logit = std::max(row.largest_logit, std::abs(logits[i]));
  }
  return row;
}

std::vector<int32_t> ReferenceSelection(const Doubles& scores, int k) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  order.resize(std::min<size_t>(order.size(), k));
  std::sort(order.begin(), order.end());
  order.resize(k, -1);
  return order;
}

}  // namespace hyserve::kernels::testing
