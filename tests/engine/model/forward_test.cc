// What a row computes does not depend on how the rows were cut into steps, on what else is in the
// step, on threads, or on where the cached state came from.
#include <cstring>
#include <string>
#include <vector>

#include "engine/model/presets.h"
#include "engine/model/random_weights.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/golden_file.h"
#include "tests/engine/model/model_runner.h"
#include "tests/engine/model/test_files.h"

namespace hyserve::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using tensor::DType;

constexpr auto kNone = SequenceRows::Logits::kNone;
constexpr auto kLast = SequenceRows::Logits::kLast;
constexpr auto kAll = SequenceRows::Logits::kAll;

// Every layer kind, MoE and gates between them: the golden checkpoints, and the dtype of the cache.
class RowInvarianceTest
    : public ::testing::TestWithParam<std::tuple<const char*, DType>> {
 protected:
  ModelRunner Runner(int num_threads = 2) const {
    return ModelRunner::Load(kGoldenDirectory + "/" + std::get<0>(GetParam()),
                             std::get<1>(GetParam()), 64, 8, num_threads);
  }
};

TEST_P(RowInvarianceTest, AnyChunkSizeGivesTheSameBits) {
  ModelRunner runner = Runner();
  const std::vector<int32_t> ids = RandomIds(300, 48, 11);
  ModelRunner::Sequence single = runner.NewSequence(300);
  const Trace decoded = runner.Run(single, ids, 1);
  for (const int chunk : {2, 7, 63, 64, 65, 128, 300}) {
    ModelRunner fresh = Runner(chunk % 2 + 1);
    ModelRunner::Sequence sequence = fresh.NewSequence(300);
    const Trace trace = fresh.Run(sequence, ids, chunk);
    EXPECT_EQ(trace.logits, decoded.logits) << "chunk " << chunk;
    for (size_t row = 0; row < ids.size(); ++row) {
      if (trace.selections[row].empty()) continue;
      EXPECT_EQ(trace.selections[row], decoded.selections[row]) << chunk << ", row " << row;
    }
  }
}

TEST_P(RowInvarianceTest, BatchedWithOtherSequencesGivesTheSameBits) {
  ModelRunner runner = Runner();
  const std::vector<int32_t> ids[3] = {RandomIds(200, 48, 1), RandomIds(150, 48, 2),
                                       RandomIds(131, 48, 3)};
  Trace alone[3];
  for (int s = 0; s < 3; ++s) {
    ModelRunner::Sequence sequence = runner.NewSequence(200);
    alone[s] = runner.Run(sequence, ids[s], 50);
  }
  // The first decodes while the others prefill in pieces of their own.
  ModelRunner::Sequence sequences[3] = {runner.NewSequence(200), runner.NewSequence(200),
                                        runner.NewSequence(200)};
  runner.Step(sequences[0], std::span(ids[0]).first(150), kNone);
  const size_t pieces[3] = {1, 30, 47};
  const size_t vocab = runner.model().config().vocab_size;
  for (int step = 0; step < 50; ++step) {
    StepInput input;
    std::vector<std::pair<int, size_t>> parts;  // sequence and first row
    for (int s = 0; s < 3; ++s) {
      const size_t begin = sequences[s].length;
      const size_t rows = std::min(pieces[s], ids[s].size() - begin);
      if (rows == 0) continue;
      parts.push_back({s, begin});
      input.sequences.push_back(
          ModelRunner::Rows(sequences[s], std::span(ids[s]).subspan(begin, rows), kAll));
    }
    const StepOutput output = runner.Forward(input);
    ASSERT_EQ(output.logit_row_begin.size(), parts.size() + 1);
    for (size_t p = 0; p < parts.size(); ++p) {
      const auto [s, begin] = parts[p];
      const int rows = output.logit_row_begin[p + 1] - output.logit_row_begin[p];
      for (int row = 0; row < rows; ++row) {
        const float* logits = output.logits.data() + (output.logit_row_begin[p] + row) * vocab;
        EXPECT_EQ(std::vector<float>(logits, logits + vocab), alone[s].logits[begin + row])
            << "sequence " << s << ", row " << begin + row;
      }
    }
  }
}

TEST_P(RowInvarianceTest, PruningTheLastLayerChangesNothing) {
  ModelRunner runner = Runner();
  const std::vector<int32_t> ids = RandomIds(180, 48, 4);
  ModelRunner::Sequence all = runner.NewSequence(200), last = runner.NewSequence(200),
                        none = runner.NewSequence(200);
  const StepOutput of_all = runner.Step(all, ids, kAll);
  const StepOutput of_last = runner.Step(last, ids, kLast);
  const StepOutput of_none = runner.Step(none, ids, kNone);
  const size_t vocab = runner.model().config().vocab_size;
  EXPECT_THAT(of_all.logit_row_begin, ElementsAre(0, 180));
  EXPECT_THAT(of_last.logit_row_begin, ElementsAre(0, 1));
  EXPECT_THAT(of_none.logit_row_begin, ElementsAre(0, 0));
  ASSERT_EQ(of_last.logits.size(), vocab);
  EXPECT_TRUE(of_none.logits.empty());
  EXPECT_TRUE(std::equal(of_last.logits.begin(), of_last.logits.end(),
                         of_all.logits.end() - vocab));
  EXPECT_EQ(of_last.selections, of_all.selections);
  EXPECT_EQ(of_none.selections, of_all.selections);
  // The cached state is complete in all three: they go on alike.
  const std::vector<int32_t> more = RandomIds(3, 48, 5);
  const StepOutput after_all = runner.Step(all, more, kAll);
  EXPECT_EQ(runner.Step(last, more, kAll).logits, after_all.logits);
  EXPECT_EQ(runner.Step(none, more, kAll).logits, after_all.logits);
}

// A mixed step: one sequence of each kind, so that rows are gathered from the middle.
TEST_P(RowInvarianceTest, MixedWishesForLogits) {
  ModelRunner runner = Runner();
  const std::vector<int32_t> ids = RandomIds(90, 48, 6);
  ModelRunner::Sequence single = runner.NewSequence(90);
  const StepOutput expected = runner.Step(single, ids, kAll);
  const size_t vocab = runner.model().config().vocab_size;
  ModelRunner::Sequence s[3] = {runner.NewSequence(90), runner.NewSequence(90),
                                runner.NewSequence(90)};
  StepInput input;
  input.sequences = {ModelRunner::Rows(s[0], ids, kLast), ModelRunner::Rows(s[1], ids, kNone),
                     ModelRunner::Rows(s[2], ids, kAll)};
  input.sequences[1].want_selection = false;
  const StepOutput output = runner.Forward(input);
  EXPECT_THAT(output.logit_row_begin, ElementsAre(0, 1, 1, 91));
  ASSERT_EQ(output.logits.size(), 91 * vocab);
  EXPECT_TRUE(std::equal(expected.logits.end() - vocab, expected.logits.end(),
                         output.logits.begin()));
  EXPECT_TRUE(std::equal(expected.logits.begin(), expected.logits.end(),
                         output.logits.begin() + vocab));
  EXPECT_EQ(output.selections[0], expected.selections[0]);
  EXPECT_TRUE(output.selections[1].empty());
  EXPECT_EQ(output.selections[2], expected.selections[0]);
}

// What a hand-off does: pages and slab are copied byte for byte into another pool, at other places.
TEST_P(RowInvarianceTest, CopiedPagesAndSlabContinueIdentically) {
  ModelRunner from = Runner(), to = Runner();
  const std::vector<int32_t> prompt = RandomIds(170, 48, 7), more = RandomIds(40, 48, 8);
  ModelRunner::Sequence source = from.NewSequence(256);
  from.Step(source, prompt, kLast);
  to.NewSequence(192);  // so that blocks and slab differ
  ModelRunner::Sequence target = to.NewSequence(256);
  target.length = source.length;
  const kv_cache::KvLayout& layout = from.model().layout();
  ASSERT_EQ(layout.Fingerprint(), to.model().layout().Fingerprint());
  for (size_t slot = 0; slot < layout.full_layers.size(); ++slot) {
    for (int64_t b = 0; b < kv_cache::KvLayout::NumBlocks(source.length); ++b) {
      std::memcpy(to.pool().Slice(static_cast<int>(slot), target.blocks[b]),
                  from.pool().Slice(static_cast<int>(slot), source.blocks[b]),
                  layout.slice_bytes());
    }
  }
  std::memcpy(to.pool().Slab(target.slab), from.pool().Slab(source.slab), layout.slab_bytes);
  const Trace a = from.Run(source, more, 1), b = to.Run(target, more, 1);
  EXPECT_EQ(a.logits, b.logits);
  EXPECT_EQ(a.selections, b.selections);
}

INSTANTIATE_TEST_SUITE_P(
    All, RowInvarianceTest,
    ::testing::Combine(::testing::Values("gqa", "element_gates", "moe", "sliding_first",
                                         "tied_sparse_last"),
                       ::testing::Values(DType::kF32, DType::kBF16)),
    [](const auto& info) {
      return std::string(std::get<0>(info.param)) +
             (std::get<1>(info.param) == DType::kF32 ? "_f32" : "_bf16");
    });

TEST(ForwardTest, LayersAreAnnouncedInOrderWithTheirKeysInPlace) {
  ModelRunner runner =
      ModelRunner::Random(*Preset("tiny"), DType::kF32, DType::kF32);
  ModelRunner::Sequence sequence = runner.NewSequence(100);
  const std::vector<int32_t> ids = RandomIds(100, 256, 1);
  std::vector<int> announced;
  std::vector<std::string> pages;
  StepInput input;
  input.sequences = {ModelRunner::Rows(sequence, ids, kLast)};
  input.on_layer_kv_ready = [&](int slot) {
    announced.push_back(slot);
    pages.emplace_back(runner.pool().Slice(slot, sequence.blocks[1]),
                       runner.model().layout().slice_bytes());
  };
  runner.Forward(input);
  EXPECT_THAT(announced, ElementsAre(0, 1));
  for (const int slot : announced) {
    EXPECT_EQ(pages[slot], std::string(runner.pool().Slice(slot, sequence.blocks[1]),
                                       runner.model().layout().slice_bytes()));
    EXPECT_NE(pages[slot], std::string(pages[slot].size(), '\0'));
  }
}

TEST(ForwardTest, RandomModelIsTheCheckpointItWrites) {
  TempDir parent;
  const std::string directory = parent.File("made");
  const ModelConfig config = *Preset("tiny");
  const std::vector<int32_t> ids = RandomIds(150, config.vocab_size, 2);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const std::string path = directory + std::string(tensor::Name(dtype));
    ASSERT_TRUE(WriteCheckpoint(config, 9, dtype, path).ok());
    ModelRunner made = ModelRunner::Random(config, dtype, DType::kBF16, 9);
    ModelRunner loaded = ModelRunner::Load(path, DType::kBF16);
    ModelRunner::Sequence a = made.NewSequence(150), b = loaded.NewSequence(150);
    EXPECT_EQ(made.Step(a, ids, kAll).logits, loaded.Step(b, ids, kAll).logits);
    EXPECT_EQ(made.model().num_parameters(), loaded.model().num_parameters());
    EXPECT_GE(made.model().weight_bytes(),
              static_cast<size_t>(made.model().num_parameters()) *
                  (dtype == DType::kBF16 ? 2 : 4));
  }
}

TEST(ForwardTest, EveryTwinOfTinyRuns) {
  for (const char* name : {"tiny", "tiny-full", "tiny-swa"}) {
    ModelRunner runner = ModelRunner::Random(*Preset(name), DType::kBF16, DType::kBF16);
    const std::vector<int32_t> ids = RandomIds(200, 256, 3);
    ModelRunner::Sequence a = runner.NewSequence(200), b = runner.NewSequence(200);
    const Trace whole = runner.Run(a, ids, 200), pieces = runner.Run(b, ids, 33);
    EXPECT_EQ(whole.logits, pieces.logits) << name;
    // Random weights keep activations, and so logits, of order 1.
    double squares = 0;
    for (const float logit : whole.logits.back()) squares += logit * logit;
    EXPECT_GT(squares / 256, 0.2) << name;
    EXPECT_LT(squares / 256, 5) << name;
  }
}

TEST(ForwardTest, DigestTellsSeedsApart) {
  const ModelConfig config = *Preset("tiny");
  ModelRunner a = ModelRunner::Random(config, DType::kF32, DType::kF32, 1);
  ModelRunner b = ModelRunner::Random(config, DType::kF32, DType::kF32, 2);
  ModelRunner c = ModelRunner::Random(config, DType::kF32, DType::kF32, 1);
  EXPECT_NE(a.model().layout().model_digest, b.model().layout().model_digest);
  EXPECT_EQ(a.model().layout(), c.model().layout());
}

TEST(ForwardTest, StepsThatWouldLeaveTheirMemoryAreRefused) {
  ModelRunner runner = ModelRunner::Random(*Preset("tiny"), DType::kF32, DType::kF32);
  const ModelRunner::Sequence sequence = runner.NewSequence(64);
  const std::vector<int32_t> one = {1}, two = {1, 256}, negative = {-1}, sixty_five(65, 1);
  const std::vector<int32_t> no_block = {64}, negative_block = {-1};
  const auto error = [&](const SequenceRows& rows) {
    StepInput input;
    StepOutput output;
    input.sequences = {rows};
    const absl::Status status = runner.model().Forward(input, runner.pool(), &output);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  SequenceRows good = {.token_ids = one, .blocks = sequence.blocks, .slab = sequence.slab};
  SequenceRows rows = good;
  rows.token_ids = two;
  EXPECT_THAT(error(rows), HasSubstr("token id 256"));
  rows.token_ids = negative;
  EXPECT_THAT(error(rows), HasSubstr("token id -1"));
  rows.token_ids = {};
  EXPECT_THAT(error(rows), HasSubstr("no rows"));
  rows.token_ids = sixty_five;
  EXPECT_THAT(error(rows), HasSubstr("65 tokens need 2 blocks; has 1"));
  rows = good;
  rows.first_position = -1;
  EXPECT_THAT(error(rows), HasSubstr("positions"));
  rows.first_position = 32768;
  EXPECT_THAT(error(rows), HasSubstr("exceed max_position_embeddings"));
  rows = good;
  rows.blocks = no_block;
  EXPECT_THAT(error(rows), HasSubstr("no block 64"));
  rows.blocks = negative_block;
  EXPECT_THAT(error(rows), HasSubstr("no block -1"));
  rows = good;
  rows.slab = -1;
  EXPECT_THAT(error(rows), HasSubstr("no slab -1"));
  rows.slab = 8;
  EXPECT_THAT(error(rows), HasSubstr("no slab 8"));

  StepInput empty;
  StepOutput output;
  EXPECT_FALSE(runner.model().Forward(empty, runner.pool(), &output).ok());
  ModelRunner other = ModelRunner::Random(*Preset("tiny-full"), DType::kF32, DType::kF32);
  StepInput input;
  input.sequences = {good};
  EXPECT_THAT(std::string(runner.model().Forward(input, other.pool(), &output).message()),
              HasSubstr("another layout"));
}

TEST(ForwardTest, LoadRefusesWhatItCannotUse) {
  auto device = tensor::Device::Create({});
  ASSERT_TRUE(device.ok());
  TempDir dir;
  EXPECT_EQ(Model::Load(**device, dir.path(), {}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Model::Load(**device, dir.path(), {.kv_dtype = DType::kF16}).status().code(),
            absl::StatusCode::kInvalidArgument);
  ModelConfig broken = *Preset("tiny");
  broken.full.num_kv_heads = 3;
  EXPECT_EQ(Model::Random(**device, broken, DType::kF32, 1, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace hyserve::model
