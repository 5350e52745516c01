#include "kv_transfer/ucx/staging_buffer.h"

#include <map>
#include <memory>
#include <random>

#include "gtest/gtest.h"

namespace hyserve::kv_transfer {
namespace {

constexpr size_t kCapacity = size_t{1} << 20;

int g_allocations = 0;
absl::StatusOr<std::shared_ptr<char>> AllocateMemory(size_t bytes) {
  ++g_allocations;
  return std::shared_ptr<char>(new char[bytes], std::default_delete<char[]>());
}

TEST(StagingBufferTest, AllocatesOnlyWhenFirstNeeded) {
  const int before = g_allocations;
  StagingBuffer buffer(kCapacity, AllocateMemory);
  EXPECT_EQ(g_allocations, before);
  EXPECT_NE(*buffer.Take(1), nullptr);
  EXPECT_NE(*buffer.Take(1), nullptr);
  EXPECT_EQ(g_allocations, before + 1);
}

TEST(StagingBufferTest, FullMeansNullAndTooLargeIsAnError) {
  StagingBuffer buffer(kCapacity, AllocateMemory);
  char* all = *buffer.Take(kCapacity);
  ASSERT_NE(all, nullptr);
  EXPECT_EQ(*buffer.Take(1), nullptr);
  EXPECT_EQ(buffer.Take(kCapacity + 1).status().code(), absl::StatusCode::kResourceExhausted);
  buffer.Give(all);
  EXPECT_EQ(*buffer.Take(kCapacity), all);
}

TEST(StagingBufferTest, PartsNeverOverlapAndStayInside) {
  StagingBuffer buffer(kCapacity, AllocateMemory);
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
