// Window and sparse branches against double precision, on every device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/kernels/ops.h"
#include "tests/engine/kernels/attention_case.h"

namespace hyserve::kernels::testing {
namespace {

using tensor::DType;
using tensor::TensorView;

enum class Gate { kNone, kHead, kElement };

struct Variant {
  bool sparse = true;
  bool sinks = true;
  Gate gate = Gate::kHead;
  int selected_blocks = 3;
};

class WindowSparseParity : public ::testing::TestWithParam<tensor::DeviceOptions> {
 protected:
  WindowSparseParity() : device_(GetParam()) {}

  // Random visible blocks of every row and group, ascending, padded with -1.
  std::vector<int32_t> RandomSelection(const AttentionWorld& world, const AttentionStep& step,
                                       int selected) {
    Random random(31);
    std::vector<int32_t> selection;
    for (const StepRows& seq : step.rows()) {
      for (int t = seq.first_position; t < seq.first_position + seq.num_rows; ++t) {
        for (int g = 0; g < world.shape().num_kv_heads; ++g) {
          std::vector<int32_t> blocks(t / 64 + 1);
          for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int32_t>(i);
          std::shuffle(blocks.begin(), blocks.end(), random.engine());
          blocks.resize(std::min<size_t>(blocks.size(), selected));
          std::sort(blocks.begin(), blocks.end());
          blocks.resize(selected, -1);
          selection.insert(selection.end(), blocks.begin(), blocks.end());
        }
      }
    }
    return selection;
  }

  std::vector<float> Run(const AttentionWorld& world, const AttentionStep& step,
                         const Variant& variant, const std::vector<int32_t>& selection) {
    const AttentionShape& shape = world.shape();
    const TensorView out = device_.Output(step.num_rows(), world.out_cols(), device_.activation());
    WindowSparseAttentionParams params;
    params.q = step.q;
    params.out = out;
    params.num_heads = shape.num_heads;
    params.scale = Scale(shape);
    params.batch = &step.batch();
    params.ring = step.ring;
    params.step_k = step.step_k;
    params.step_v = step.step_v;
    if (variant.sinks) {
      params.window_sink = step.window_sink;
      params.sparse_sink = step.sparse_sink;
    }
    if (variant.gate == Gate::kHead) {
      params.window_gate = step.window_gate_head;
      params.sparse_gate = step.sparse_gate_head;
    } else if (variant.gate == Gate::kElement) {
      params.window_gate = step.window_gate_element;
      params.sparse_gate = step.sparse_gate_element;
    }
    if (variant.sparse) {
      params.kv = step.pages;
      params.selection = device_.UploadArray(selection);
      params.selected_blocks = variant.selected_blocks;
    }
    const absl::Status status = WindowSparseAttention(device_.get(), params);
    EXPECT_TRUE(status.ok()) << status;
    return device_.Download(out);
  }

  static float Scale(const AttentionShape& shape) {
    return 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  }

  Doubles Want(const AttentionWorld& world, const Variant& variant, int sequence, int t,
               const int32_t* selection) {
    const AttentionShape& shape = world.shape();
    Doubles out;
    for (int h = 0; h < shape.num_heads; ++h) {
      const int g = h / shape.heads_per_group();
      const float* q = world.q(sequence, t) + h * shape.head_dim;
      const ReferenceRow window = ReferenceAttention(
          q, world.window(sequence, g), Scale(shape),
          Range(std::max(0, t - shape.window + 1), t + 1),
          variant.sinks ? &world.window_sink()[h] : nullptr);
      std::vector<int64_t> positions;
      for (int i = 0; variant.sparse && i < variant.selected_blocks; ++i) {
        const int64_t block = selection[g * variant.selected_blocks + i];
        if (block < 0) continue;
        for (int64_t p = block * 64; p < block * 64 + 64 && p <= t; ++p) positions.push_back(p);
      }
      const ReferenceRow sparse =
          ReferenceAttention(q, world.pages(sequence, g), Scale(shape), positions,
                             variant.sinks ? &world.sparse_sink()[h] : nullptr);
      for (int d = 0; d < shape.v_head_dim; ++d) {
        double value = 0;
        for (int which : {0, 1}) {
          const float* gates = world.element_gate(sequence, t, which);
          const int element = h * shape.v_head_dim;
          double gate = 1.0;
          if (variant.gate == Gate::kHead) gate = ReferenceSigmoid(gates[element]);
          if (variant.gate == Gate::kElement) gate = ReferenceSigmoid(gates[element + d]);
          const ReferenceRow& branch = which == 0 ? window : sparse;
          if (which == 0 || variant.sparse) value += gate * branch.out[d];
        }
        out.push_back(value);
      }
    }
    return out;
  }

  void CheckRows(const AttentionWorld& world, const AttentionStep& step, const Variant& variant,
                 const std::vector<int32_t>& selection, const std::vector<float>& out) {
    const double tolerance = device_.activation() == DType::kF32 ? 1e-5 : 3e-2;
    int row = 0;
    for (const StepRows& seq : step.rows()) {
      for (int i = 0; i < seq.num_rows; ++i, ++row) {
        // All of a short step, the edges and a sample of a long one.
        if (i > 3 && i < seq.num_rows - 3 && i % 29 != 0) continue;
        const Doubles want =
            Want(world, variant, seq.sequence, seq.first_position + i,
                 selection.data() + int64_t{row} * world.shape().num_kv_heads *
                                        variant.selected_blocks);
        const auto begin = out.begin() + row * world.out_cols();
        ASSERT_EQ(FirstDifference(std::vector<float>(begin, begin + world.out_cols()), want,
                                  tolerance, tolerance),
                  "")
            << "sequence " << seq.sequence << " position " << seq.first_position + i;
      }
    }
  }

  TestDevice device_;
};

TEST_P(WindowSparseParity, EveryVariantMatchesTheFormula) {
  for (const AttentionShape& shape :
       {AttentionShape{4, 2, 16, 16, 128, DType::kF32}, {6, 2, 24, 40, 100, DType::kBF16},
        {4, 4, 10, 6, 1, DType::kF32}, {8, 1, 32, 16, 33, DType::kBF16}}) {
    const AttentionWorld world(shape, {300, 1100, 64, 400}, 32);
    AttentionStep step(device_, world, {{0, 0, 140}, {1, 1099, 1}, {2, 63, 1}, {3, 190, 150}});
    for (const Variant& variant :
         {Variant{true, true, Gate::kHead, 3}, Variant{true, false, Gate::kElement, 5},
          Variant{true, true, Gate::kNone, 1}, Variant{false, true, Gate::kHead, 1},
          Variant{false, false, Gate::kNone, 1}}) {
      SCOPED_TRACE(::testing::Message()
                   << shape.Name() << " sparse " << variant.sparse << " sinks " << variant.sinks
                   << " gate " << static_cast<int>(variant.gate));
      const std::vector<int32_t> selection =
          RandomSelection(world, step, variant.selected_blocks);
      CheckRows(world, step, variant, selection, Run(world, step, variant, selection));
    }
  }
}

TEST_P(WindowSparseParity, AStepLongerThanTheWindowNeedsNoRing) {
  const AttentionShape shape = {2, 1, 16, 16, 64, DType::kF32};
  const AttentionWorld world(shape, {600}, 33);
  AttentionStep step(device_, world, {{0, 0, 600}});
  const Variant variant = {false, true, Gate::kHead, 1};
  const std::vector<int32_t> selection(600, -1);
  CheckRows(world, step, variant, selection, Run(world, step, variant, selection));
}

TEST_P(WindowSparseParity, WithinTheBudgetTheSparseBranchIsDenseAttentionWithSink) {
  const AttentionShape shape = {4, 2, 16, 16, 32, DType::kF32};
  const AttentionWorld world(shape, {256}, 34);
  AttentionStep step(device_, world, {{0, 0, 256}});
  const Variant variant = {true, true, Gate::kNone, 4};
  // What FullAttention selects when all blocks fit.
  int32_t* selected = device_.UploadArray(std::vector<int32_t>(256 * 2 * 4, -7));
  ASSERT_TRUE(FullAttention(device_.get(),
                            {.q = step.q,
                             .out = device_.Output(256, world.out_cols(), device_.activation()),
                             .num_heads = 4,
                             .scale = Scale(shape),
                             .batch = &step.batch(),
                             .kv = step.pages,
                             .selection = selected,
                             .selected_blocks = 4})
                  .ok());
  const std::vector<int32_t> selection = device_.DownloadArray(selected, 256 * 2 * 4);
  const std::vector<float> both = Run(world, step, variant, selection);
  Variant window_only = variant;
  window_only.sparse = false;
  const std::vector<float> window = Run(world, step, window_only, selection);
  const double tolerance = device_.activation() == DType::kF32 ? 1e-5 : 3e-2;
  for (int t = 0; t < 256; t += 15) {
    for (int h = 0; h < 4; ++h) {
      const ReferenceRow dense =
          ReferenceAttention(world.q(0, t) + h * 16, world.pages(0, h / 2), Scale(shape),
                             Range(0, t + 1), &world.sparse_sink()[h]);
      for (int d = 0; d < 16; ++d) {
        const int64_t i = t * world.out_cols() + h * 16 + d;
        EXPECT_NEAR(both[i] - window[i], dense.out[d], tolerance);
      }
    }
  }
}

TEST_P(WindowSparseParity, ATokenInBothBranchesCountsInBoth) {
  // One key: both softmaxes give it all their weight.
  const AttentionShape shape = {1, 1, 16, 16, 128, DType::kF32};
  const AttentionWorld world(shape, {1}, 35);
  AttentionStep step(device_, world, {{0, 0, 1}});
  const std::vector<float> out = Run(world, step, {true, false, Gate::kNone, 1}, {0});
  for (int d = 0; d < 16; ++d) {
    EXPECT_NEAR(out[d], world.pages(0, 0).values[d] + world.window(0, 0).values[d],
                device_.activation() == DType::kF32 ? 1e-6 : 3e-2);
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, WindowSparseParity, ::testing::ValuesIn(TestDevices()),
                         [](const auto& info) { return DeviceName(info.param); });

}  // namespace
}  // namespace hyserve::kernels::testing
