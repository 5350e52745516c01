#include "engine/sampling/logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace hyserve::sampling {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Orders by logit, equal ones by id: the better token first.
struct Better {
  std::span<const float> logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

}  // namespace

void Sanitize(std::span<float> logits) {
  for (float& logit : logits) {
    if (std::isnan(logit)) {
      logit = kMinusInfinity;
    } else if (logit > std::numeric_limits<float>::max()) {
      logit = std::numeric_limits<float>::max();
    }
  }
}

double LogSumExp(std::span<const float> logits) {
  if (logits.empty()) return -std::numeric_limits<double>::infinity();
  const float max = *std::max_element(logits.begin(), logits.end());
  if (max == kMinusInfinity) return -std::numeric_limits<double>::infinity();
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - max);
  return max + std::log(sum);
}

std::vector<TokenLogprob> TopLogprobs(std::span<const float> logits, double log_sum_exp,
                                      int count) {
  std::vector<TokenLogprob> top;
  if (count <= 0) return top;
  const Better better{logits};
  // A heap of the best so far with the worst of them on top: few tokens enter it.
  std::vector<int32_t> best;
  best.reserve(count + 1);
  for (int32_t id = 0; id < static_cast<int32_t>(logits.size()); ++id) {
    if (logits[id] == kMinusInfinity) continue;
    if (static_cast<int>(best.size()) == count) {
      if (!better(id, best.front())) continue;
      std::pop_heap(best.begin(), best.end(), better);
      best.back() = id;
    } else {
      best.push_back(id);
    }
    std::push_heap(best.begin(), best.end(), better);
  }
  std::sort_heap(best.begin(), best.end(), better);
  for (const int32_t id : best) {
    top.push_back({id, static_cast<float>(logits[id] - log_sum_exp)});
  }
  return top;
}

absl::StatusOr<SampledToken> ScoreToken(std::span<float> logits, int32_t token_id, int num_top) {
  Sanitize(logits);
  const double log_sum_exp = LogSumExp(logits);
  if (std::isinf(log_sum_exp)) return absl::InternalError("no logit is a finite number");
  SampledToken token;
  token.token_id = token_id;
  token.logprob = static_cast<float>(logits[token_id] - log_sum_exp);
  token.top = TopLogprobs(logits, log_sum_exp, num_top);
  return token;
}

}  // namespace hyserve::sampling
