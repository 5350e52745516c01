#include "engine/runtime/kv_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/runtime/engine_loop.h"
#include "tests/support/fake_device.h"
#include "tests/support/fake_model.h"

namespace hyserve::runtime {
namespace {

TEST(KvBudgetTest, SlabsFirstTheRestBlocks) {
  const testing_support::FakeModel model;
  const auto& layout = model.layout();
  EngineOptions options;
  options.max_sequences = 3;
  options.snapshot_slabs = 2;
  options.kv_memory_bytes =
      static_cast<int64_t>(5 * layout.slab_bytes + 7 * layout.block_bytes() + 1);
  auto budget = DivideKvMemory(options, options.kv_memory_bytes, layout);
  ASSERT_TRUE(budget.ok());
  EXPECT_EQ(budget->num_slabs, 5);
  EXPECT_EQ(budget->snapshot_slabs, 2);
  EXPECT_EQ(budget->num_blocks, 7);
  options.prefix_cache = false;
  budget = DivideKvMemory(options, options.kv_memory_bytes, layout);
  EXPECT_EQ(budget->num_slabs, 3);
  options.kv_memory_bytes = static_cast<int64_t>(3 * layout.slab_bytes);
  EXPECT_EQ(DivideKvMemory(options, options.kv_memory_bytes, layout).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(KvBudgetTest, WithoutWindowLayersThereAreNoSlabs) {
  const testing_support::FakeModel model({.has_window_layers = false});
  EngineOptions options;
  options.kv_memory_bytes = static_cast<int64_t>(4 * model.layout().block_bytes());
  const auto budget = DivideKvMemory(options, options.kv_memory_bytes, model.layout());
  ASSERT_TRUE(budget.ok());
  EXPECT_EQ(budget->num_slabs, 0);
  EXPECT_EQ(budget->num_blocks, 4);
}

constexpr int64_t kGiB = int64_t{1} << 30;

// A device with so much free, and a model whose workspaces take so much of it.
class PlanKvMemoryTest : public ::testing::Test {
 protected:
  absl::StatusOr<KvBudget> Plan(const EngineOptions& options) {
    return PlanKvMemory(options, {.num_rows = 256, .num_sequences = 64, .context_tokens = 4096},
                        device_, model_);
  }
  int64_t PoolBytes(const KvBudget& budget) const {
    return budget.num_blocks * static_cast<int64_t>(model_.layout().block_bytes()) +
           budget.num_slabs * static_cast<int64_t>(model_.layout().slab_bytes);
  }
  // A block more would not fit.
  void ExpectPool(const absl::StatusOr<KvBudget>& budget, int64_t bytes) {
    ASSERT_TRUE(budget.ok()) << budget.status();
    EXPECT_LE(PoolBytes(*budget), bytes);
    EXPECT_GT(PoolBytes(*budget) + static_cast<int64_t>(model_.layout().block_bytes()), bytes);
  }

  testing_support::FakeDevice device_;
  int64_t workspace_bytes_ = 0;
  std::vector<model::StepLimits> reserved_;
  testing_support::FakeModel model_{{.reserve = [this](const model::StepLimits& limits) {
    reserved_.push_back(limits);
    return device_.Take(workspace_bytes_);
  }}};
};

TEST_F(PlanKvMemoryTest, OnADeviceThatDoesNotKnowOnlyASizeAndNothingIsReserved) {
  EngineOptions options;
  options.kv_memory_bytes = 8 << 20;
  ExpectPool(Plan(options), 8 << 20);
  options.kv_memory_share = 0.5;
  EXPECT_EQ(Plan(options).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(reserved_.empty());
}

TEST_F(PlanKvMemoryTest, AShareIsOfWhatWorkspacesLeave) {
  EngineOptions options;
  workspace_bytes_ = 10 * kGiB;
  device_.SetFreeBytes(40 * kGiB);
  options.kv_memory_share = 0.5;
  ExpectPool(Plan(options), 15 * kGiB);
  device_.SetFreeBytes(40 * kGiB);
  options.kv_memory_share = 1;
  ExpectPool(Plan(options), 29 * kGiB);  // one GiB stays free
  ASSERT_EQ(reserved_.size(), 2u);
  EXPECT_EQ(reserved_[0].num_rows, 256);
  EXPECT_EQ(reserved_[0].num_sequences, 64);
  EXPECT_EQ(reserved_[0].context_tokens, 4096);
}

TEST_F(PlanKvMemoryTest, NoWorkspaceIsForAContextThatThePoolCannotHold) {
  EngineOptions options;
  options.max_sequences = 1;
  options.prefix_cache = false;
  options.kv_memory_bytes =
      static_cast<int64_t>(model_.layout().slab_bytes + 3 * model_.layout().block_bytes());
  device_.SetFreeBytes(2 * kGiB);
  ASSERT_TRUE(Plan(options).ok());
  ASSERT_EQ(reserved_.size(), 1u);
  EXPECT_EQ(reserved_[0].context_tokens, 192);
}

TEST_F(PlanKvMemoryTest, ASizeThatDoesNotFitIsRefusedWithWhatThereIs) {
  EngineOptions options;
  options.kv_memory_bytes = 7 * kGiB;
  workspace_bytes_ = 2 * kGiB;
  device_.SetFreeBytes(10 * kGiB);
  ExpectPool(Plan(options), 7 * kGiB);
  device_.SetFreeBytes(10 * kGiB - 1);
  const absl::Status status = Plan(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(std::string(status.message()),
            "kv_memory: 7.0 GiB do not fit; fake has 7.9 GiB free beside 0.0 MiB of weights and "
            "2.0 GiB of workspaces, and 1.0 GiB of it must stay free; give less, or lower "
            "chunk_tokens or max_context_tokens");
}

TEST_F(PlanKvMemoryTest, WorkspacesThatDoNotFitAreRefused) {
  EngineOptions options;
  options.kv_memory_share = 0.9;
  workspace_bytes_ = 5 * kGiB;
  device_.SetFreeBytes(4 * kGiB);
  absl::Status status = Plan(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("workspaces for steps of 256 rows and contexts of 4096 tokens: "
                                 "the fake device is full; fake has 4.0 GiB free"));
  // They fit, but nothing is left for the pool.
  device_.SetFreeBytes(5 * kGiB + kSpareBytes);
  status = Plan(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("5.0 GiB of workspaces"));
}

TEST(MakeEngineTest, ReservesForTheLargestStepThatTheOptionsAllow) {
  std::vector<model::StepLimits> reserved;
  const testing_support::FakeModelOptions model_options = {
      .max_position_embeddings = 1000, .reserve = [&reserved](const model::StepLimits& limits) {
        reserved.push_back(limits);
        return absl::OkStatus();
      }};
  const auto make = [&](int64_t kv_memory_bytes) {
    EngineOptions options;
    options.kv_memory_bytes = kv_memory_bytes;
    options.chunk_tokens = 256;
    options.max_sequences = 300;
    auto device = std::make_unique<testing_support::FakeDevice>();
    device->SetFreeBytes(kGiB + (64 << 20));
    return MakeEngine(options, std::move(device),
                      std::make_unique<testing_support::FakeModel>(model_options), nullptr);
  };
  EXPECT_TRUE(make(64 << 20).ok());
  ASSERT_EQ(reserved.size(), 1u);
  EXPECT_EQ(reserved[0].num_rows, 64 + 299);
  EXPECT_EQ(reserved[0].num_sequences, 300);
  EXPECT_EQ(reserved[0].context_tokens, 1000);
  EXPECT_EQ(make((64 << 20) + 1).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(KvBudgetTest, OptionsAreCheckedAllAtOnce) {
  EXPECT_TRUE(ValidateOptions({}).ok());
  EngineOptions options;
  options.chunk_tokens = 100;
  options.max_sequences = 0;
  options.snapshot_interval_tokens = 65;
  options.max_queue = 0;
  options.kv_memory_bytes = 0;
  options.snapshot_slabs = -1;
  options.max_context_tokens = -1;
  options.kv_memory_share = 1.5;
  const absl::Status status = ValidateOptions(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const char* field : {"chunk_tokens", "max_sequences", "snapshot_interval_tokens",
                            "max_queue", "kv_memory_bytes", "snapshot_slabs",
                            "max_context_tokens", "kv_memory_share"}) {
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(field));
  }
}

}  // namespace
}  // namespace hyserve::runtime
