#include "tests/engine/kernels/window_sparse_case.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/kernels/ops.h"

namespace hyserve::kernels::testing {

using tensor::DType;
using tensor::TensorView;

std::vector<int32_t> WindowSparseCase::RandomSelection(const AttentionWorld& world,
                                                       const AttentionStep& step, int selected) {
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

std::vector<float> WindowSparseCase::Run(const AttentionWorld& world, const AttentionStep& step,
                                         const Variant& variant,
                                         const std::vector<int32_t>& selection) {
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

float WindowSparseCase::Scale(const AttentionShape& shape) {
  return 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
}

Doubles WindowSparseCase::Want(const AttentionWorld& world, const Variant& variant, int sequence,
                               int t, const int32_t* selection) {
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

void WindowSparseCase::CheckRows(const AttentionWorld& world, const AttentionStep& step,
                                 const Variant& variant, const std::vector<int32_t>& selection,
                                 const std::vector<float>& out, int stride) {
  const bool exact = device_.activation() == DType::kF32;
  int row = 0;
  for (const StepRows& seq : step.rows()) {
    for (int i = 0; i < seq.num_rows; ++i, ++row) {
      if (i > 3 && i < seq.num_rows - 3 && i % stride != 0) continue;
      const Doubles want =
          Want(world, variant, seq.sequence, seq.first_position + i,
               selection.data() + int64_t{row} * world.shape().num_kv_heads *
                                      variant.selected_blocks);
      const auto begin = out.begin() + row * world.out_cols();
      const std::vector<float> got(begin, begin + world.out_cols());
      ASSERT_EQ(exact ? FirstDifference(got, want, 1e-5, 1e-5)
                      : FirstRowDifference(got, want, world.out_cols(), kBf16Tolerance),
                "")
          << "sequence " << seq.sequence << " position " << seq.first_position + i;
    }
  }
}

}  // namespace hyserve::kernels::testing
