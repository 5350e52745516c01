// The properties that every backend of a HySparse net must have, on the engine.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/attention/attention_plan.h"
#include "engine/kernels/ops.h"
#include "engine/model/presets.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_runner.h"

namespace hyserve::model {
namespace {

using tensor::DType;

constexpr auto kAll = SequenceRows::Logits::kAll;

// Tiny with groups of two heads, and a budget of `blocks` blocks.
ModelConfig TinyWithBudget(int blocks) {
  ModelConfig config = *Preset("tiny");
  config.sparse_topk_tokens = blocks * 64;
  return config;
}

// A context that the budget covers: the sparse branch is dense causal attention, so a larger budget
// changes nothing, while a smaller one does.
TEST(ConformanceTest, BudgetThatCoversTheContextIsDense) {
  const std::vector<int32_t> ids = RandomIds(250, 256, 1);
  const auto logits = [&](int blocks) {
    ModelRunner runner = ModelRunner::Random(TinyWithBudget(blocks), DType::kF32, DType::kF32);
    ModelRunner::Sequence sequence = runner.NewSequence(250);
    return runner.Step(sequence, ids).logits;
  };
  const std::vector<float> covered = logits(4);
  EXPECT_EQ(covered, logits(64));
  EXPECT_NE(covered, logits(1));
}

// The block scores that a full layer emits are exp(max logit - LSE) of the keys that are cached,
// the diagonal block included; the selection is a stable sort of them.
TEST(ConformanceTest, BlockScoresOfTheCachedKeys) {
  ModelRunner runner = ModelRunner::Random(TinyWithBudget(2), DType::kF32, DType::kF32);
  const AttentionShape& shape = runner.model().config().full;
  const int context = 333, blocks = 6, group_heads = shape.num_heads / shape.num_kv_heads;
  ModelRunner::Sequence sequence = runner.NewSequence(context);
  runner.Step(sequence, RandomIds(context, 256, 2));

  // One row of queries at the last position.
  attention::AttentionPlan plan;
  const attention::PlanSequence row = {1, context - 1, sequence.blocks, sequence.slab};
  ASSERT_TRUE(plan.Build(runner.device(), std::span(&row, 1)).ok());
  std::vector<float> q(shape.num_heads * shape.head_dim), out(shape.num_heads * shape.v_head_dim);
  for (size_t i = 0; i < q.size(); ++i) q[i] = std::sin(static_cast<float>(i) * 1.7f) * 2;
  std::vector<int32_t> selection(shape.num_kv_heads * 2);
  std::vector<float> scores(shape.num_kv_heads * blocks);
  const auto view = [](std::vector<float>& v) {
    const int64_t size = static_cast<int64_t>(v.size());
    return tensor::TensorView{v.data(), DType::kF32, 1, size, size};
  };
  ASSERT_TRUE(kernels::FullAttention(runner.device(), {.q = view(q),
                                                       .out = view(out),
                                                       .num_heads = shape.num_heads,
                                                       .scale = 0.25f,
                                                       .batch = &plan.batch(),
                                                       .kv = runner.pool().Paged(1),
                                                       .selection = selection.data(),
                                                       .selected_blocks = 2,
                                                       .block_scores = scores.data(),
                                                       .scores_stride = blocks})
                  .ok());

  for (int g = 0; g < shape.num_kv_heads; ++g) {
    std::vector<double> wanted(blocks, -std::numeric_limits<double>::infinity());
    for (int h = g * group_heads; h < (g + 1) * group_heads; ++h) {
      std::vector<double> logits(context);
      double sum = 0;
      for (int t = 0; t < context; ++t) {
        const float* key = reinterpret_cast<const float*>(
                               runner.pool().Slice(1, sequence.blocks[t / 64])) +
                           (g * 64 + t % 64) * shape.head_dim;
        for (int i = 0; i < shape.head_dim; ++i) {
          logits[t] += 0.25 * q[h * shape.head_dim + i] * key[i];
        }
        sum += std::exp(logits[t]);
      }
      for (int t = 0; t < context; ++t) {
        wanted[t / 64] = std::max(wanted[t / 64], logits[t] - std::log(sum));
      }
    }
    std::vector<int32_t> order(blocks);
    for (int b = 0; b < blocks; ++b) {
      EXPECT_NEAR(std::exp(scores[g * blocks + b]), std::exp(wanted[b]), 1e-5);
      order[b] = b;
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return wanted[a] > wanted[b]; });
    std::sort(order.begin(), order.begin() + 2);
    EXPECT_TRUE(std::equal(order.begin(), order.begin() + 2, selection.begin() + 2 * g));
  }
}

// Equal tokens without positions give equal keys, so every block ties with every other: the lower
// index wins, in prefill and in decode.
TEST(ConformanceTest, TiesGoToTheLowerIndex) {
  ModelConfig config = TinyWithBudget(2);
  config.full.rotary_dim = 0;
  config.sliding.rotary_dim = 0;
  ModelRunner runner = ModelRunner::Random(config, DType::kF32, DType::kF32);
  ModelRunner::Sequence sequence = runner.NewSequence(400);
  const std::vector<int32_t> same(400, 17);
  const StepOutput prefill = runner.Step(sequence, std::span(same).first(390));
  EXPECT_EQ(prefill.selections[0], (std::vector<int32_t>{0, 1, 0, 1}));
  const StepOutput decode = runner.Step(sequence, std::span(same).subspan(390, 1));
  EXPECT_EQ(decode.selections[0], (std::vector<int32_t>{0, 1, 0, 1}));
}

TEST(ConformanceTest, FewVisibleBlocksArePaddedWithMinusOne) {
  ModelRunner runner = ModelRunner::Random(TinyWithBudget(3), DType::kF32, DType::kF32);
  ModelRunner::Sequence sequence = runner.NewSequence(130);
  const std::vector<int32_t> ids = RandomIds(130, 256, 3);
  EXPECT_EQ(runner.Step(sequence, std::span(ids).first(64)).selections[0],
            (std::vector<int32_t>{0, -1, -1, 0, -1, -1}));
  EXPECT_EQ(runner.Step(sequence, std::span(ids).subspan(64, 1)).selections[0],
            (std::vector<int32_t>{0, 1, -1, 0, 1, -1}));
  EXPECT_EQ(runner.Step(sequence, std::span(ids).subspan(65)).selections[0],
            (std::vector<int32_t>{0, 1, 2, 0, 1, 2}));
}

// Row t of a prefill and the decode step at t select the same set, as do all cuts into chunks, and
// leave the same bytes in the cache.
TEST(ConformanceTest, PrefillAndDecodeSelectTheSameAndCacheTheSame) {
  const std::vector<int32_t> ids = RandomIds(500, 256, 4);
  ModelRunner decode = ModelRunner::Random(TinyWithBudget(2), DType::kF32, DType::kBF16);
  ModelRunner::Sequence one = decode.NewSequence(500);
  const Trace decoded = decode.Run(one, ids, 1);
  for (const int chunk : {64, 100, 499, 500}) {
    ModelRunner prefill = ModelRunner::Random(TinyWithBudget(2), DType::kF32, DType::kBF16);
    ModelRunner::Sequence sequence = prefill.NewSequence(500);
    const Trace trace = prefill.Run(sequence, ids, chunk);
    EXPECT_EQ(trace.selections.back(), decoded.selections.back());
    const kv_cache::KvLayout& layout = prefill.model().layout();
    for (size_t slot = 0; slot < layout.full_layers.size(); ++slot) {
      for (size_t b = 0; b < sequence.blocks.size(); ++b) {
        EXPECT_TRUE(std::equal(
            prefill.pool().Slice(static_cast<int>(slot), sequence.blocks[b]),
            prefill.pool().Slice(static_cast<int>(slot), sequence.blocks[b]) + layout.slice_bytes(),
            decode.pool().Slice(static_cast<int>(slot), one.blocks[b])))
            << "chunk " << chunk << ", slot " << slot << ", block " << b;
      }
    }
    EXPECT_TRUE(std::equal(prefill.pool().Slab(sequence.slab),
                           prefill.pool().Slab(sequence.slab) + layout.slab_bytes,
                           decode.pool().Slab(one.slab)));
  }
}

TEST(ConformanceTest, GroupsSelectForThemselves) {
  ModelRunner runner = ModelRunner::Random(TinyWithBudget(2), DType::kF32, DType::kF32);
  ModelRunner::Sequence sequence = runner.NewSequence(700);
  const Trace trace = runner.Run(sequence, RandomIds(700, 256, 5), 10);
  int different = 0, seen = 0;
  for (const std::vector<int32_t>& selection : trace.selections) {
    if (selection.empty()) continue;
    ++seen;
    const bool same = std::equal(selection.begin(), selection.begin() + 2, selection.begin() + 2);
    different += same ? 0 : 1;
  }
  EXPECT_GT(different, seen / 4);
}

// The block grid of every sequence of a packed step starts at its own first token.
TEST(ConformanceTest, BlockGridStartsPerSequence) {
  ModelRunner runner = ModelRunner::Random(TinyWithBudget(2), DType::kF32, DType::kF32);
  const std::vector<int32_t> ids = RandomIds(300, 256, 6), other = RandomIds(37, 256, 7);
  ModelRunner::Sequence alone = runner.NewSequence(300);
  const StepOutput expected = runner.Step(alone, ids);
  ModelRunner::Sequence first = runner.NewSequence(64), second = runner.NewSequence(300);
  StepInput input;
  input.sequences = {ModelRunner::Rows(first, other, kAll),
                     ModelRunner::Rows(second, ids, kAll)};
  const StepOutput packed = runner.Forward(input);
  EXPECT_EQ(packed.selections[1], expected.selections[0]);
  EXPECT_TRUE(std::equal(expected.logits.begin(), expected.logits.end(),
                         packed.logits.begin() + 37 * 256));
}

// Several rows at once after a decoded prefix, as a verification of drafted tokens would run them.
TEST(ConformanceTest, VerifyingSeveralRowsEqualsDecoding) {
  ModelRunner runner = ModelRunner::Random(TinyWithBudget(2), DType::kBF16, DType::kBF16);
  const std::vector<int32_t> ids = RandomIds(330, 256, 8);
  ModelRunner::Sequence decoded = runner.NewSequence(330), verified = runner.NewSequence(330);
  const Trace decode = runner.Run(decoded, ids, 1);
  runner.Run(verified, std::span(ids).first(318), 318);
  for (size_t begin = 318; begin < ids.size(); begin += 4) {
    const StepOutput output = runner.Step(verified, std::span(ids).subspan(begin, 4));
    for (size_t row = 0; row < 4; ++row) {
      EXPECT_TRUE(std::equal(decode.logits[begin + row].begin(), decode.logits[begin + row].end(),
                             output.logits.begin() + row * 256));
    }
    EXPECT_EQ(output.selections[0], decode.selections[begin + 3]);
  }
}

}  // namespace
}  // namespace hyserve::model
