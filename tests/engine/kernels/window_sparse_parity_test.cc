// Window and sparse branches against double precision, on every device.
#include <gtest/gtest.h>

#include "engine/kernels/ops.h"
#include "tests/engine/kernels/attention_case.h"
#include "tests/engine/kernels/window_sparse_case.h"

namespace hyserve::kernels::testing {
namespace {

using tensor::DType;

class WindowSparseParity : public ::testing::TestWithParam<tensor::DeviceOptions> {
 protected:
  WindowSparseParity() : device_(GetParam()), case_(device_) {}

  TestDevice device_;
  WindowSparseCase case_;
};

TEST_P(WindowSparseParity, EveryVariantMatchesTheFormula) {
  for (const AttentionShape& any :
       {AttentionShape{4, 2, 16, 16, 128, DType::kF32}, {6, 2, 24, 40, 100, DType::kBF16},
        {4, 4, 10, 6, 1, DType::kF32}, {8, 1, 32, 16, 33, DType::kBF16}}) {
    const AttentionShape shape = OnDevice(device_, any);
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
          case_.RandomSelection(world, step, variant.selected_blocks);
      case_.CheckRows(world, step, variant, selection, case_.Run(world, step, variant, selection));
    }
  }
}

TEST_P(WindowSparseParity, AStepLongerThanTheWindowNeedsNoRing) {
  const AttentionShape shape = OnDevice(device_, {2, 1, 16, 16, 64, DType::kF32});
  const AttentionWorld world(shape, {600}, 33);
  AttentionStep step(device_, world, {{0, 0, 600}});
  const Variant variant = {false, true, Gate::kHead, 1};
  const std::vector<int32_t> selection(600, -1);
  case_.CheckRows(world, step, variant, selection, case_.Run(world, step, variant, selection));
}

TEST_P(WindowSparseParity, WithinTheBudgetTheSparseBranchIsDenseAttentionWithSink) {
  const AttentionShape shape = OnDevice(device_, {4, 2, 16, 16, 32, DType::kF32});
  const AttentionWorld world(shape, {256}, 34);
  AttentionStep step(device_, world, {{0, 0, 256}});
  const Variant variant = {true, true, Gate::kNone, 4};
  // What FullAttention selects when all blocks fit.
  int32_t* selected = device_.UploadArray(std::vector<int32_t>(256 * 2 * 4, -7));
  ASSERT_TRUE(FullAttention(device_.get(),
                            {.q = step.q,
                             .out = device_.Output(256, world.out_cols(), device_.activation()),
                             .num_heads = 4,
                             .scale = case_.Scale(shape),
                             .batch = &step.batch(),
                             .kv = step.pages,
                             .selection = selected,
                             .selected_blocks = 4})
                  .ok());
  const std::vector<int32_t> selection = device_.DownloadArray(selected, 256 * 2 * 4);
  const std::vector<float> both = case_.Run(world, step, variant, selection);
  Variant window_only = variant;
  window_only.sparse = false;
  const std::vector<float> window = case_.Run(world, step, window_only, selection);
  const double tolerance = device_.activation() == DType::kF32 ? 1e-5 : 3e-2;
  for (int t = 0; t < 256; t += 15) {
    for (int h = 0; h < 4; ++h) {
      const ReferenceRow dense =
          ReferenceAttention(world.q(0, t) + h * 16, world.pages(0, h / 2), case_.Scale(shape),
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
  const AttentionShape shape = OnDevice(device_, {1, 1, 16, 16, 128, DType::kF32});
  const AttentionWorld world(shape, {1}, 35);
  AttentionStep step(device_, world, {{0, 0, 1}});
  const std::vector<float> out = case_.Run(world, step, {true, false, Gate::kNone, 1}, {0});
  for (int d = 0; d < 16; ++d) {
    EXPECT_NEAR(out[d], world.pages(0, 0).values[d] + world.window(0, 0).values[d],
                device_.activation() == DType::kF32 ? 1e-6 : 3e-2);
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, WindowSparseParity, ::testing::ValuesIn(TestDevices()),
                         [](const auto& info) { return DeviceName(info.param); });

}  // namespace
}  // namespace hyserve::kernels::testing
