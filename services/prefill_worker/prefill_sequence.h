// One Prefill call: joins the engine's sequence, the offer of its cached state, and the stream to
// the router. How it begins and ends: sequence_call.h, with the offer as the transfer.
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
#include "services/worker/request_conversion.h"
#include "services/worker/sequence_call.h"
#include "services/worker/worker_core.h"

namespace hyserve::prefill_worker {

// What all sequences share; outlives them.
struct PrefillContext {
  worker::WorkerCore* core = nullptr;
  kv_transfer::Exporter* exporter = nullptr;
  const kv_transfer::Transport* transport = nullptr;
  OfferRegistry* offers = nullptr;
};

class PrefillSequence final : public worker::SequenceCall, public OfferOwner {
 public:
  // Starts the call and returns its reactor. `request` is read before the return only.
  static grpc::ServerWriteReactor<v1::PrefillEvent>* Start(const PrefillContext* worker,
                                                           grpc::CallbackServerContext* context,
                                                           const v1::PrefillRequest& request);

  explicit PrefillSequence(const PrefillContext* worker);

 private:
  using Writer = common::StreamWriter<v1::PrefillEvent>;

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
  // worker::SequenceCall
  void AbortTransfer() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteEnd(const absl::Status& status) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FillOutcome(worker::RequestOutcome* outcome) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void Offer(const runtime::KvBlocks& kv, int32_t cached_tokens)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteFirstToken() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HandOver() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::shared_ptr<PrefillSequence> Self() {
    return std::static_pointer_cast<PrefillSequence>(shared_from_this());
  }

  const PrefillContext* const worker_;
  std::shared_ptr<Writer> writer_;  // set by Start()

  // Set before the engine knows the sequence, then constant.
  worker::ParsedTicket ticket_;
  bool may_hand_over_ = false;  // false: token 1 ends the sequence in any case

  std::optional<kv_transfer::ReleaseReason> released_ ABSL_GUARDED_BY(mutex_);
  std::optional<sampling::SampledToken> first_token_ ABSL_GUARDED_BY(mutex_);
  std::vector<int32_t> selection_ ABSL_GUARDED_BY(mutex_);
  absl::Time admitted_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  absl::Time computed_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

}  // namespace hyserve::prefill_worker

#endif  // HYSERVE_SERVICES_PREFILL_WORKER_PREFILL_SEQUENCE_H_
