#include "engine/runtime/step_runner.h"

#include <utility>

#include "engine/sampling/token_choice.h"

namespace hyserve::runtime {

using scheduler::PlannedRows;
using scheduler::RowOutcome;
using scheduler::StepPlan;

namespace {

// With all logits wanted, the rows that score the token behind them: all but one that chooses it.
size_t NumScored(const PlannedRows& rows) {
  return rows.token_ids.size() - (rows.samples_token ? 1 : 0);
}

}  // namespace

std::vector<RowOutcome> StepRunner::Run(
    const StepPlan& plan, const absl::flat_hash_map<SequenceId, absl::Status>& failed) {
  std::vector<RowOutcome> outcomes(plan.rows.size());
  std::vector<size_t> taking_part;
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    const auto found = failed.find(plan.rows[i].id);
    if (found != failed.end()) {
      outcomes[i].status = found->second;
    } else {
      taking_part.push_back(i);
    }
  }
  if (taking_part.empty()) return outcomes;
  const absl::Status status = Forward(plan, taking_part);
  for (size_t slot = 0; slot < taking_part.size(); ++slot) {
    const size_t i = taking_part[slot];
    if (status.ok()) {
      outcomes[i] = Finish(plan.rows[i], slot);
    } else {
      outcomes[i].status = status;
    }
  }
  return outcomes;
}

absl::Status StepRunner::Forward(const StepPlan& plan, const std::vector<size_t>& taking_part) {
  using Logits = model::SequenceRows::Logits;
  model::StepInput input;
  // Whom to tell about final layers, and up to where.
  std::vector<std::pair<EventSink*, int32_t>> watchers;
  std::vector<size_t> first_sample;
  samples_.clear();
  edits_.clear();
  for (const size_t i : taking_part) {
    const PlannedRows& rows = plan.rows[i];
    model::SequenceRows& sequence = input.sequences.emplace_back();
    sequence.token_ids = rows.token_ids;
    sequence.first_position = rows.first_position;
    sequence.blocks = rows.blocks;
    sequence.slab = rows.slab;
    sequence.logits = rows.wants_all_logits ? Logits::kAll
                      : rows.samples_token  ? Logits::kLast
                                            : Logits::kNone;
    sequence.want_selection = rows.wants_selection;
    first_sample.push_back(samples_.size());
    AppendSamples(rows);
    if (live(rows.id).mode == SequenceMode::kPrefill) {
      watchers.emplace_back(live(rows.id).sink.get(),
                            rows.first_position + static_cast<int32_t>(rows.token_ids.size()));
    }
  }
  first_sample.push_back(samples_.size());
  for (size_t s = 0; s < input.sequences.size(); ++s) {
    input.sequences[s].samples = std::span(samples_).subspan(
        first_sample[s], first_sample[s + 1] - first_sample[s]);
  }
  input.edits = edits_;
  if (!watchers.empty()) {
    input.on_layer_kv_ready = [&watchers](int layer_slot) {
      for (const auto& [sink, num_tokens] : watchers) sink->OnLayerReady(layer_slot, num_tokens);
    };
  }
  output_.selections.clear();
  return model_.Forward(input, pool_, &output_);
}

void StepRunner::AppendSamples(const PlannedRows& rows) {
  const scheduler::Sequence& scheduled = *scheduler_.Find(rows.id);
  const LiveSequence& sequence = live(rows.id);
  if (rows.wants_all_logits) {
    for (size_t row = 0; row < NumScored(rows); ++row) {
      samples_.push_back(sampling::ScoreToken(scheduled.tokens[rows.first_position + row + 1],
                                              sequence.num_prompt_logprobs));
    }
  }
  if (!rows.samples_token) return;
  samples_.push_back(sampling::ChooseToken({.params = &scheduled.spec.sampling,
                                            .penalties = &sequence.penalties,
                                            .eos_token_ids = model_.config().eos_token_ids,
                                            .index = scheduled.generated_tokens(),
                                            .random_offset = sequence.prior_generated_tokens},
                                           &edits_));
}

RowOutcome StepRunner::Finish(const PlannedRows& rows, size_t slot) {
  LiveSequence& sequence = live(rows.id);
  const size_t first_row = static_cast<size_t>(output_.logit_row_begin[slot]);
  const size_t num_rows = static_cast<size_t>(output_.logit_row_begin[slot + 1]) - first_row;
  const auto sampled = std::span<const kernels::SampledRow>(output_.sampled)
                           .subspan(first_row, num_rows);

  RowOutcome outcome;
  if (rows.wants_all_logits && rows.is_prompt) {
    outcome.status = SendPromptLogprobs(rows, sampled, sequence);
    if (!outcome.status.ok()) return outcome;
  }
  std::vector<sampling::SampledToken> tokens;
  const scheduler::Sequence* scheduled = scheduler_.Find(rows.id);
  const int32_t index = scheduled->generated_tokens();
  if (rows.samples_token) {
    if (sampled.empty()) {
      outcome.status = absl::InternalError("the model returned no token");
      return outcome;
    }
    auto token = sampling::ToSampledToken(sampled.back());
    if (!token.ok()) {
      outcome.status = token.status();
      return outcome;
    }
    outcome.token_id = token->token_id;
    sequence.penalties.AddGenerated(token->token_id);
    tokens.push_back(*std::move(token));
  }
  if (rows.is_prompt) {
    sequence.sink->OnPrefillProgress(rows.first_position +
                                     static_cast<int32_t>(rows.token_ids.size()));
    if (rows.samples_token && sequence.mode == SequenceMode::kPrefill) {
      sequence.sink->OnPrefillDone(slot < output_.selections.size()
                                       ? std::move(output_.selections[slot])
                                       : std::vector<int32_t>());
    }
  }
  if (!tokens.empty()) sequence.sink->OnTokens(index, tokens);
  return outcome;
}

absl::Status StepRunner::SendPromptLogprobs(const PlannedRows& rows,
                                            std::span<const kernels::SampledRow> sampled,
                                            const LiveSequence& live) {
  if (sampled.size() < NumScored(rows)) {
    return absl::InternalError("the model returned too few rows of logits");
  }
  std::vector<sampling::SampledToken> scored;
  for (const kernels::SampledRow& row : sampled.first(NumScored(rows))) {
    auto token = sampling::ToSampledToken(row);
    if (!token.ok()) return token.status();
    scored.push_back(*std::move(token));
  }
  if (!scored.empty()) live.sink->OnPromptLogprobs(rows.first_position + 1, std::move(scored));
  return absl::OkStatus();
}

}  // namespace hyserve::runtime
