#include "engine/tensor/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "engine/tensor/convert.h"
#include "engine/tensor/cpu_device.h"

namespace hyserve::tensor {
namespace {

using ::testing::HasSubstr;

TEST(DeviceCreate, RefusesWhatTheMachineLacks) {
  EXPECT_TRUE(Device::Create({}).ok());
  EXPECT_TRUE(Device::Create({"cpu", 2, "scalar"}).ok());
  for (const DeviceOptions& options :
       {DeviceOptions{"tpu", 1, "auto"}, {"cpu", -1, "auto"}, {"cpu", 1, "avx1024"}}) {
    EXPECT_EQ(Device::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(DeviceCreate, DescribesItself) {
  const auto device = Device::Create({"cpu", 2, "scalar"});
  ASSERT_TRUE(device.ok());
  EXPECT_EQ((*device)->Description(), "cpu scalar 2 threads");
  EXPECT_EQ((*device)->kind(), DeviceKind::kCpu);
  EXPECT_EQ((*device)->activation_dtype(), DType::kF32);
}

TEST(DeviceCreate, AGpuThatIsNotThereIsAnErrorWithItsReason) {
  for (const char* name : {"cuda:99", "cuda:x", "cuda:-1", "cuda:"}) {
    const absl::Status status = Device::Create({name, 0, "auto"}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status) || absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::StartsWith("device: ")) << name;
  }
}

TEST(CpuDevice, MemoryIsZeroAndAligned) {
  const auto device = Device::Create({"cpu", 1, "auto"});
  ASSERT_TRUE(device.ok());
  for (size_t bytes : {size_t{1}, size_t{4097}, size_t{5} << 20}) {
    const absl::StatusOr<Buffer> buffer = (*device)->Allocate(bytes);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(buffer->size_bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
    const char* data = static_cast<const char*>(buffer->data());
    for (size_t i = 0; i < bytes; i += 509) ASSERT_EQ(data[i], 0);
    EXPECT_EQ(data[bytes - 1], 0);
  }
  EXPECT_TRUE((*device)->Allocate(0)->empty());
}

TEST(CpuDevice, AskingForTooMuchIsAnErrorNotADeath) {
  const auto device = Device::Create({"cpu", 1, "auto"});
  ASSERT_TRUE(device.ok());
  for (size_t bytes : {size_t{1} << 50, std::numeric_limits<size_t>::max()}) {
    EXPECT_EQ((*device)->Allocate(bytes).status().code(), absl::StatusCode::kResourceExhausted);
  }
}

TEST(CpuDevice, WorkspacesAreReusedAndGrow) {
  auto device = CpuDevice::Create({"cpu", 2, "auto"});
  ASSERT_TRUE(device.ok());
  std::byte* first = *(*device)->Workspace(CpuDevice::WorkspaceSlot::kOp, 1000);
  EXPECT_EQ(*(*device)->Workspace(CpuDevice::WorkspaceSlot::kOp, 500), first);
  std::byte* other = *(*device)->Workspace(CpuDevice::WorkspaceSlot::kGemm, 500);
  EXPECT_NE(other, first);
  const auto scratch = (*device)->Scratch(100);
  ASSERT_TRUE(scratch.ok());
  EXPECT_EQ(scratch->of(1) - scratch->of(0), 128);
  EXPECT_EQ((*device)->Workspace(CpuDevice::WorkspaceSlot::kOp, size_t{1} << 50).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE((*device)->Workspace(CpuDevice::WorkspaceSlot::kOp, 2000).ok());
}

TEST(Convert, Bf16RoundsToNearestEven) {
  EXPECT_EQ(FloatToBf16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // halfway, even below
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);  // halfway, even above
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(FloatToBf16(std::numeric_limits<float>::infinity()), 0x7f80);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::bit_cast<float>(0x7f800001u)))));
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = Bf16ToFloat(static_cast<uint16_t>(bits));
    if (!std::isnan(value)) {
      ASSERT_EQ(FloatToBf16(value), bits);
    }
  }
}

TEST(Convert, F16CoversSubnormalsAndInfinities) {
  EXPECT_EQ(F16ToFloat(0x3c00), 1.0f);
  EXPECT_EQ(F16ToFloat(0xc000), -2.0f);
  EXPECT_EQ(F16ToFloat(0x0001), std::ldexp(1.0f, -24));
  EXPECT_EQ(F16ToFloat(0x83ff), -std::ldexp(1023.0f, -24));
  EXPECT_EQ(F16ToFloat(0x7bff), 65504.0f);
  EXPECT_EQ(F16ToFloat(0x7c00), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(F16ToFloat(0x7e00)));
}

}  // namespace
}  // namespace hyserve::tensor
