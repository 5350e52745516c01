#include "engine/runtime/step_runner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/sampling/logprobs.h"

namespace hyserve::runtime {

using scheduler::PlannedRows;
using scheduler::RowOutcome;
using scheduler::StepPlan;

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
  for (const size_t i : taking_part) {
    const PlannedRows& rows = plan.rows[i];
    model::SequenceRows& sequence = input.sequences.emplace_back();
    sequence.token_ids = rows.token_ids;
    sequence.first_position = rows.first_position;
    sequence.blocks = rows.blocks;
    sequence.slab = rows.slab;
    sequence.logits = rows.wants_all_logits      ? Logits::kAll
                      : !rows.samples_token      ? Logits::kNone
                      : IsPlainlyGreedy(rows.id) ? Logits::kGreedy
                                                 : Logits::kLast;
    sequence.want_selection = rows.wants_selection;
    if (live(rows.id).mode == SequenceMode::kPrefill) {
      watchers.emplace_back(live(rows.id).sink.get(),
                            rows.first_position + static_cast<int32_t>(rows.token_ids.size()));
    }
  }
  if (!watchers.empty()) {
    input.on_layer_kv_ready = [&watchers](int layer_slot) {
      for (const auto& [sink, num_tokens] : watchers) sink->OnLayerReady(layer_slot, num_tokens);
    };
  }
  output_.selections.clear();
  return model_.Forward(input, pool_, &output_);
}

// Then the device chooses and the row of logits stays there: at 150,000 entries a row, copying them
// costs more than the step of a small batch.
bool StepRunner::IsPlainlyGreedy(SequenceId id) const {
  const scheduler::Sequence& sequence = *scheduler_.Find(id);
  return sampling::IsPlainlyGreedy(sequence.spec.sampling, sequence.generated_tokens());
}

absl::StatusOr<sampling::SampledToken> StepRunner::Sample(const PlannedRows& rows, size_t last_row,
                                                          std::span<float> logits) {
  if (!rows.wants_all_logits && IsPlainlyGreedy(rows.id)) {
    const int32_t token = output_.greedy_tokens[last_row];
    if (token < 0) return sampling::NoTokenPossible();
    return sampling::SampledToken{.token_id = token};
  }
  const scheduler::Sequence* scheduled = scheduler_.Find(rows.id);
  const LiveSequence& sequence = live(rows.id);
  return sampler_.Sample(logits.last(static_cast<size_t>(model_.config().vocab_size)),
                         {.params = &scheduled->spec.sampling,
                          .penalties = &sequence.penalties,
                          .eos_token_ids = model_.config().eos_token_ids,
                          .index = scheduled->generated_tokens(),
                          .random_offset = sequence.prior_generated_tokens});
}

RowOutcome StepRunner::Finish(const PlannedRows& rows, size_t slot) {
  LiveSequence& sequence = live(rows.id);
  const size_t vocab_size = static_cast<size_t>(model_.config().vocab_size);
  const size_t first_row = static_cast<size_t>(output_.logit_row_begin[slot]);
  const size_t num_rows = static_cast<size_t>(output_.logit_row_begin[slot + 1]) - first_row;
  std::span<float> logits;
  if (!output_.logits.empty()) {
    logits = std::span(output_.logits).subspan(first_row * vocab_size, num_rows * vocab_size);
  }

  RowOutcome outcome;
  if (rows.wants_all_logits && rows.is_prompt) {
    outcome.status = SendPromptLogprobs(rows, logits, sequence);
    if (!outcome.status.ok()) return outcome;
  }
  std::vector<sampling::SampledToken> tokens;
  const scheduler::Sequence* scheduled = scheduler_.Find(rows.id);
  const int32_t index = scheduled->generated_tokens();
  if (rows.samples_token) {
    if (num_rows == 0) {
      outcome.status = absl::InternalError("the model returned no logits");
      return outcome;
    }
    auto token = Sample(rows, first_row + num_rows - 1, logits);
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

absl::Status StepRunner::SendPromptLogprobs(const PlannedRows& rows, std::span<float> logits,
                                            const LiveSequence& live) {
  const size_t vocab_size = static_cast<size_t>(model_.config().vocab_size);
  const scheduler::Sequence* sequence = scheduler_.Find(rows.id);
  // Row r stands at first_position + r and tells about the token behind it.
  const int32_t first = rows.first_position + 1;
  const int32_t end = std::min(first + static_cast<int32_t>(rows.token_ids.size()),
                               sequence->prompt_tokens);
  if (static_cast<int32_t>(logits.size() / vocab_size) < end - first) {
    return absl::InternalError("the model returned too few rows of logits");
  }
  std::vector<sampling::SampledToken> scored;
  for (int32_t position = first; position < end; ++position) {
    auto token = sampling::ScoreToken(logits.subspan((position - first) * vocab_size, vocab_size),
                                      sequence->tokens[position], live.num_prompt_logprobs);
    if (!token.ok()) return token.status();
    scored.push_back(*std::move(token));
  }
  if (!scored.empty()) live.sink->OnPromptLogprobs(first, std::move(scored));
  return absl::OkStatus();
}

}  // namespace hyserve::runtime
