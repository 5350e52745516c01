// Memory, copies and workspaces of a GPU. Needs one.
#include "engine/tensor/cuda_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

namespace hyserve::tensor {
namespace {

using ::testing::HasSubstr;

class CudaDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<CudaDevice>> device = CudaDevice::Create({"cuda", 0, "auto"});
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
  }
  Buffer Allocate(size_t bytes) {
    absl::StatusOr<Buffer> buffer = device_->Allocate(bytes);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return *std::move(buffer);
  }
  std::vector<char> RandomBytes(size_t bytes) {
    std::vector<char> values(bytes);
    for (char& value : values) value = static_cast<char>(engine_());
    return values;
  }

  std::unique_ptr<CudaDevice> device_;
  std::mt19937 engine_{17};
};

TEST_F(CudaDeviceTest, DescribesItself) {
  EXPECT_THAT(device_->Description(), ::testing::StartsWith("cuda:0 NVIDIA "));
  EXPECT_EQ(device_->kind(), DeviceKind::kCuda);
  EXPECT_EQ(device_->activation_dtype(), DType::kBF16);
  EXPECT_GT(device_->num_sms(), 0);
}

TEST_F(CudaDeviceTest, MemoryIsZeroEvenWhenUsedBefore) {
  for (int round = 0; round < 2; ++round) {
    const Buffer buffer = Allocate(9 << 20);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 256, 0u);
    std::vector<char> values(buffer.size_bytes(), 1);
    ASSERT_TRUE(device_->CopyToHost(values.data(), buffer.data(), values.size()).ok());
    EXPECT_EQ(values, std::vector<char>(values.size(), 0));
    values.assign(values.size(), 7);
    ASSERT_TRUE(device_->CopyToDevice(buffer.data(), values.data(), values.size()).ok());
  }
  EXPECT_TRUE(Allocate(0).empty());
}

TEST_F(CudaDeviceTest, CopiesOfEverySizeArriveWhole) {
  // Around the size of a staging chunk (4 MiB), and many times the whole ring.
  for (size_t bytes : {size_t{1}, size_t{255}, size_t{4} << 20, (size_t{4} << 20) + 1,
                       (size_t{70} << 20) + 13}) {
    SCOPED_TRACE(bytes);
    const std::vector<char> sent = RandomBytes(bytes);
    const Buffer a = Allocate(bytes);
    const Buffer b = Allocate(bytes);
    ASSERT_TRUE(device_->CopyToDevice(a.data(), sent.data(), bytes).ok());
    ASSERT_TRUE(device_->CopyOnDevice(b.data(), a.data(), bytes).ok());
    std::vector<char> received(bytes);
    ASSERT_TRUE(device_->CopyToHost(received.data(), b.data(), bytes).ok());
    EXPECT_EQ(received, sent);
  }
  EXPECT_TRUE(device_->CopyToDevice(nullptr, nullptr, 0).ok());
  EXPECT_TRUE(device_->CopyToHost(nullptr, nullptr, 0).ok());
}

TEST_F(CudaDeviceTest, TheSourceMayChangeAsSoonAsTheCopyReturns) {
  constexpr int kCopies = 3000;
  constexpr size_t kBytes = 20000;  // 60 MB in all: the ring goes round several times
  const Buffer buffer = Allocate(kCopies * kBytes);
  std::vector<char> source(kBytes);
  for (int i = 0; i < kCopies; ++i) {
    source.assign(kBytes, static_cast<char>(i * 31));
    ASSERT_TRUE(device_
                    ->CopyToDevice(static_cast<char*>(buffer.data()) + i * kBytes, source.data(),
                                   kBytes)
                    .ok());
    source.assign(kBytes, 99);
  }
  std::vector<char> received(kCopies * kBytes);
  ASSERT_TRUE(device_->CopyToHost(received.data(), buffer.data(), received.size()).ok());
  for (int i = 0; i < kCopies; ++i) {
    ASSERT_EQ(received[i * kBytes], static_cast<char>(i * 31));
    ASSERT_EQ(received[(i + 1) * kBytes - 1], static_cast<char>(i * 31));
  }
}

TEST_F(CudaDeviceTest, AskingForTooMuchNamesWhatThereIs) {
  const absl::Status status = device_->Allocate(size_t{1} << 50).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot allocate 1125899906842624 bytes"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("are free"));
  // The failure leaves nothing behind.
  EXPECT_TRUE(device_->Synchronize().ok());
  EXPECT_FALSE(Allocate(1000).empty());
}

TEST_F(CudaDeviceTest, WorkspacesAreReusedAndGrow) {
  using Slot = CudaDevice::WorkspaceSlot;
  std::byte* first = *device_->Workspace(Slot::kGemm, 1000);
  EXPECT_EQ(*device_->Workspace(Slot::kGemm, 500), first);
  EXPECT_NE(*device_->Workspace(Slot::kMoe, 500), first);
  EXPECT_TRUE(device_->Workspace(Slot::kGemm, size_t{8} << 20).ok());
  EXPECT_EQ(device_->Workspace(Slot::kGemm, size_t{1} << 50).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(device_->Workspace(Slot::kGemm, 2000).ok());
}

// Copies one buffer to another, and counts how often it was called.
class RecordedCopy : public CudaDeviceTest {
 protected:
  void SetUp() override {
    CudaDeviceTest::SetUp();
    from_ = Allocate(1000);
    to_ = Allocate(1000);
  }
  // Runs the copy under the key and says whether the bytes arrived.
  bool Arrives(int64_t key) {
    const std::vector<char> sent = RandomBytes(1000);
    std::vector<char> received(1000);
    EXPECT_TRUE(device_->CopyToDevice(from_.data(), sent.data(), 1000).ok());
    const absl::Status status = device_->RunRecorded({key}, [&] {
      ++num_calls_;
      return device_->CopyOnDevice(to_.data(), from_.data(), 1000);
    });
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(device_->CopyToHost(received.data(), to_.data(), 1000).ok());
    return received == sent;
  }

  Buffer from_;
  Buffer to_;
  int num_calls_ = 0;
};

TEST_F(RecordedCopy, IsCalledTwiceAndReplayedThen) {
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(Arrives(7));
  EXPECT_EQ(num_calls_, 2);  // to run, to be recorded
  EXPECT_EQ(device_->recordings().num_replays(), 9);
  EXPECT_TRUE(Arrives(8));
  EXPECT_EQ(num_calls_, 3);
}

TEST_F(RecordedCopy, IsForgottenWhenMemoryIsAllocated) {
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Arrives(7));
  const Buffer other = Allocate(100);
  EXPECT_TRUE(Arrives(7));
  EXPECT_EQ(num_calls_, 3);
  EXPECT_EQ(device_->recordings().num_replays(), 2);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Arrives(7));
  EXPECT_EQ(num_calls_, 4);
}

TEST_F(RecordedCopy, RunsDirectlyWhereItCannotBeRecorded) {
  int32_t number = 1;
  const std::vector<std::function<bool()>> forbidden = {
      [&] { return device_->Synchronize().ok(); },
      [&] { return device_->Mark().ok(); },
      [&] { return device_->CopyToHost(&number, to_.data(), sizeof(number)).ok(); },
      [&] { return device_->CopyToDevice(to_.data(), &number, sizeof(number)).ok(); },
  };
  for (size_t i = 0; i < forbidden.size(); ++i) {
    SCOPED_TRACE(i);
    num_calls_ = 0;
    int num_allowed = 0;
    for (int run = 0; run < 4; ++run) {
      const absl::Status status =
          device_->RunRecorded({static_cast<int64_t>(i)}, [&]() -> absl::Status {
            ++num_calls_;
            if (!forbidden[i]()) return absl::FailedPreconditionError("not now");
            ++num_allowed;
            return absl::OkStatus();
          });
      EXPECT_TRUE(status.ok()) << status;
    }
    EXPECT_EQ(num_allowed, 4);
    EXPECT_EQ(num_calls_, 5);  // recording was tried once
  }
  EXPECT_TRUE(Arrives(7));
  EXPECT_EQ(device_->recordings().num_replays(), 0);
}

TEST_F(RecordedCopy, ErrorsOfTheOpsComeThrough) {
  for (int i = 0; i < 4; ++i) {
    const absl::Status status =
        device_->RunRecorded({1}, [] { return absl::InvalidArgumentError("refused"); });
    EXPECT_EQ(status, absl::InvalidArgumentError("refused"));
  }
  EXPECT_TRUE(Arrives(7));
}

TEST_F(RecordedCopy, OnlySoManyKeysAreRemembered) {
  const int64_t most = CudaRecordings::kMostKeys;
  for (int round = 0; round < 3; ++round) {
    for (int64_t key = 0; key < most; ++key) EXPECT_TRUE(Arrives(key));
  }
  EXPECT_EQ(num_calls_, 2 * most);
  EXPECT_TRUE(Arrives(most));  // takes the place of key 0
  EXPECT_TRUE(Arrives(1));
  EXPECT_EQ(num_calls_, 2 * most + 1);
  EXPECT_TRUE(Arrives(0));
  EXPECT_EQ(num_calls_, 2 * most + 2);
}

TEST_F(CudaDeviceTest, BuffersOutliveTheDeviceAndItsThread) {
  Buffer buffer;
  std::thread other([&] { buffer = Allocate(1 << 20); });
  other.join();
  ASSERT_FALSE(buffer.empty());
  device_.reset();
  buffer = Buffer();
  EXPECT_TRUE(CudaDevice::Create({"cuda:0", 0, "auto"}).ok());
}

}  // namespace
}  // namespace hyserve::tensor
