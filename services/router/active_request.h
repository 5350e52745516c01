// One Generate call: joins the pure pipeline with the client's stream, the workers' calls, the
// queue and the timers. Every event takes the request's own lock, runs the pipeline, and returns;
// nothing blocks.
//
// Lives as long as gRPC, a worker call, a timer or the queue refers to it.
#ifndef HYSERVE_SERVICES_ROUTER_ACTIVE_REQUEST_H_
#define HYSERVE_SERVICES_ROUTER_ACTIVE_REQUEST_H_

#include <grpcpp/support/server_callback.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "hyserve/v1/inference.pb.h"
#include "services/common/config.h"
#include "services/common/metrics.h"
#include "services/common/stream_writer.h"
#include "services/router/dispatcher.h"
#include "services/router/live_requests.h"
#include "services/router/request_pipeline.h"
#include "services/router/request_validator.h"
#include "services/router/router_metrics.h"
#include "services/router/text.h"
#include "services/router/worker_link.h"

namespace hyserve::router {

// What all requests share. Everything outlives every request.
struct RouterContext {
  common::LimitSettings limits;
  int64_t inline_text_bytes = 4096;
  uint64_t hash_salt = 0;
  const TextModel* text = nullptr;
  TextPool* text_pool = nullptr;
  WorkerRegistry* registry = nullptr;
  Dispatcher* dispatcher = nullptr;
  LiveRequests* live = nullptr;
  common::TimerQueue* timers = nullptr;
  RouterMetrics* metrics = nullptr;
};

class ActiveRequest final : public common::StreamListener,
                            public WorkerCallHandler,
                            public DispatchTarget,
                            public PipelineActions,
                            public LiveRequest,
                            public std::enable_shared_from_this<ActiveRequest> {
 public:
  // Starts the request and returns its reactor. `request` may be why it could not be parsed; it is
  // read before the return only.
  static grpc::ServerWriteReactor<grpc::ByteBuffer>* Start(
      const RouterContext* router, grpc::CallbackServerContext* context,
      const absl::StatusOr<v1::GenerateRequest>& request);

  ActiveRequest(const RouterContext* router, grpc::CallbackServerContext* context);
  ~ActiveRequest() override;

  void Shutdown() override;  // LiveRequest

 private:
  using Writer = common::StreamWriter<v1::GenerateResponse, grpc::ByteBuffer>;
  // Holds the lock for one event, then gives bookings back without it: a release may wake other
  // requests.
  class Event;

  // Start-up, in this order.
  void Begin(const absl::StatusOr<v1::GenerateRequest>& request);
  absl::Status Accept(const v1::GenerateRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnPrompt(absl::StatusOr<std::vector<int32_t>> prompt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Admit(std::vector<int32_t> prompt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Submit(bool retry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UseAssignment(const Assignment& assignment) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CallWorkers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FillSampling(v1::WorkerSampling* sampling) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // common::StreamListener
  void OnStreamCancelled() override;
  void OnStreamWritable() override;
  void OnSlowConsumer() override;
  void OnStreamDone() override;
  // WorkerCallHandler
  void OnPrefillEvent(uint32_t attempt, const v1::PrefillEvent& event) override;
  void OnPrefillEnd(uint32_t attempt, const absl::Status& status) override;
  bool OnDecodeEvent(uint32_t attempt, const v1::DecodeEvent& event) override;
  void OnDecodeEnd(uint32_t attempt, const absl::Status& status) override;
  // DispatchTarget
  void OnAssigned(const Assignment& assignment) override;
  void OnNotAssigned(const absl::Status& status) override;
  void OnWorkerLost(BookingId booking, WorkerSide side) override;
  // PipelineActions: called by the pipeline, under the lock.
  bool Retry(uint32_t attempt, FailedPart failed) override ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void CancelPrefill() override ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void CancelDecode() override ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void WriteProgress(int32_t computed_tokens) override ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void WritePromptLogprobs(
      int32_t first_index,
      const google::protobuf::RepeatedPtrField<v1::SampledToken>& row) override
      ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void WriteTokens(const TokenBatch& batch) override ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void OnPromptComputed() override ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void OnHandoff(bool ok) override ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void OnStaleEvent() override;
  void Finish(const FinishInfo& info) override ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void Fail(const absl::Status& status, std::string_view reason) override
      ABSL_NO_THREAD_SAFETY_ANALYSIS;

  void FillLogprobs(const v1::SampledToken& token, v1::TokenLogprobs* out) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FillFinished(const FinishInfo& info, v1::Finished* finished)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Refuses before there is a pipeline.
  void Refuse(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RecordEnd(const absl::Status& status, std::string_view reason,
                 std::string_view finish_reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Release(BookingId booking, WorkerSide side) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnDeadlineTimer();

  const RouterContext* const router_;
  grpc::CallbackServerContext* const context_;  // alive until OnStreamDone
  std::shared_ptr<Writer> writer_;              // set by Start()

  absl::Mutex mutex_;
  absl::Time arrival_ ABSL_GUARDED_BY(mutex_);
  absl::Time deadline_ ABSL_GUARDED_BY(mutex_);
  absl::Time now_ ABSL_GUARDED_BY(mutex_);  // of the running event
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool live_ ABSL_GUARDED_BY(mutex_) = false;  // entered in router_->live
  common::TimerId deadline_timer_ ABSL_GUARDED_BY(mutex_) = 0;
  ModelInfo model_ ABSL_GUARDED_BY(mutex_);
  ValidatedRequest request_ ABSL_GUARDED_BY(mutex_);
  std::vector<int32_t> prompt_ ABSL_GUARDED_BY(mutex_);
  RouteRequest route_ ABSL_GUARDED_BY(mutex_);
  std::optional<RequestPipeline> pipeline_ ABSL_GUARDED_BY(mutex_);
  std::optional<common::LocalHistogram> inter_token_ ABSL_GUARDED_BY(mutex_);
  absl::Time last_write_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  Ticket ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Duration queue_time_ ABSL_GUARDED_BY(mutex_) = absl::ZeroDuration();
  bool dispatched_ ABSL_GUARDED_BY(mutex_) = false;
  // Of the current attempt.
  Assignment assignment_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<WorkerCall> prefill_call_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<WorkerCall> decode_call_ ABSL_GUARDED_BY(mutex_);
  // Calls that have not ended, by attempt; their ends give the bookings back.
  struct OpenCall {
    uint32_t attempt;
    WorkerSide side;
    BookingId booking;
  };
  absl::InlinedVector<OpenCall, 2> open_calls_ ABSL_GUARDED_BY(mutex_);
  absl::InlinedVector<std::pair<BookingId, WorkerSide>, 2> releases_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_ACTIVE_REQUEST_H_
