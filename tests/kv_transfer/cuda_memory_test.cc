// The GPU as DeviceMemory: the checksum kernel against the host's function, copies, ranges.
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kv_transfer/crc32c.h"
#include "kv_transfer/cuda/open_device.h"

namespace hyserve::kv_transfer {
namespace {

using Direction = DeviceMemory::Direction;
using Space = DeviceMemory::Space;

class CudaMemoryTest : public testing::Test {
 protected:
  static constexpr size_t kBytes = size_t{96} << 20;

  void SetUp() override {
    auto device = OpenDevice("cuda:0");
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    memory_ = *device_->Allocate(Space::kDevice, kBytes);
    std::mt19937_64 random(11);
    bytes_.resize(kBytes / sizeof(uint64_t));
    for (uint64_t& word : bytes_) word = random();
    ASSERT_TRUE(CopyAndWait(*device_, Direction::kToDevice, memory_, bytes_.data(), kBytes).ok());
  }
  void TearDown() override {
    if (memory_ != nullptr) device_->Free(Space::kDevice, memory_);
  }
  const char* host() const { return reinterpret_cast<const char*>(bytes_.data()); }
  absl::StatusOr<uint32_t> Wait(DeviceMemory::JobId job) {
    while (true) {
      if (auto end = device_->Poll(job)) return *end;
      std::this_thread::yield();
    }
  }

  std::shared_ptr<DeviceMemory> device_;
  char* memory_ = nullptr;
  std::vector<uint64_t> bytes_;
};

TEST_F(CudaMemoryTest, ChecksumsAreTheHosts) {
  struct Case {
    size_t offset, bytes;
  };
  for (const Case& c : std::vector<Case>{{0, 1}, {1, 3}, {0, 16}, {16, 4096}, {0, 4112},
                                         {5, 4097}, {0, 65520}, {0, 65536}, {48, 65552},
                                         {0, 163'840}, {3, 1'000'001}, {0, 819'200},
                                         {0, 14'417'920}, {16, 16 << 20}, {0, kBytes}}) {
    const auto job = device_->StartChecksum(memory_ + c.offset, c.bytes);
    ASSERT_TRUE(job.ok()) << job.status();
    const auto crc = Wait(*job);
    ASSERT_TRUE(crc.ok()) << crc.status();
    EXPECT_EQ(*crc, Crc32c(host() + c.offset, c.bytes)) << c.offset << " + " << c.bytes;
  }
}

TEST_F(CudaMemoryTest, ManyJobsAtOnce) {
  std::vector<DeviceMemory::JobId> jobs;
  for (size_t i = 0; i < 64; ++i) {
    const auto job = device_->StartChecksum(memory_ + (i << 20), size_t{1} << 20);
    ASSERT_TRUE(job.ok()) << job.status();
    jobs.push_back(*job);
  }
  for (size_t i = 64; i-- > 0;) {
    const auto crc = Wait(jobs[i]);
    ASSERT_TRUE(crc.ok()) << crc.status();
    EXPECT_EQ(*crc, Crc32c(host() + (i << 20), size_t{1} << 20));
  }
}

TEST_F(CudaMemoryTest, OneChangedBitIsSeen) {
  const size_t at = 12'345'678;
  const char changed = static_cast<char>(host()[at] ^ 4);
  ASSERT_TRUE(CopyAndWait(*device_, Direction::kToDevice, memory_ + at, &changed, 1).ok());
  EXPECT_NE(*Wait(*device_->StartChecksum(memory_, kBytes)), Crc32c(host(), kBytes));
}

TEST_F(CudaMemoryTest, RangesAndNamesAreChecked) {
  EXPECT_TRUE(device_->CheckRange(memory_, kBytes).ok());
  EXPECT_TRUE(device_->Shareable(memory_));
  EXPECT_EQ(device_->CheckRange(host(), 16).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenDevice("cuda:99").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenDevice("cuda:x").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(device_->Synchronize().ok());
}

}  // namespace
}  // namespace hyserve::kv_transfer
