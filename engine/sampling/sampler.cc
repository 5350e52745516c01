#include "engine/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/sampling/logprobs.h"
#include "engine/sampling/philox.h"

namespace hyserve::sampling {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// Candidates sorted at first for top_p; grows eightfold until their sum suffices.
constexpr size_t kFirstSorted = 64;

bool Contains(std::span<const int32_t> ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

void MaskEndIds(const SamplingContext& context, std::span<float> logits) {
  const SamplingParams& params = *context.params;
  if (context.index >= params.min_tokens) return;
  auto mask = [&logits](int32_t id) {
    if (id >= 0 && id < static_cast<int32_t>(logits.size())) logits[id] = kMinusInfinity;
  };
  for (const int32_t id : params.stop_token_ids) mask(id);
  if (!params.ignore_eos) {
    for (const int32_t id : context.eos_token_ids) mask(id);
  }
}

}  // namespace

absl::StatusOr<SampledToken> Sampler::Sample(std::span<float> logits,
                                             const SamplingContext& context) {
  const SamplingParams& params = *context.params;
  Sanitize(logits);
  for (const auto& [token, bias] : params.logit_bias) logits[token] += bias;
  if (context.penalties != nullptr) context.penalties->Apply(params, logits);
  MaskEndIds(context, logits);

  const auto best = std::max_element(logits.begin(), logits.end());
  if (best == logits.end() || *best == kMinusInfinity) {
    return NoTokenPossible();
  }
  SampledToken token;
  token.token_id = params.temperature == 0 ? static_cast<int32_t>(best - logits.begin())
                                           : Draw(logits, context);
  if (params.num_logprobs >= 0) {
    const double log_sum_exp = LogSumExp(logits);
    token.logprob = static_cast<float>(logits[token.token_id] - log_sum_exp);
    token.top = TopLogprobs(logits, log_sum_exp, params.num_logprobs);
  }
  return token;
}

// Leaves in candidates_ the tokens that survive top_k, top_p and min_p, best first.
void Sampler::Truncate(std::span<const float> logits, const SamplingParams& params, double max) {
  auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  // A token below the min_p bound never survives, but it counts for the sum of top_p: drop it early
  // only when top_p is off.
  const bool use_top_p = params.top_p < 1.0f;
  const double floor = use_top_p ? 0 : params.min_p;
  candidates_.clear();
  for (int32_t id = 0; id < static_cast<int32_t>(logits.size()); ++id) {
    if (logits[id] == kMinusInfinity) continue;
    const double weight = std::exp((logits[id] - max) / params.temperature);
    if (weight > 0 && weight >= floor) candidates_.push_back({logits[id], id, weight});
  }
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + params.top_k, candidates_.end(),
                     better);
    candidates_.resize(params.top_k);
  }
  if (!use_top_p) {
    std::sort(candidates_.begin(), candidates_.end(), better);
  } else {
    // Summed in the order of ids so that the total does not depend on how a selection permutes.
    double total = 0;
    if (params.top_k > 0) {
      std::sort(candidates_.begin(), candidates_.end(),
                [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
    }
    for (const Candidate& candidate : candidates_) total += candidate.weight;
    const double target = params.top_p * total;
    double sum = 0;
    size_t kept = 0;
    size_t sorted = 0;
    for (size_t step = kFirstSorted; kept == sorted && kept < candidates_.size() &&
                                     (kept == 0 || sum < target); step *= 8) {
      const size_t end = std::min(candidates_.size(), sorted + step);
      if (end < candidates_.size()) {
        std::nth_element(candidates_.begin() + sorted, candidates_.begin() + end,
                         candidates_.end(), better);
      }
      std::sort(candidates_.begin() + sorted, candidates_.begin() + end, better);
      sorted = end;
      while (kept < sorted && (kept == 0 || sum < target)) sum += candidates_[kept++].weight;
    }
    candidates_.resize(kept);
  }
  while (candidates_.size() > 1 && candidates_.back().weight < params.min_p) {
    candidates_.pop_back();
  }
}

int32_t Sampler::Draw(std::span<const float> logits, const SamplingContext& context) {
  const SamplingParams& params = *context.params;
  const double uniform = UniformAt(params.seed, context.choice,
                                   static_cast<uint64_t>(context.index) + context.random_offset);
  const double max = *std::max_element(logits.begin(), logits.end());
  const bool truncated = params.top_p < 1.0f || params.min_p > 0 ||
                         (params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size());
  if (truncated) {
    Truncate(logits, params, max);
    double total = 0;
    for (const Candidate& candidate : candidates_) total += candidate.weight;
    double left = uniform * total;
    for (const Candidate& candidate : candidates_) {
      left -= candidate.weight;
      if (left < 0) return candidate.id;
    }
    return candidates_.back().id;
  }
  auto weight_of = [&](float logit) { return std::exp((logit - max) / params.temperature); };
  double total = 0;
  for (const float logit : logits) total += weight_of(logit);
  double left = uniform * total;
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

bool IsPlainlyGreedy(const SamplingParams& params, int32_t index) {
  return params.temperature == 0 && params.num_logprobs < 0 && params.logit_bias.empty() &&
         params.frequency_penalty == 0 && params.presence_penalty == 0 &&
         params.repetition_penalty == 1 && index >= params.min_tokens;
}

absl::Status NoTokenPossible() {
  return absl::InternalError("no token is possible: no logit is a finite number");
}

FinishReason FinishReasonOf(const SamplingParams& params, std::span<const int32_t> eos_token_ids,
                            int32_t token_id, int32_t index, int32_t max_tokens) {
  if (index >= params.min_tokens) {
    if (Contains(params.stop_token_ids, token_id)) return FinishReason::kStopToken;
    if (!params.ignore_eos && Contains(eos_token_ids, token_id)) {
      return FinishReason::kEndOfSequence;
    }
  }
  return index + 1 >= max_tokens ? FinishReason::kLength : FinishReason::kNone;
}

}  // namespace hyserve::sampling
