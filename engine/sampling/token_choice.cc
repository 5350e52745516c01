#include "engine/sampling/token_choice.h"

#include <limits>

#include "absl/container/flat_hash_map.h"
#include "engine/sampling/philox.h"

namespace hyserve::sampling {
namespace {

static_assert(kMaxLogprobs <= kernels::kMaxTopLogprobs);

// Edits of single tokens by their ids: what one request lists itself.
using EditsById = absl::flat_hash_map<int32_t, kernels::LogitEdit>;

void ForbidEndIds(const SamplingContext& context, EditsById& edits) {
  const SamplingParams& params = *context.params;
  if (context.index >= params.min_tokens) return;
  constexpr float kImpossible = std::numeric_limits<float>::infinity();
  for (const int32_t id : params.stop_token_ids) edits[id].penalty = kImpossible;
  if (params.ignore_eos) return;
  for (const int32_t id : context.eos_token_ids) edits[id].penalty = kImpossible;
}

}  // namespace

kernels::SampleRow ChooseToken(const SamplingContext& context,
                               std::vector<kernels::LogitEdit>* edits) {
  const SamplingParams& params = *context.params;
  kernels::SampleRow row = {.temperature = params.temperature,
                            .top_p = params.top_p,
                            .min_p = params.min_p,
                            .top_k = params.top_k,
                            .num_logprobs = params.num_logprobs,
                            .first_edit = static_cast<int32_t>(edits->size())};
  if (params.temperature > 0) {
    row.uniform = UniformAt(params.seed, context.choice,
                            static_cast<uint64_t>(context.index) + context.random_offset);
  }
  EditsById by_id;
  for (const auto& [token, bias] : params.logit_bias) by_id[token].bias += bias;
  ForbidEndIds(context, by_id);
  // No id may occur twice.
  const auto add_penalty = [&](int32_t token, const Penalty& penalty) {
    kernels::LogitEdit edit;
    if (const auto found = by_id.find(token); found != by_id.end()) {
      edit = found->second;
      by_id.erase(found);
    }
    edit.token_id = token;
    edit.repetition = penalty.repetition;
    edit.penalty += penalty.subtracted;
    edits->push_back(edit);
  };
  if (context.penalties != nullptr) context.penalties->ForEach(params, add_penalty);
  for (auto& [token, edit] : by_id) {
    edit.token_id = token;
    edits->push_back(edit);
  }
  row.num_edits = static_cast<int32_t>(edits->size()) - row.first_edit;
  return row;
}

kernels::SampleRow ScoreToken(int32_t token_id, int num_top) {
  return {.given_token = token_id, .num_logprobs = num_top};
}

absl::StatusOr<SampledToken> ToSampledToken(const kernels::SampledRow& sampled) {
  if (sampled.token_id < 0) {
    return absl::InternalError("no token is possible: no logit is a finite number");
  }
  SampledToken token = {.token_id = sampled.token_id, .logprob = sampled.logprob};
  for (int i = 0; i < sampled.num_top; ++i) {
    token.top.push_back({sampled.top_ids[i], sampled.top_logprobs[i]});
  }
  return token;
}

}  // namespace hyserve::sampling
