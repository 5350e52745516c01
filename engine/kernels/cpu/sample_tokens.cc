#include "engine/kernels/sample_tokens.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "engine/kernels/cpu/cpu_ops.h"

namespace hyserve::kernels::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();
// Candidates sorted at first for top_p; grows eightfold until their sum suffices.
constexpr size_t kFirstSorted = 64;

struct Candidate {
  float logit;
  int32_t id;
  double weight;
};

bool Better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

void Sanitize(std::span<float> logits) {
  for (float& logit : logits) {
    if (std::isnan(logit)) {
      logit = kMinusInfinity;
    } else if (logit > kLargest) {
      logit = kLargest;
    }
  }
}

void ApplyEdits(std::span<const LogitEdit> edits, std::span<float> logits) {
  for (const LogitEdit& edit : edits) {
    float& logit = logits[edit.token_id];
    logit += edit.bias;
    logit = logit > 0 ? logit / edit.repetition : logit * edit.repetition;
    logit = std::min(logit, kLargest) - edit.penalty;
  }
}

// ln(sum(exp(logits))).
double LogSumExp(std::span<const float> logits, float max) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - max);
  return max + std::log(sum);
}

void TopLogprobs(std::span<const float> logits, double log_sum_exp, int count, SampledRow& out) {
  const auto better = [logits](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  // A heap of the best so far with the worst of them on top: few tokens enter it.
  int32_t* const best = out.top_ids;
  for (int32_t id = 0; count > 0 && id < static_cast<int32_t>(logits.size()); ++id) {
    if (logits[id] == kMinusInfinity) continue;
    if (out.num_top == count) {
      if (!better(id, best[0])) continue;
      std::pop_heap(best, best + count, better);
      best[count - 1] = id;
    } else {
      best[out.num_top++] = id;
    }
    std::push_heap(best, best + out.num_top, better);
  }
  std::sort_heap(best, best + out.num_top, better);
  for (int i = 0; i < out.num_top; ++i) {
    out.top_logprobs[i] = static_cast<float>(logits[best[i]] - log_sum_exp);
  }
}

// Leaves the shortest run of the best whose weights sum to top_p of all, best first. The total is
// summed in the order of ids, so that it does not depend on how top_k permuted.
void KeepTopP(float top_p, bool in_order_of_ids, std::vector<Candidate>& candidates) {
  if (!in_order_of_ids) {
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  }
  double total = 0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  const double target = top_p * total;
  double sum = 0;
  size_t kept = 0;
  size_t sorted = 0;
  for (size_t step = kFirstSorted;
       kept == sorted && kept < candidates.size() && (kept == 0 || sum < target); step *= 8) {
    const size_t end = std::min(candidates.size(), sorted + step);
    if (end < candidates.size()) {
      std::nth_element(candidates.begin() + sorted, candidates.begin() + end, candidates.end(),
                       Better);
    }
    std::sort(candidates.begin() + sorted, candidates.begin() + end, Better);
    sorted = end;
    while (kept < sorted && (kept == 0 || sum < target)) sum += candidates[kept++].weight;
  }
  candidates.resize(kept);
}

// The tokens that top_k, top_p and min_p leave, best first.
void Truncate(std::span<const float> logits, const SampleRow& row, double max,
              std::vector<Candidate>& candidates) {
  // A token below the min_p bound never survives, but it counts for the sum of top_p: drop it early
  // only when top_p is off.
  const bool use_top_p = row.top_p < 1;
  const double floor = use_top_p ? 0 : row.min_p;
  candidates.clear();
  for (int32_t id = 0; id < static_cast<int32_t>(logits.size()); ++id) {
    if (logits[id] == kMinusInfinity) continue;
    const double weight = std::exp((logits[id] - max) / row.temperature);
    if (weight > 0 && weight >= floor) candidates.push_back({logits[id], id, weight});
  }
  const bool use_top_k = row.top_k > 0 && static_cast<size_t>(row.top_k) < candidates.size();
  if (use_top_k) {
    std::nth_element(candidates.begin(), candidates.begin() + row.top_k, candidates.end(), Better);
    candidates.resize(row.top_k);
  }
  if (use_top_p) {
    KeepTopP(row.top_p, !use_top_k, candidates);
  } else {
    std::sort(candidates.begin(), candidates.end(), Better);
  }
  while (candidates.size() > 1 && candidates.back().weight < row.min_p) candidates.pop_back();
}

int32_t DrawBestFirst(std::span<const float> logits, const SampleRow& row, double max) {
  thread_local std::vector<Candidate> candidates;  // keeps its memory from row to row
  Truncate(logits, row, max, candidates);
  double total = 0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  double left = row.uniform * total;
  for (const Candidate& candidate : candidates) {
    left -= candidate.weight;
    if (left < 0) return candidate.id;
  }
  return candidates.back().id;
}

int32_t DrawInOrderOfIds(std::span<const float> logits, const SampleRow& row, double max) {
  const auto weight_of = [&](float logit) { return std::exp((logit - max) / row.temperature); };
  double total = 0;
  for (const float logit : logits) total += weight_of(logit);
  double left = row.uniform * total;
  int32_t last = 0;
  for (int32_t id = 0; id < static_cast<int32_t>(logits.size()); ++id) {
    const double weight = weight_of(logits[id]);
    if (weight == 0) continue;
    last = id;
    left -= weight;
    if (left < 0) break;
  }
  return last;
}

SampledRow SampleOne(const SampleRow& row, std::span<const LogitEdit> edits,
                     std::span<float> logits) {
  Sanitize(logits);
  ApplyEdits(edits, logits);
  SampledRow out;
  const auto best = std::max_element(logits.begin(), logits.end());
  if (*best == kMinusInfinity) return out;
  const bool truncated = row.top_p < 1 || row.min_p > 0 ||
                         (row.top_k > 0 && static_cast<size_t>(row.top_k) < logits.size());
  if (row.given_token >= 0) {
    out.token_id = row.given_token;
  } else if (row.temperature == 0) {
    out.token_id = static_cast<int32_t>(best - logits.begin());
  } else {
    out.token_id = truncated ? DrawBestFirst(logits, row, *best)
                             : DrawInOrderOfIds(logits, row, *best);
  }
  if (row.num_logprobs >= 0) {
    const double log_sum_exp = LogSumExp(logits, *best);
    out.logprob = static_cast<float>(logits[out.token_id] - log_sum_exp);
    TopLogprobs(logits, log_sum_exp, row.num_logprobs, out);
  }
  return out;
}

}  // namespace

absl::Status SampleTokens(CpuDevice& device, const SampleTokensParams& params) {
  const int64_t vocab_size = params.logits.cols;
  ForEachRowGroup(device, params.logits.rows, vocab_size, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const SampleRow& row = params.rows[i];
      const std::span<const LogitEdit> edits =
          row.num_edits == 0 ? std::span<const LogitEdit>()
                             : std::span(params.edits + row.first_edit,
                                         static_cast<size_t>(row.num_edits));
      params.out[i] = SampleOne(
          row, edits, std::span(params.logits.Row<float>(i), static_cast<size_t>(vocab_size)));
    }
  });
  return absl::OkStatus();
}

}  // namespace hyserve::kernels::cpu
