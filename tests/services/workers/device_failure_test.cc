// Devices that fail under a running worker: a step without memory, and a device that is lost.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "engine/runtime/engine_loop.h"
#include "hyserve/v1/worker.grpc.pb.h"
#include "services/common/shutdown_signal.h"
#include "services/worker/worker_main.h"
#include "tests/services/workers/worker_harness.h"
#include "tests/support/fake_device.h"
#include "tests/support/fake_model.h"

namespace hyserve::test {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// A monolithic worker around the fake model.
struct FakeWorkerProcess {
  FakeWorkerProcess() {
    common::Config config;
    config.model.name = "fake";
    common::WorkerSettings settings;
    settings.name = settings.role = "monolithic";
    settings.metrics_listen = "127.0.0.1:0";
    const auto make = [this](runtime::StepObserver observer)
        -> absl::StatusOr<std::unique_ptr<runtime::Engine>> {
      auto own_device = std::make_unique<testing_support::FakeDevice>();
      auto own_model = std::make_unique<testing_support::FakeModel>();
      device = own_device.get();
      model = own_model.get();
      runtime::EngineOptions options;
      options.kv_memory_bytes = int64_t{4} << 20;
      options.max_sequences = 4;
      options.snapshot_slabs = 2;
      return runtime::MakeEngine(options, std::move(own_device), std::move(own_model),
                                 std::move(observer));
    };
    auto core = worker::WorkerCore::Create(config, settings, make);
    EXPECT_TRUE(core.ok()) << core.status();
    auto started = decode_worker::DecodeWorker::Start(*std::move(core), nullptr,
                                                      /*registers=*/false);
    EXPECT_TRUE(started.ok()) << started.status();
    worker = *std::move(started);
    channel = grpc::CreateChannel(worker->host().address(), grpc::InsecureChannelCredentials());
  }

  grpc::Status Generate() {
    v1::DecodeRequest request;
    request.mutable_id()->set_request_id("request-" + std::to_string(next_++));
    request.mutable_id()->set_attempt(1);
    for (int32_t token = 1; token < 70; ++token) request.add_prompt(token);
    *request.mutable_sampling() = Greedy(8);
    request.set_num_prompt_logprobs(-1);
    grpc::ClientContext context;
    const auto reader = v1::DecodeWorker::NewStub(channel)->Decode(&context, request);
    v1::DecodeEvent event;
    while (reader->Read(&event)) {
    }
    return reader->Finish();
  }

  // As a GPU after a fault: the step fails, and everything after it.
  void LoseDevice() {
    model->SetHook([this](const model::StepInput&) {
      device->Break(absl::InternalError("unspecified launch failure"));
      return absl::InternalError("attention: unspecified launch failure");
    });
  }

  testing_support::FakeDevice* device = nullptr;  // both owned by the engine
  testing_support::FakeModel* model = nullptr;
  std::unique_ptr<decode_worker::DecodeWorker> worker;
  std::shared_ptr<grpc::Channel> channel;

 private:
  int next_ = 0;
};

TEST(DeviceFailure, AStepWithoutMemoryFailsItsRequestsOnly) {
  FakeWorkerProcess process;
  int steps = 0;
  process.model->SetHook([&steps](const model::StepInput&) {
    return ++steps == 1 ? absl::ResourceExhaustedError("no room for the workspace")
                        : absl::OkStatus();
  });
  const grpc::Status failed = process.Generate();
  EXPECT_EQ(failed.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(failed.error_message(), HasSubstr("no room for the workspace"));
  EXPECT_TRUE(process.Generate().ok());
  EXPECT_EQ(process.worker->host().NotReadyReason(), "");
  EXPECT_EQ(process.worker->core().Load(nullptr).failure(), "");
}

TEST(DeviceFailure, ALostDeviceMakesTheWorkerUnhealthy) {
  FakeWorkerProcess process;
  worker::WorkerHost& host = process.worker->host();
  absl::Notification told;
  host.OnDeviceFailure([&told] { told.Notify(); });
  EXPECT_TRUE(process.Generate().ok());
  EXPECT_THAT(WorkerHarness::Get(host, "/readyz"), StartsWith("200"));

  process.LoseDevice();
  const grpc::Status lost = process.Generate();
  EXPECT_EQ(lost.error_code(), grpc::StatusCode::UNAVAILABLE) << "so that it is tried elsewhere";
  EXPECT_THAT(lost.error_message(), StartsWith("device_failed: attention: unspecified launch"));
  told.WaitForNotification();
  EXPECT_THAT(WorkerHarness::Get(host, "/readyz"), StartsWith("503"));
  EXPECT_THAT(WorkerHarness::Get(host, "/livez"), StartsWith("200")) << "it ends by itself";
  EXPECT_THAT(process.worker->core().Load(nullptr).failure(), StartsWith("device_failed"));
  const grpc::Status refused = process.Generate();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.error_message(), StartsWith("device_failed"));
  EXPECT_EQ(WorkerHarness::Metric(host, "hyserve_requests_total", "reason=\"device_failed\""), 2);
  EXPECT_EQ(process.worker->Invariants().blocks_used(), 0);

  // Told late, told all the same.
  absl::Notification again;
  host.OnDeviceFailure([&again] { again.Notify(); });
  again.WaitForNotification();
  host.OnDeviceFailure(nullptr);
}

TEST(DeviceFailure, TheProcessEndsWithAnError) {
  common::ShutdownSignal shutdown;
  {
    FakeWorkerProcess process;
    process.LoseDevice();
    EXPECT_FALSE(process.Generate().ok());
    EXPECT_EQ(worker::ServeUntilStopped(process.worker->host(), process.worker->core(), shutdown),
              1);
  }
}

TEST(DeviceFailure, AProcessThatIsAskedToStopEndsWithout) {
  common::ShutdownSignal shutdown;
  FakeWorkerProcess process;
  EXPECT_TRUE(process.Generate().ok());
  shutdown.Trigger();
  EXPECT_EQ(worker::ServeUntilStopped(process.worker->host(), process.worker->core(), shutdown),
            0);
}

}  // namespace
}  // namespace hyserve::test
