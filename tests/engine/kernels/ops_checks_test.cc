// Shapes that do not fit are refused by name, before anything is touched; NaNs stay where they are.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "engine/kernels/blocks.h"
#include "engine/kernels/cpu/block_selection.h"
#include "engine/kernels/ops.h"
#include "tests/engine/kernels/attention_case.h"

namespace hyserve::kernels::testing {
namespace {

using ::testing::HasSubstr;
using tensor::DType;
using tensor::TensorView;

// One device of each kind.
std::vector<tensor::DeviceOptions> Kinds() {
  std::vector<tensor::DeviceOptions> kinds;
  for (const tensor::DeviceOptions& options : TestDevices()) {
    if (kinds.empty() || kinds.back().name != options.name) kinds.push_back(options);
  }
  return kinds;
}

class OpsChecks : public ::testing::TestWithParam<tensor::DeviceOptions> {
 protected:
  OpsChecks()
      : device_(GetParam()),
        dtype_(device_.activation()),
        name_(tensor::Name(dtype_)),
        world_(OnDevice(device_, {4, 2, 16, 16, 32, DType::kF32}), {100}, 61),
        step_(device_, world_, {{0, 90, 10}}) {}

  void ExpectRefusal(const absl::Status& status, const std::string& op, const std::string& what) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::StartsWith(op + ": "));
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  }
  FullAttentionParams Full() {
    return {.q = step_.q,
            .out = device_.Output(10, 64, dtype_),
            .num_heads = 4,
            .scale = 0.25f,
            .batch = &step_.batch(),
            .kv = step_.pages};
  }

  TestDevice device_;
  const DType dtype_;  // of activations
  const std::string name_;
  AttentionWorld world_;
  AttentionStep step_;
};

TEST_P(OpsChecks, LinearNamesTheMatrixThatDoesNotFit) {
  const HostMatrix host(std::vector<float>(12, 1.0f), 3, 4, DType::kBF16);
  const auto packed = PackMatrix(device_.get(), {{host.view()}});
  ASSERT_TRUE(packed.ok());
  const TensorView x = device_.Output(2, 5, dtype_);
  const TensorView y = device_.Output(2, 3, DType::kF32);
  ExpectRefusal(Linear(device_.get(), {x, packed->get(), y}), "Linear",
                "x must be " + name_ + " [2, 4]");
  ExpectRefusal(Linear(device_.get(), {x.Columns(0, 4), packed->get(), y.Columns(0, 2)}), "Linear",
                "y must be f32 [2, 3]");
  ExpectRefusal(Linear(device_.get(), {x, nullptr, y}), "Linear", "no weight");
}

TEST_P(OpsChecks, PackMatrixWantsPartsOfOneKind) {
  const HostMatrix a(std::vector<float>(12, 1.0f), 3, 4, DType::kF32);
  const HostMatrix b(std::vector<float>(12, 1.0f), 3, 4, DType::kBF16);
  ExpectRefusal(PackMatrix(device_.get(), {{a.view(), b.view()}}).status(), "PackMatrix",
                "every part");
  ExpectRefusal(PackMatrix(device_.get(), {}).status(), "PackMatrix", "no parts");
}

TEST_P(OpsChecks, FullAttentionRefusesWhatItCannotDo) {
  EXPECT_TRUE(FullAttention(device_.get(), Full()).ok());
  FullAttentionParams params = Full();
  params.num_heads = 3;
  ExpectRefusal(FullAttention(device_.get(), params), "FullAttention", "must divide");
  params = Full();
  params.selection = device_.UploadArray(std::vector<int32_t>(10 * 2 * 65));
  params.selected_blocks = 65;
  ExpectRefusal(FullAttention(device_.get(), params), "FullAttention", "[1, 64]");
  params = Full();
  params.kv.dtype = DType::kF16;
  ExpectRefusal(FullAttention(device_.get(), params), "FullAttention", "f32 or bf16");
  params = Full();
  params.q = params.q.Rows(0, 9);
  ExpectRefusal(FullAttention(device_.get(), params), "FullAttention", "batch has 10 rows");
  params = Full();
  params.block_scores = device_.UploadArray(std::vector<float>(100));
  params.scores_stride = 1;
  ExpectRefusal(FullAttention(device_.get(), params), "FullAttention", "scores_stride");
}

TEST_P(OpsChecks, WindowSparseRefusesUnequalCaches) {
  WindowSparseAttentionParams params;
  params.q = step_.q;
  params.out = device_.Output(10, 64, dtype_);
  params.num_heads = 4;
  params.batch = &step_.batch();
  params.ring = step_.ring;
  params.step_k = step_.step_k;
  params.step_v = step_.step_v;
  EXPECT_TRUE(WindowSparseAttention(device_.get(), params).ok());
  params.kv = step_.pages;
  params.kv.num_kv_heads = 1;
  params.selection = device_.UploadArray(std::vector<int32_t>(20, 0));
  params.selected_blocks = 1;
  ExpectRefusal(WindowSparseAttention(device_.get(), params), "WindowSparseAttention",
                "same heads and dims");
  params.kv = step_.pages;
  params.sparse_gate = device_.Output(10, 7, dtype_);
  ExpectRefusal(WindowSparseAttention(device_.get(), params), "WindowSparseAttention",
                "sparse_gate");
}

TEST_P(OpsChecks, EmptyStepsDoNothing) {
  AttentionStep none(device_, world_, {});
  EXPECT_TRUE(FullAttention(device_.get(), {.q = none.q,
                                            .out = device_.Output(0, 64, dtype_),
                                            .num_heads = 4,
                                            .batch = &none.batch(),
                                            .kv = step_.pages})
                  .ok());
  const TensorView nothing = device_.Output(0, 64, dtype_);
  EXPECT_TRUE(AddRmsNorm(device_.get(), {.hidden = nothing, .delta = nothing, .out = {}}).ok());
  EXPECT_TRUE(SwiGlu(device_.get(), {device_.Output(0, 128, dtype_), nothing}).ok());
  EXPECT_TRUE(GatherRows(device_.get(), {nothing, nullptr, nothing}).ok());
  EXPECT_TRUE(StoreWindowKv(device_.get(), {none.step_k, none.step_v, &none.batch(), step_.ring})
                  .ok());
}

INSTANTIATE_TEST_SUITE_P(Devices, OpsChecks, ::testing::ValuesIn(Kinds()),
                         [](const auto& info) { return DeviceName(info.param); });

TEST(SelectBlocks, AgreesWithAStableSortUnderForcedTies) {
  Random random(62);
  for (int round = 0; round < 500; ++round) {
    const int n = random.Int(1, 300);
    const int k = random.Int(1, kMaxSelectedBlocks);
    std::vector<float> scores;
    for (int i = 0; i < n; ++i) scores.push_back(static_cast<float>(random.Int(-4, 4)));
    std::vector<int32_t> got(k, -7);
    cpu::SelectBlocks(scores.data(), n, k, got.data());
    EXPECT_EQ(got, ReferenceSelection(Doubles(scores.begin(), scores.end()), k));
  }
}

TEST(SelectBlocks, NansNeitherCrashNorDisplaceNumbers) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<int32_t> got(2, -7);
  const std::vector<float> scores = {1.0f, 2.0f, nan, 3.0f, nan};
  cpu::SelectBlocks(scores.data(), 5, 2, got.data());
  EXPECT_EQ(got, (std::vector<int32_t>{1, 3}));
}

}  // namespace
}  // namespace hyserve::kernels::testing
