// What a model takes of a GPU, and when. Needs a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "engine/attention/kv_pool.h"
#include "engine/model/presets.h"
#include "engine/model/random_weights.h"
#include "engine/model/weights.h"
#include "engine/tensor/cuda_device.h"
#include "tests/engine/model/steps_within.h"

namespace hyserve::model {
namespace {

using tensor::DType;

constexpr StepLimits kLimits = {
    .num_rows = 2111, .num_sequences = 64, .context_tokens = 32768};

struct Net {
  const char* name;
  ModelConfig config;
};

// Contexts long enough that every bound of a workspace counts.
ModelConfig Long(ModelConfig config) {
  config.max_position_embeddings = static_cast<int>(kLimits.context_tokens);
  return config;
}

class CudaMemoryTest : public ::testing::TestWithParam<Net> {
 protected:
  std::unique_ptr<tensor::CudaDevice> device_ = *tensor::CudaDevice::Create({.name = "cuda"});
};

TEST_P(CudaMemoryTest, BytesOfWeightsAreKnownBeforeTheyAreRead) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    RandomWeights source(GetParam().config, dtype, 1);
    const int64_t before = device_->num_allocations();
    const absl::StatusOr<size_t> bytes = WeightBytes(*device_, GetParam().config, source);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    EXPECT_EQ(device_->num_allocations(), before);
    const absl::StatusOr<ModelWeights> weights = LoadWeights(*device_, GetParam().config, source);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(*bytes, weights->bytes);
  }
}

TEST_P(CudaMemoryTest, AfterReservingNoStepAllocates) {
  const auto model =
      *Model::Random(*device_, GetParam().config, DType::kBF16, 1, {.kv_dtype = DType::kBF16});
  const auto pool =
      *attention::KvPool::Create(*device_, model->layout(), 1, kLimits.num_sequences);
  const size_t loaded = *device_->FreeBytes();
  const absl::Status status = model->ReserveWorkspaces(kLimits);
  ASSERT_TRUE(status.ok()) << status;
  const size_t reserved = *device_->FreeBytes();
  const int64_t before = device_->num_allocations();
  // Three times: so are steps recorded, and replayed.
  RunStepsWithin(kLimits, 3, *model, *pool);
  EXPECT_EQ(device_->num_allocations(), before);
  EXPECT_GT(device_->recordings().num_replays(), 0);
  // The rest is what kSpareBytes (kv_budget.h) is for; it must be far below that.
  const size_t after = *device_->FreeBytes();
  std::printf("%s: workspaces %.1f MiB, then steps took %.1f MiB more\n", GetParam().name,
              static_cast<double>(loaded - reserved) / (1 << 20),
              (static_cast<double>(reserved) - static_cast<double>(after)) / (1 << 20));
  EXPECT_LT(reserved - std::min(reserved, after), size_t{1} << 30);
}

INSTANTIATE_TEST_SUITE_P(Nets, CudaMemoryTest,
                         ::testing::Values(Net{"tiny", Long(*Preset("tiny"))},
                                           Net{"tiny_full", Long(*Preset("tiny-full"))},
                                           Net{"experts", Long(TinyExperts())},
                                           Net{"demo", Long(*Preset("demo"))}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace hyserve::model
