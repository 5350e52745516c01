// What a model takes of its device, and when: weights that do not fit are refused before they are
// loaded, and after ReserveWorkspaces no step allocates.
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "engine/attention/kv_pool.h"
#include "engine/model/model.h"
#include "engine/model/presets.h"
#include "engine/model/random_weights.h"
#include "engine/model/weights.h"
#include "engine/tensor/cpu_device.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/golden_file.h"
#include "tests/engine/model/steps_within.h"

namespace hyserve::model {
namespace {

using ::testing::HasSubstr;
using tensor::DType;

// The CPU, as a device that knows what it has free.
class MeasuredCpu final : public tensor::CpuDevice {
 public:
  explicit MeasuredCpu(size_t free_bytes = size_t{1} << 40)
      : CpuDevice(tensor::DetectIsa(), 2), free_bytes_(free_bytes) {}

  absl::StatusOr<size_t> FreeBytes() const override { return free_bytes_; }
  absl::StatusOr<tensor::Buffer> Allocate(size_t bytes) override {
    ++num_allocations_;
    return CpuDevice::Allocate(bytes);
  }
  int num_allocations() const { return num_allocations_; }

 private:
  const size_t free_bytes_;
  int num_allocations_ = 0;
};

struct Net {
  const char* name;
  ModelConfig config;
};

class ModelMemoryTest : public ::testing::TestWithParam<Net> {};

TEST_P(ModelMemoryTest, BytesOfWeightsAreKnownBeforeTheyAreRead) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    MeasuredCpu device;
    RandomWeights source(GetParam().config, dtype, 1);
    const absl::StatusOr<size_t> bytes = WeightBytes(device, GetParam().config, source);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    EXPECT_EQ(device.num_allocations(), 0);
    const absl::StatusOr<ModelWeights> weights = LoadWeights(device, GetParam().config, source);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(*bytes, weights->bytes);
  }
}

TEST_P(ModelMemoryTest, AfterReservingNoStepAllocates) {
  constexpr StepLimits kLimits = {.num_rows = 200, .num_sequences = 4, .context_tokens = 1024};
  MeasuredCpu device;
  const auto model = [&] {
    return *Model::Random(device, GetParam().config, DType::kBF16, 1, {});
  };
  const std::unique_ptr<Model> first = model();
  const auto pool = *attention::KvPool::Create(device, first->layout(), 1, kLimits.num_sequences);
  // Not reserved: its memory grows, and that of the device's own ops, which all models share.
  int before = device.num_allocations();
  RunStepsWithin(kLimits, 1, *first, *pool);
  EXPECT_GT(device.num_allocations(), before + 5);

  const std::unique_ptr<Model> reserved = model();
  ASSERT_TRUE(reserved->ReserveWorkspaces(kLimits).ok());
  before = device.num_allocations();
  RunStepsWithin(kLimits, 1, *reserved, *pool);
  EXPECT_EQ(device.num_allocations(), before);
  // Once more costs nothing.
  ASSERT_TRUE(reserved->ReserveWorkspaces(kLimits).ok());
  EXPECT_EQ(device.num_allocations(), before);
}

INSTANTIATE_TEST_SUITE_P(Nets, ModelMemoryTest,
                         ::testing::Values(Net{"tiny", *Preset("tiny")},
                                           Net{"tiny_full", *Preset("tiny-full")},
                                           Net{"tiny_swa", *Preset("tiny-swa")},
                                           Net{"experts", TinyExperts()}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ModelFitsTest, RandomWeightsThatDoNotFitAreRefusedBeforeOneIsMade) {
  MeasuredCpu device(size_t{80} << 30);
  const auto model = Model::Random(device, *Preset("80b-a3b"), DType::kBF16, 1, {});
  EXPECT_EQ(model.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(model.status().message()), HasSubstr("the weights take 149."));
  EXPECT_THAT(std::string(model.status().message()),
              HasSubstr(" GiB, but " + device.Description() + " has 80.0 GiB free"));
  EXPECT_EQ(device.num_allocations(), 0);
}

TEST(ModelFitsTest, SoAreThoseOfACheckpoint) {
  const std::string directory = kGoldenDirectory + "/moe";
  MeasuredCpu large;
  const auto model = Model::Load(large, directory, {});
  ASSERT_TRUE(model.ok()) << model.status();
  MeasuredCpu exact((*model)->weight_bytes());
  EXPECT_TRUE(Model::Load(exact, directory, {}).ok());
  MeasuredCpu small((*model)->weight_bytes() - 1);
  EXPECT_EQ(Model::Load(small, directory, {}).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(small.num_allocations(), 0);
}

}  // namespace
}  // namespace hyserve::model
