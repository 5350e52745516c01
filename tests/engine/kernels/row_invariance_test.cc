// The promise that decode, prefill, chunks and batches rest on: a row's result has the same bits
// alone, among others, in any chunk and with any number of threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/kernels/ops.h"
#include "engine/tensor/cpu_device.h"
#include "tests/engine/kernels/attention_case.h"

namespace hyserve::kernels::testing {
namespace {

using tensor::DType;
using tensor::TensorView;

// By instruction set; every test runs it with 1, 2 and 3 threads.
std::vector<std::string> IsaNames() {
  std::vector<std::string> names;
  for (tensor::Isa isa : tensor::kAllIsas) {
    if (isa <= tensor::DetectIsa()) names.emplace_back(tensor::Name(isa));
  }
  return names;
}

class RowInvariance : public ::testing::TestWithParam<std::string> {
 protected:
  tensor::DeviceOptions Options(int threads) const { return {"cpu", threads, GetParam()}; }
};

struct AttentionResult {
  std::vector<float> full;
  std::vector<float> sparse;
  std::vector<int32_t> selection;
};

constexpr int kSelected = 5;

// Full attention, then the sparse layer over what it selected.
AttentionResult Attend(const tensor::DeviceOptions& options, const AttentionWorld& world,
                       const std::vector<StepRows>& rows, uint64_t page_seed) {
  TestDevice device(options);
  AttentionStep step(device, world, rows, page_seed);
  const AttentionShape& shape = world.shape();
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  const int64_t indices = int64_t{step.num_rows()} * shape.num_kv_heads * kSelected;
  int32_t* selection = device.UploadArray(std::vector<int32_t>(indices, -7));
  const TensorView full = device.Output(step.num_rows(), world.out_cols(), device.activation());
  EXPECT_TRUE(FullAttention(device.get(), {.q = step.q,
                                           .out = full,
                                           .num_heads = shape.num_heads,
                                           .scale = scale,
                                           .batch = &step.batch(),
                                           .kv = step.pages,
                                           .selection = selection,
                                           .selected_blocks = kSelected})
                  .ok());
  const TensorView sparse = device.Output(step.num_rows(), world.out_cols(), device.activation());
  EXPECT_TRUE(WindowSparseAttention(device.get(), {.q = step.q,
                                                   .out = sparse,
                                                   .num_heads = shape.num_heads,
                                                   .scale = scale,
                                                   .batch = &step.batch(),
                                                   .ring = step.ring,
                                                   .step_k = step.step_k,
                                                   .step_v = step.step_v,
                                                   .window_sink = step.window_sink,
                                                   .window_gate = step.window_gate_element,
                                                   .kv = step.pages,
                                                   .selection = selection,
                                                   .selected_blocks = kSelected,
                                                   .sparse_sink = step.sparse_sink,
                                                   .sparse_gate = step.sparse_gate_head})
                  .ok());
  return {device.Download(full), device.Download(sparse),
          device.DownloadArray(selection, indices)};
}

void Append(AttentionResult& to, const AttentionResult& from) {
  to.full.insert(to.full.end(), from.full.begin(), from.full.end());
  to.sparse.insert(to.sparse.end(), from.sparse.begin(), from.sparse.end());
  to.selection.insert(to.selection.end(), from.selection.begin(), from.selection.end());
}

void ExpectSame(const AttentionResult& a, const AttentionResult& b) {
  EXPECT_TRUE(SameBits(a.full, b.full));
  EXPECT_TRUE(SameBits(a.sparse, b.sparse));
  EXPECT_EQ(a.selection, b.selection);
}

std::vector<AttentionShape> Shapes() {
  return {{4, 2, 32, 32, 100, DType::kBF16}, {3, 1, 24, 40, 128, DType::kF32}};
}

TEST_P(RowInvariance, ChunksOfAPromptGiveTheBitsOfTheWholePrompt) {
  for (const AttentionShape& shape : Shapes()) {
    const int length = 700;
    const AttentionWorld world(shape, {length}, 41);
    const AttentionResult whole = Attend(Options(1), world, {{0, 0, length}}, 1);
    for (const std::vector<int>& chunks :
         {std::vector<int>{64, 1, 127, 300, 208}, {1, 1, 62, 1, 1, 634}, {512, 188}}) {
      for (int threads : {1, 2, 3}) {
        AttentionResult pieces;
        int begin = 0;
        for (int chunk : chunks) {
          Append(pieces, Attend(Options(threads), world, {{0, begin, chunk}}, 2 + begin));
          begin += chunk;
        }
        ASSERT_EQ(begin, length);
        ExpectSame(whole, pieces);
      }
    }
  }
}

TEST_P(RowInvariance, ALongContextGivesTheSameBitsHoweverItIsShared) {
  // Three splits of keys: threads share them for the single row, one thread walks them otherwise.
  const AttentionShape shape = {4, 2, 16, 16, 64, DType::kBF16};
  const int length = 4300;
  const AttentionWorld world(shape, {length}, 42);
  const int begin = length - 40;
  const AttentionResult chunk = Attend(Options(1), world, {{0, begin, 40}}, 1);
  for (int threads : {1, 2, 3}) {
    AttentionResult rows;
    for (int i = 0; i < 40; i += 1) {
      Append(rows, Attend(Options(threads), world, {{0, begin + i, 1}}, 3));
      if (i == 2) break;  // the first rows suffice
    }
    const AttentionResult rest = Attend(Options(threads), world, {{0, begin + 3, 37}}, 4);
    Append(rows, rest);
    ExpectSame(chunk, rows);
  }
}

TEST_P(RowInvariance, OtherSequencesOfTheStepChangeNothing) {
  for (const AttentionShape& shape : Shapes()) {
    const AttentionWorld world(shape, {300, 1300, 90, 2500}, 43);
    const std::vector<StepRows> rows = {{0, 100, 150}, {1, 1299, 1}, {2, 0, 90}, {3, 2400, 1}};
    AttentionResult alone;
    for (const StepRows& seq : rows) Append(alone, Attend(Options(1), world, {seq}, 5));
    for (int threads : {1, 2, 3}) {
      ExpectSame(alone, Attend(Options(threads), world, rows, 6));
    }
  }
}

TEST_P(RowInvariance, LinearGivesARowTheSameBitsForAnyNumberOfRows) {
  Random random(44);
  const int64_t rows = 300;
  for (const auto& sizes : {std::pair<int64_t, int64_t>{130, 700}, {64, 256}, {31, 45},
                            {40, 2117}}) {
    const int64_t n = sizes.first;
    const int64_t k = sizes.second;
    const std::vector<float> x = random.Normal(rows * k);
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      const std::vector<float> w = Rounded(random.Normal(n * k), dtype);
      const HostMatrix host(w, n, k, dtype);
      const auto run = [&](int threads, int64_t begin, int64_t count) {
        TestDevice device(Options(threads));
        const auto packed = PackMatrix(device.get(), {{host.view()}});
        EXPECT_TRUE(packed.ok());
        const TensorView y = device.Output(count, n, DType::kF32);
        const std::vector<float> part(x.begin() + begin * k, x.begin() + (begin + count) * k);
        EXPECT_TRUE(
            Linear(device.get(), {device.Activations(part, count, k), packed->get(), y}).ok());
        return device.Download(y);
      };
      const std::vector<float> whole = run(1, 0, rows);
      for (int threads : {1, 2, 3}) {
        std::vector<float> pieces;
        int64_t begin = 0;
        for (int64_t count : {1, 2, 3, 4, 5, 11, 12, 13, 24, 100, 125}) {
          const std::vector<float> piece = run(threads, begin, count);
          pieces.insert(pieces.end(), piece.begin(), piece.end());
          begin += count;
        }
        ASSERT_EQ(begin, rows);
        EXPECT_TRUE(SameBits(whole, pieces)) << n << " x " << k << ", " << threads << " threads";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, RowInvariance, ::testing::ValuesIn(IsaNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace hyserve::kernels::testing
