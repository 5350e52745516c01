#include "services/router/registry_service.h"

#include <utility>

#include "base/strings.h"
#include "services/common/logging.h"

namespace hyserve::router {

// gRPC calls one function of a stream at a time, except OnCancel(), which is not used: a broken
// stream shows as a failed read. At most one message is ever written.
class RegistryService::Stream final
    : public grpc::ServerBidiReactor<v1::WorkerReport, v1::RegistryMessage> {
 public:
  explicit Stream(RegistryService* service) : service_(service) { StartRead(&report_); }

  void OnReadDone(bool ok) override {
    if (!ok) {
      Forget();
      // A refusal that is still being written is followed by its own Finish().
      if (!refused_) Finish(grpc::Status::OK);
      return;
    }
    if (report_.has_registration()) {
      if (id_ != 0 || refused_) return Refuse("a second registration on one stream");
      Register(report_.registration());
    } else if (report_.has_load() && id_ != 0) {
      if (!report_.load().failure().empty() && !std::exchange(failed_, true)) {
        common::LogError("worker failed", {{"worker", name_},
                                           {"reason", report_.load().failure()}});
      }
      service_->registry_->UpdateLoad(id_, report_.load());
      service_->dispatcher_->Pump();
    } else if (id_ == 0) {
      return Refuse("the first message must be a registration");
    }
    if (!refused_) StartRead(&report_);
  }

  void OnWriteDone(bool ok) override {
    if (refused_) Finish(grpc::Status::OK);
  }

  void OnDone() override {
    Forget();
    delete this;
  }

 private:
  void Register(const v1::Registration& registration) {
    name_ = registration.name();
    absl::StatusOr<WorkerId> id =
        service_->registry_->Add(registration, service_->connect_(registration.address()));
    if (!id.ok()) return Refuse(std::string(id.status().message()));
    id_ = *id;
    common::LogInfo("worker registered", {{"worker", name_},
                                          {"address", registration.address()},
                                          {"role", v1::WorkerRole_Name(registration.role())}});
    answer_.mutable_registered()->set_router_incarnation(service_->incarnation_);
    StartWrite(&answer_);
  }

  void Refuse(const std::string& reason) {
    common::LogWarning("worker refused", {{"worker", name_}, {"reason", reason}});
    const bool busy = answer_.has_registered();  // that write may still be under way
    refused_ = true;
    Forget();
    if (busy) {
      Finish(grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, reason));
      return;
    }
    answer_.mutable_refused()->set_reason(reason);
    StartWrite(&answer_);
  }

  void Forget() {
    if (id_ == 0) return;
    const bool crashed = service_->registry_->Remove(std::exchange(id_, 0));
    if (service_->stopping_) return;
    if (crashed) {
      service_->metrics_->OnWorkerCrash();
      common::LogWarning("worker lost", {{"worker", name_}});
    } else {
      common::LogInfo("worker left", {{"worker", name_}});
    }
  }

  RegistryService* const service_;
  v1::WorkerReport report_;
  v1::RegistryMessage answer_;
  std::string name_;
  WorkerId id_ = 0;
  bool refused_ = false;
  bool failed_ = false;  // as it said itself
};

RegistryService::RegistryService(WorkerRegistry* registry, Dispatcher* dispatcher,
                                 RouterMetrics* metrics, Connect connect, uint64_t incarnation)
    : registry_(registry),
      dispatcher_(dispatcher),
      metrics_(metrics),
      connect_(std::move(connect)),
      incarnation_(incarnation) {}

grpc::ServerBidiReactor<v1::WorkerReport, v1::RegistryMessage>* RegistryService::Register(
    grpc::CallbackServerContext* context) {
  return new Stream(this);
}

}  // namespace hyserve::router
