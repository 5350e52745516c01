#include "services/router/worker_client.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/client_callback.h>

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "hyserve/v1/worker.grpc.pb.h"
#include "services/common/server.h"
#include "services/common/status_mapping.h"

namespace hyserve::router {
namespace {

// What gRPC takes in of a stream before it is read. Left to itself it would grow this to megabytes,
// and a slow client would be noticed by its decode worker only when those are full.
constexpr int kStreamWindowBytes = 64 << 10;
// Workers keep the deadline themselves; gRPC's is the net below.
constexpr absl::Duration kDeadlineSlack = absl::Seconds(1);

// How the two kinds of call reach their handler.
struct PrefillTraits {
  using Request = v1::PrefillRequest;
  using Event = v1::PrefillEvent;
  static void Start(v1::PrefillWorker::Stub* stub, grpc::ClientContext* context,
                    const Request* request, grpc::ClientReadReactor<Event>* reactor) {
    stub->async()->Prefill(context, request, reactor);
  }
  static bool Deliver(WorkerCallHandler* handler, uint32_t attempt, const Event& event) {
    handler->OnPrefillEvent(attempt, event);
    return true;
  }
  static void DeliverEnd(WorkerCallHandler* handler, uint32_t attempt, const absl::Status& status) {
    handler->OnPrefillEnd(attempt, status);
  }
};

struct DecodeTraits {
  using Request = v1::DecodeRequest;
  using Event = v1::DecodeEvent;
  static void Start(v1::DecodeWorker::Stub* stub, grpc::ClientContext* context,
                    const Request* request, grpc::ClientReadReactor<Event>* reactor) {
    stub->async()->Decode(context, request, reactor);
  }
  static bool Deliver(WorkerCallHandler* handler, uint32_t attempt, const Event& event) {
    return handler->OnDecodeEvent(attempt, event);
  }
  static void DeliverEnd(WorkerCallHandler* handler, uint32_t attempt, const absl::Status& status) {
    handler->OnDecodeEnd(attempt, status);
  }
};

// Owns itself until OnDone(). A hold keeps gRPC from ending the call while no read is outstanding,
// so that a paused call can be resumed from any thread.
template <typename Traits>
class StreamCall final : public WorkerCall,
                         public grpc::ClientReadReactor<typename Traits::Event>,
                         public std::enable_shared_from_this<StreamCall<Traits>> {
 public:
  StreamCall(uint32_t attempt, std::shared_ptr<WorkerCallHandler> handler)
      : attempt_(attempt), handler_(std::move(handler)) {}

  // `stub_owner` keeps the channel alive until the end.
  template <typename Stub>
  void Start(Stub* stub, const typename Traits::Request& request, absl::Time deadline,
             std::shared_ptr<void> stub_owner) {
    self_ = this->shared_from_this();
    stub_owner_ = std::move(stub_owner);
    context_.set_deadline(absl::ToChronoTime(deadline + kDeadlineSlack));
    Traits::Start(stub, &context_, &request, this);
    this->AddHold();
    this->StartRead(&event_);
    this->StartCall();
  }

  void Cancel() override {
    context_.TryCancel();
    Resume();
  }

  void Resume() override {
    absl::MutexLock lock(&mutex_);
    if (paused_) {
      paused_ = false;
      this->StartRead(&event_);
    } else {
      resume_early_ = true;
    }
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      this->RemoveHold();
      return;
    }
    const bool more = Traits::Deliver(handler_.get(), attempt_, event_);
    absl::MutexLock lock(&mutex_);
    if (!more && !resume_early_) {
      paused_ = true;
      return;
    }
    resume_early_ = false;
    this->StartRead(&event_);
  }

  void OnDone(const grpc::Status& status) override {
    const std::shared_ptr<StreamCall> self = std::move(self_);
    const std::shared_ptr<WorkerCallHandler> handler = std::move(handler_);
    Traits::DeliverEnd(handler.get(), attempt_, common::FromGrpcStatus(status));
  }

 private:
  const uint32_t attempt_;
  std::shared_ptr<WorkerCallHandler> handler_;
  std::shared_ptr<void> stub_owner_;
  std::shared_ptr<StreamCall> self_;
  grpc::ClientContext context_;
  typename Traits::Event event_;
  absl::Mutex mutex_;
  bool paused_ ABSL_GUARDED_BY(mutex_) = false;
  bool resume_early_ ABSL_GUARDED_BY(mutex_) =
      false;  // Resume() came while the event was delivered
};

class GrpcWorkerLink final : public WorkerLink,
                             public std::enable_shared_from_this<GrpcWorkerLink> {
 public:
  explicit GrpcWorkerLink(const std::shared_ptr<grpc::Channel>& channel)
      : prefill_(v1::PrefillWorker::NewStub(channel)),
        decode_(v1::DecodeWorker::NewStub(channel)) {}

  std::shared_ptr<WorkerCall> Prefill(const v1::PrefillRequest& request, absl::Time deadline,
                                      std::shared_ptr<WorkerCallHandler> handler) override {
    auto call =
        std::make_shared<StreamCall<PrefillTraits>>(request.id().attempt(), std::move(handler));
    call->Start(prefill_.get(), request, deadline, shared_from_this());
    return call;
  }

  std::shared_ptr<WorkerCall> Decode(const v1::DecodeRequest& request, absl::Time deadline,
                                     std::shared_ptr<WorkerCallHandler> handler) override {
    auto call =
        std::make_shared<StreamCall<DecodeTraits>>(request.id().attempt(), std::move(handler));
    call->Start(decode_.get(), request, deadline, shared_from_this());
    return call;
  }

 private:
  std::unique_ptr<v1::PrefillWorker::Stub> prefill_;
  std::unique_ptr<v1::DecodeWorker::Stub> decode_;
};

}  // namespace

std::shared_ptr<WorkerLink> ConnectWorker(const std::string& address) {
  grpc::ChannelArguments arguments;
  common::SetInternalChannelArguments(&arguments);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamWindowBytes);
  return std::make_shared<GrpcWorkerLink>(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
}

}  // namespace hyserve::router
