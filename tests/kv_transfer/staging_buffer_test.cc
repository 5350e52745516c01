#include "kv_transfer/ucx/staging_buffer.h"

#include <random>

#include "gtest/gtest.h"
#include "tests/kv_transfer/fake_device_memory.h"

namespace hyserve::kv_transfer {
namespace {

constexpr size_t kCapacity = size_t{1} << 20;

TEST(StagingBufferTest, AllocatesOnlyWhenFirstNeeded) {
  FakeDeviceMemory device;
  StagingBuffer buffer(&device, kCapacity);
  EXPECT_EQ(device.pinned_bytes(), 0u);
  EXPECT_NE(*buffer.Take(1), nullptr);
  EXPECT_EQ(device.pinned_bytes(), kCapacity);
}

TEST(StagingBufferTest, FullMeansNullAndTooLargeIsAnError) {
  FakeDeviceMemory device;
  StagingBuffer buffer(&device, kCapacity);
  char* all = *buffer.Take(kCapacity);
  ASSERT_NE(all, nullptr);
  EXPECT_EQ(*buffer.Take(1), nullptr);
  EXPECT_EQ(buffer.Take(kCapacity + 1).status().code(), absl::StatusCode::kResourceExhausted);
  buffer.Give(all);
  EXPECT_EQ(*buffer.Take(kCapacity), all);
}

TEST(StagingBufferTest, PartsNeverOverlapAndStayInside) {
  FakeDeviceMemory device;
  StagingBuffer buffer(&device, kCapacity);
  std::mt19937 random(3);
  char* const begin = *buffer.Take(1);
  std::map<char*, size_t> taken{{begin, 1}};
  int full = 0;
  for (int step = 0; step < 20'000; ++step) {
    if (random() % 2 == 0 && !taken.empty()) {
      auto it = std::next(taken.begin(), static_cast<std::ptrdiff_t>(random() % taken.size()));
      buffer.Give(it->first);
      taken.erase(it);
      continue;
    }
    const size_t bytes = 1 + random() % (kCapacity / 6);
    char* data = *buffer.Take(bytes);
    if (data == nullptr) {
      ++full;
      continue;
    }
    ASSERT_GE(data, begin);
    ASSERT_LE(data + bytes, begin + kCapacity);
    const auto [it, fresh] = taken.emplace(data, bytes);
    ASSERT_TRUE(fresh);
    if (it != taken.begin()) {
      ASSERT_LE(std::prev(it)->first + std::prev(it)->second, data);
    }
    if (std::next(it) != taken.end()) {
      ASSERT_LE(data + bytes, std::next(it)->first);
    }
  }
  EXPECT_GT(full, 100);
}

}  // namespace
}  // namespace hyserve::kv_transfer
