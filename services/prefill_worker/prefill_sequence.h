// One Prefill call: joins the engine's sequence, the offer of its cached state, and the stream to the
// router.
//
// Two things run: the engine's computation and the offer. The sequence ends when both have, in either
// order; only then is its memory given back to the engine and the stream ended:
//
//   computing --OnFinished--> computed  --+
//                                         +--> memory released, handoff_done, end of stream
//   offered ----OnReleased--> released  --+
//
// Every event takes the sequence's lock, changes state and enqueues; nothing blocks.
#ifndef HYSERVE_SERVICES_PREFILL_WORKER_PREFILL_SEQUENCE_H_
#define HYSERVE_SERVICES_PREFILL_WORKER_PREFILL_SEQUENCE_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/runtime/engine.h"
#include "hyserve/v1/worker.pb.h"
#include "kv_transfer/exporter.h"
#include "services/common/stream_writer.h"
#include "services/prefill_worker/offer_registry.h"
#include "services/worker/attempt_table.h"
#include "services/worker/request_conversion.h"
#include "services/worker/worker_core.h"

namespace hyserve::prefill_worker {

// What all sequences share; outlives them.
struct PrefillContext {
  worker::WorkerCore* core = nullptr;
  kv_transfer::Exporter* exporter = nullptr;
  const kv_transfer::Transport* transport = nullptr;
  OfferRegistry* offers = nullptr;
};

class PrefillSequence final : public runtime::EventSink,
                              public common::StreamListener,
                              public worker::Attempt,
                              public OfferOwner,
                              public std::enable_shared_from_this<PrefillSequence> {
 public:
  // Starts the call and returns its reactor. `request` is read before the return only.
  static grpc::ServerWriteReactor<v1::PrefillEvent>* Start(const PrefillContext* worker,
                                                           grpc::CallbackServerContext* context,
                                                           const v1::PrefillRequest& request);

  explicit PrefillSequence(const PrefillContext* worker);

 private:
  using Writer = common::StreamWriter<v1::PrefillEvent>;

  void Begin(const v1::PrefillRequest& request, absl::Time deadline);
  absl::Status Accept(const v1::PrefillRequest& request, absl::Time deadline);

  // runtime::EventSink, engine thread
  void OnAdmitted(const runtime::KvBlocks& kv, int32_t cached_tokens) override;
  void OnLayerReady(int layer_slot, int32_t num_tokens) override;
  void OnPrefillProgress(int32_t computed_tokens) override;
  void OnPromptLogprobs(int32_t first_index, std::vector<sampling::SampledToken> logprobs) override;
  void OnPrefillDone(std::vector<int32_t> selection) override;
  void OnTokens(int32_t first_index, const std::vector<sampling::SampledToken>& tokens) override;
  void OnFinished(const absl::Status& status, sampling::FinishReason reason,
                  const runtime::Usage& usage) override;
  // OfferOwner, progress thread
  void OnReleased(kv_transfer::ReleaseReason reason) override;
  // worker::Attempt
  void OnSuperseded() override;
  // common::StreamListener
  void OnStreamCancelled() override;
  void OnSlowConsumer() override;
  void OnStreamDone() override;

  void Offer(const runtime::KvBlocks& kv, int32_t cached_tokens)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteFirstToken() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HandOver() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Gives the computation and the offer up; the end comes when both have ended.
  void Cancel(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndIfNothingRuns() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status FinalStatus() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Record(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const PrefillContext* const worker_;
  std::shared_ptr<Writer> writer_;  // set by Start()
  const absl::Time arrival_;

  // Set before the engine knows the sequence, then constant.
  runtime::SequenceId id_ = 0;
  std::string request_id_;
  worker::ParsedTicket ticket_;
  std::vector<int32_t> prompt_;
  absl::Time deadline_;
  bool may_hand_over_ = false;  // false: token 1 ends the sequence in any case

  absl::Mutex mutex_;
  bool computing_ ABSL_GUARDED_BY(mutex_) = false;
  bool offered_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> cancelled_ ABSL_GUARDED_BY(mutex_);  // and why
  absl::Status engine_status_ ABSL_GUARDED_BY(mutex_);
  sampling::FinishReason finish_reason_ ABSL_GUARDED_BY(mutex_) = sampling::FinishReason::kNone;
  std::optional<kv_transfer::ReleaseReason> released_ ABSL_GUARDED_BY(mutex_);
  std::optional<sampling::SampledToken> first_token_ ABSL_GUARDED_BY(mutex_);
  std::vector<int32_t> selection_ ABSL_GUARDED_BY(mutex_);
  absl::Time admitted_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  absl::Time computed_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

}  // namespace hyserve::prefill_worker

#endif  // HYSERVE_SERVICES_PREFILL_WORKER_PREFILL_SEQUENCE_H_
