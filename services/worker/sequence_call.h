// What a Prefill call and a Decode call share: the way in (checks, the fence between attempts, the
// engine) and the ways out (superseded, cancelled, slow, broken, refused, draining).
//
// Two things run for a call: the engine's computation and the transfer of the cached state. They
// stop in either order; when neither runs any more, memory that the engine still keeps is given
// back and the stream is ended:
//
//   engine_runs_    --EngineEnded()----->  --+
//                                            +--> memory released, end of the stream
//   transfer_runs_  --transfer's end---->  --+
//
// Every event takes the call's lock, changes state and enqueues; nothing blocks.
#ifndef HYSERVE_SERVICES_WORKER_SEQUENCE_CALL_H_
#define HYSERVE_SERVICES_WORKER_SEQUENCE_CALL_H_

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/runtime/engine.h"
#include "hyserve/v1/worker.pb.h"
#include "services/common/stream_writer.h"
#include "services/worker/attempt_table.h"
#include "services/worker/request_conversion.h"
#include "services/worker/worker_core.h"

namespace hyserve::worker {

class SequenceCall : public runtime::EventSink,
                     public common::StreamListener,
                     public Attempt,
                     public std::enable_shared_from_this<SequenceCall> {
 protected:
  // Counts a stream and a sequence at `core`, which outlives the call.
  explicit SequenceCall(WorkerCore* core);

  // ---- The way in, in this order; `Request` is v1::PrefillRequest or v1::DecodeRequest.
  // UNAVAILABLE while draining; INVALID_ARGUMENT for an id or a scope that no router sends.
  template <typename Request>
  absl::Status Check(const Request& request) const {
    if (absl::Status status = core_.CheckAcceptsWork(); !status.ok()) return status;
    if (absl::Status status = CheckRequestId(request.id()); !status.ok()) return status;
    return CheckCacheScope(request.cache_scope());
  }
  // Gives the call its id, deadline and prompt.
  template <typename Request>
  runtime::SequenceRequest MakeSequence(const Request& request, runtime::SequenceMode mode,
                                        absl::Time deadline) {
    id_ = core_.NextSequenceId();
    deadline_ = ClampDeadline(deadline, core_.config().limits.max_deadline);
    prompt_.assign(request.prompt().begin(), request.prompt().end());
    runtime::SequenceRequest sequence;
    sequence.id = id_;
    sequence.mode = mode;
    sequence.prompt = prompt_;
    sequence.sampling = ToSamplingParams(request.sampling());
    if (mode != runtime::SequenceMode::kDecode) {
      sequence.num_prompt_logprobs = request.num_prompt_logprobs();
    }
    sequence.use_prefix_cache = request.use_prefix_cache();
    sequence.cache_scope = request.cache_scope();
    sequence.deadline = deadline_;
    return sequence;
  }
  // Passes the fence between attempts and gives the sequence to the engine. Errors of
  // AttemptTable::Enter and of Engine::Submit or Reserve.
  absl::Status Enter(const v1::RequestId& id, runtime::SequenceRequest sequence);
  // Ends a call that one of the above refused.
  void Refuse(const absl::Status& status);

  // ---- The ways out.
  // Gives computation and transfer up; the end comes when both have stopped. The first cause stays.
  void Cancel(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EngineEnded(const absl::Status& status, sampling::FinishReason reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndIfNothingRuns() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Why a call is ended whose router does not read.
  static absl::Status SlowConsumerError();

  void OnSuperseded() final;       // Attempt
  void OnStreamCancelled() final;  // common::StreamListener
  void OnSlowConsumer() final;
  void OnStreamDone() final;

  // Makes the transfer stop soon; called while transfer_runs_.
  virtual void AbortTransfer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) = 0;
  // Writes the last message where there is one, and ends the stream.
  virtual void WriteEnd(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) = 0;
  // Everything but status, finished_reason, prompt_tokens and total.
  virtual void FillOutcome(RequestOutcome* outcome) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) = 0;

  WorkerCore& core_;
  const absl::Time arrival_;

  // Set before the engine knows the sequence, then constant.
  runtime::SequenceId id_ = 0;
  std::string request_id_;
  std::vector<int32_t> prompt_;
  absl::Time deadline_;

  absl::Mutex mutex_;
  bool engine_runs_ ABSL_GUARDED_BY(mutex_) = false;
  bool transfer_runs_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> cancelled_ ABSL_GUARDED_BY(mutex_);  // and why
  absl::Status engine_status_ ABSL_GUARDED_BY(mutex_);
  sampling::FinishReason finish_reason_ ABSL_GUARDED_BY(mutex_) = sampling::FinishReason::kNone;

 private:
  absl::Status FinalStatus() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace hyserve::worker

#endif  // HYSERVE_SERVICES_WORKER_SEQUENCE_CALL_H_
