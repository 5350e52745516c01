#include "tests/engine/model/steps_within.h"

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/kv_cache/kv_layout.h"
#include "engine/model/presets.h"
#include "gtest/gtest.h"

namespace hyserve::model {
namespace {

using Logits = SequenceRows::Logits;

struct Rows {
  int64_t count = 1;
  int64_t context = 1;  // with these rows
};

std::vector<std::vector<Rows>> ShapesWithin(const StepLimits& limits) {
  const int64_t rows = limits.num_rows;
  const int64_t sequences = limits.num_sequences;
  const int64_t context = limits.context_tokens;
  // As many sequences of `count` rows as may be.
  const auto of = [&](int64_t count, int64_t tokens) {
    return std::vector<Rows>(std::clamp<int64_t>(rows / count, 1, sequences), {count, tokens});
  };
  std::vector<std::vector<Rows>> shapes = {
      {{rows, context}}, {{rows, rows}}, {{rows / 2, context}, {rows / 2, rows}}, {{1, 1}}};
  // Around the sizes at which kernels change, at the end of the longest context and of a short one.
  for (const int64_t count : {1, 8, 9, 16, 40, 63, 64, 65, 128, 129}) {
    if (count > rows) continue;
    shapes.push_back(of(count, context));
    shapes.push_back(of(count, std::min<int64_t>(context, 200)));
  }
  // A chunk beside sequences that generate.
  if (sequences > 1 && sequences <= rows) {
    shapes.push_back(std::vector<Rows>(sequences - 1, {1, context}));
    shapes.back().push_back({rows - sequences + 1, context});
  }
  return shapes;
}

void RunStep(const std::vector<Rows>& shape, bool all_logits, const StepLimits& limits,
             Model& model, attention::KvPool& pool) {
  std::vector<std::vector<int32_t>> ids, blocks;
  // Of every row: the best token, a draw, and one that sees other logits, in turn.
  const kernels::LogitEdit edit = {.token_id = 3, .bias = 1};
  const std::vector<kernels::SampleRow> samples[3] = {
      std::vector<kernels::SampleRow>(limits.num_rows),
      std::vector<kernels::SampleRow>(limits.num_rows, {.temperature = 1, .top_p = 0.9f}),
      std::vector<kernels::SampleRow>(limits.num_rows, {.num_logprobs = 5, .num_edits = 1})};
  StepInput input;
  input.edits = {&edit, 1};
  for (const Rows& rows : shape) {
    ids.emplace_back(rows.count, static_cast<int32_t>(ids.size() % 7));
    blocks.emplace_back(kv_cache::KvLayout::NumBlocks(rows.context), 0);
  }
  for (size_t s = 0; s < shape.size(); ++s) {
    input.sequences.push_back(
        {.token_ids = ids[s],
         .first_position = static_cast<int32_t>(shape[s].context - shape[s].count),
         .blocks = blocks[s],
         .slab = pool.layout().slab_bytes > 0 ? static_cast<int32_t>(s) : -1,
         .logits = all_logits ? Logits::kAll : Logits::kLast,
         .samples = std::span(samples[s % 3]).first(all_logits ? shape[s].count : 1),
         .want_selection = true});
  }
  StepOutput output;
  const absl::Status status = model.Forward(input, pool, &output);
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace

ModelConfig TinyExperts() {
  ModelConfig config = *Preset("tiny");
  config.full = {.num_heads = 8,
                 .num_kv_heads = 2,
                 .head_dim = 192,
                 .v_head_dim = 128,
                 .rotary_dim = 64,
                 .rope_theta = config.full.rope_theta};
  config.sliding = config.full;
  for (int i = 1; i < config.num_layers(); ++i) config.layers[i].is_moe = true;
  config.num_experts = 16;
  config.experts_per_token = 3;
  config.moe_intermediate_size = 64;
  config.router_correction_bias = true;
  return config;
}

void RunStepsWithin(const StepLimits& limits, int times, Model& model, attention::KvPool& pool) {
  for (const std::vector<Rows>& shape : ShapesWithin(limits)) {
    for (int i = 0; i < times; ++i) RunStep(shape, false, limits, model, pool);
    RunStep(shape, true, limits, model, pool);
  }
}

}  // namespace hyserve::model
