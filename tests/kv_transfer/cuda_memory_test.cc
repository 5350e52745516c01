// The GPU as DeviceMemory: the checksum kernel against the host's function, copies, ranges.
#include <algorithm>
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
    const auto job = device_->StartChecksum({{memory_ + c.offset, c.bytes}}, nullptr);
    ASSERT_TRUE(job.ok()) << job.status();
    const auto crc = Wait(*job);
    ASSERT_TRUE(crc.ok()) << crc.status();
    EXPECT_EQ(*crc, Crc32c(host() + c.offset, c.bytes)) << c.offset << " + " << c.bytes;
  }
}

TEST_F(CudaMemoryTest, ManyJobsAtOnce) {
  std::vector<DeviceMemory::JobId> jobs;
  for (size_t i = 0; i < 64; ++i) {
    const auto job = device_->StartChecksum({{memory_ + (i << 20), size_t{1} << 20}}, nullptr);
    ASSERT_TRUE(job.ok()) << job.status();
    jobs.push_back(*job);
  }
  for (size_t i = 64; i-- > 0;) {
    const auto crc = Wait(jobs[i]);
    ASSERT_TRUE(crc.ok()) << crc.status();
    EXPECT_EQ(*crc, Crc32c(host() + (i << 20), size_t{1} << 20));
  }
}

TEST_F(CudaMemoryTest, ScatteredPiecesAreOneMessage) {
  for (const size_t unit : {size_t{163'840}, size_t{16}, size_t{1000}}) {
    std::vector<MemoryPart> parts;
    std::vector<char> expected;
    for (size_t i = 0; i < DeviceMemory::kMaxParts; ++i) {
      const size_t bytes = unit * (1 + i % 3);
      const size_t offset = (i * 7 % DeviceMemory::kMaxParts) * 4 * unit;
      parts.push_back({memory_ + offset, bytes});
      expected.insert(expected.end(), host() + offset, host() + offset + bytes);
    }
    const auto crc = Wait(*device_->StartChecksum(parts, nullptr));
    ASSERT_TRUE(crc.ok()) << crc.status();
    EXPECT_EQ(*crc, Crc32c(expected.data(), expected.size())) << unit;
    std::vector<uint32_t> each(parts.size());
    ASSERT_TRUE(Wait(*device_->StartChecksum(parts, each.data())).ok());
    for (size_t i = 0; i < parts.size(); ++i) {
      EXPECT_EQ(each[i], Crc32c(host() + (parts[i].data - memory_), parts[i].bytes)) << i;
    }

    char* together = *device_->Allocate(Space::kDevice, expected.size());
    ASSERT_TRUE(Wait(*device_->StartGather(Direction::kOnDevice, together, parts)).ok());
    std::vector<char> copy(expected.size());
    ASSERT_TRUE(Wait(*device_->StartGather(Direction::kToHost, copy.data(), parts)).ok());
    EXPECT_TRUE(copy == expected) << unit;
    copy.assign(copy.size(), 0);
    ASSERT_TRUE(
        CopyAndWait(*device_, Direction::kToHost, copy.data(), together, copy.size()).ok());
    EXPECT_TRUE(copy == expected) << unit;

    // Backwards, from reversed bytes, so that every piece is written anew.
    std::reverse(expected.begin(), expected.end());
    ASSERT_TRUE(CopyAndWait(*device_, Direction::kToDevice, together, expected.data(),
                            expected.size()).ok());
    ASSERT_TRUE(Wait(*device_->StartScatter(Direction::kOnDevice, parts, together)).ok());
    EXPECT_EQ(*Wait(*device_->StartChecksum(parts, nullptr)),
              Crc32c(expected.data(), expected.size()));
    ASSERT_TRUE(
        CopyAndWait(*device_, Direction::kToDevice, memory_, bytes_.data(), kBytes).ok());
    device_->Free(Space::kDevice, together);
  }
}

TEST_F(CudaMemoryTest, OneChangedBitIsSeen) {
  const size_t at = 12'345'678;
  const char changed = static_cast<char>(host()[at] ^ 4);
  ASSERT_TRUE(CopyAndWait(*device_, Direction::kToDevice, memory_ + at, &changed, 1).ok());
  EXPECT_NE(*Wait(*device_->StartChecksum({{memory_, kBytes}}, nullptr)), Crc32c(host(), kBytes));
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
