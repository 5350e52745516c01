#include "services/common/worker_registration_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "hyserve/v1/worker.grpc.pb.h"
#include "services/common/logging.h"
#include "services/common/server.h"

namespace hyserve::common {

// One thread sends (it owns the stream's life), one reads while a stream is open.
class WorkerRegistrationClient::Impl {
 public:
  explicit Impl(RegistrationOptions options) : options_(std::move(options)) {
    grpc::ChannelArguments arguments;
    SetInternalChannelArguments(&arguments);
    stub_ = v1::WorkerRegistry::NewStub(grpc::CreateCustomChannel(
        options_.router_address, grpc::InsecureChannelCredentials(), arguments));
    thread_ = std::thread([this] { Run(); });
  }

  ~Impl() {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
      if (context_ != nullptr) context_->TryCancel();
    }
    thread_.join();
  }

  bool registered() const {
    absl::MutexLock lock(&mutex_);
    return registered_;
  }

  bool WaitRegistered(absl::Duration timeout) const {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(&registered_), timeout);
  }

  void ReportNow() {
    absl::MutexLock lock(&mutex_);
    report_now_ = true;
  }

 private:
  void Run() {
    absl::Duration backoff = options_.first_backoff;
    while (true) {
      const Outcome outcome = RunStream();
      if (outcome == Outcome::kStopped) return;
      if (outcome == Outcome::kLostAfterRegistration) backoff = options_.first_backoff;
      const absl::Duration pause =
          outcome == Outcome::kRefused ? options_.refused_backoff : backoff;
      backoff = std::min(2 * backoff, options_.max_backoff);
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), pause)) return;
    }
  }

  enum class Outcome { kStopped, kRefused, kLost, kLostAfterRegistration };

  Outcome RunStream() {
    grpc::ClientContext context;
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return Outcome::kStopped;
      context_ = &context;
      stream_open_ = true;
      refused_ = false;
      report_now_ = true;  // a worker without a load report is not used
    }
    const auto stream = stub_->Register(&context);
    v1::WorkerReport report;
    *report.mutable_registration() = options_.registration;
    bool writable = stream->Write(report);
    std::thread reader([this, &stream] { Read(stream.get()); });
    for (uint64_t sequence = 1; writable && WaitForNextReport(); ++sequence) {
      *report.mutable_load() = options_.load();
      report.mutable_load()->set_sequence(sequence);
      writable = stream->Write(report);
    }
    context.TryCancel();
    reader.join();
    const grpc::Status status = stream->Finish();
    absl::MutexLock lock(&mutex_);
    context_ = nullptr;
    const bool was_registered = registered_;
    registered_ = false;
    if (stopping_) return Outcome::kStopped;
    if (refused_) return Outcome::kRefused;
    if (was_registered || !complained_) {
      LogWarning("no registration at the router", {{"router", options_.router_address},
                                                   {"reason", status.error_message()}});
      complained_ = true;
    }
    return was_registered ? Outcome::kLostAfterRegistration : Outcome::kLost;
  }

  // False: the stream has ended.
  bool WaitForNextReport() {
    absl::MutexLock lock(&mutex_);
    const auto wake = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return stopping_ || !stream_open_ || report_now_;
    };
    mutex_.AwaitWithTimeout(absl::Condition(&wake), options_.report_interval);
    report_now_ = false;
    return !stopping_ && stream_open_;
  }

  void Read(grpc::ClientReaderWriter<v1::WorkerReport, v1::RegistryMessage>* stream) {
    v1::RegistryMessage message;
    while (stream->Read(&message)) {
      absl::MutexLock lock(&mutex_);
      if (message.has_registered()) {
        registered_ = true;
        complained_ = false;
        LogInfo("registered", {{"router", options_.router_address}});
      } else if (message.has_refused()) {
        refused_ = true;
        LogError("the router refuses this worker", {{"router", options_.router_address},
                                                    {"reason", message.refused().reason()}});
      }
    }
    absl::MutexLock lock(&mutex_);
    stream_open_ = false;
  }

  const RegistrationOptions options_;
  std::unique_ptr<v1::WorkerRegistry::Stub> stub_;
  mutable absl::Mutex mutex_;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool stream_open_ ABSL_GUARDED_BY(mutex_) = false;
  bool registered_ ABSL_GUARDED_BY(mutex_) = false;
  bool refused_ ABSL_GUARDED_BY(mutex_) = false;
  bool complained_ ABSL_GUARDED_BY(mutex_) = false;
  bool report_now_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

WorkerRegistrationClient::WorkerRegistrationClient(RegistrationOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
WorkerRegistrationClient::~WorkerRegistrationClient() = default;
bool WorkerRegistrationClient::registered() const { return impl_->registered(); }
bool WorkerRegistrationClient::WaitRegistered(absl::Duration timeout) const {
  return impl_->WaitRegistered(timeout);
}
void WorkerRegistrationClient::ReportNow() { impl_->ReportNow(); }

}  // namespace hyserve::common
