#include "engine/runtime/kv_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

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

TEST(KvBudgetTest, AShareIsOfWhatTheDeviceHasFree) {
  constexpr int64_t kGiB = int64_t{1} << 30;
  testing_support::FakeDevice device;
  EngineOptions options;
  options.kv_memory_bytes = 5;
  EXPECT_EQ(*KvMemoryBytes(options, device), 5);
  options.kv_memory_share = 0.5;
  EXPECT_EQ(KvMemoryBytes(options, device).status().code(), absl::StatusCode::kInvalidArgument)
      << "this device does not know";
  device.SetFreeBytes(40 * kGiB);
  EXPECT_EQ(*KvMemoryBytes(options, device), 20 * kGiB);
  options.kv_memory_share = 1;
  EXPECT_EQ(*KvMemoryBytes(options, device), 39 * kGiB) << "one GiB stays free";
  device.SetFreeBytes(kGiB / 2);
  EXPECT_EQ(*KvMemoryBytes(options, device), 0);
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
