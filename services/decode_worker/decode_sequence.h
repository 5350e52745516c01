// One Decode call: joins the engine's sequence, the pull of its cached state, and the stream to the
// router.
//
//   with a ticket     Reserve -> Pull into the reserved blocks -> verified -> Resume -> tokens
//   monolithic        Submit -> tokens
//
// How it begins and ends: sequence_call.h. The pull is the transfer: it runs until it can no longer
// write into the sequence's memory.
#ifndef HYSERVE_SERVICES_DECODE_WORKER_DECODE_SEQUENCE_H_
#define HYSERVE_SERVICES_DECODE_WORKER_DECODE_SEQUENCE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/runtime/engine.h"
#include "hyserve/v1/worker.pb.h"
#include "kv_transfer/importer.h"
#include "services/common/stream_writer.h"
#include "services/decode_worker/link_guard.h"
#include "services/worker/request_conversion.h"
#include "services/worker/sequence_call.h"
#include "services/worker/worker_core.h"

namespace hyserve::decode_worker {

// What all sequences share; outlives them.
struct DecodeContext {
  worker::WorkerCore* core = nullptr;
  kv_transfer::Importer* importer = nullptr;          // null: monolithic
  const kv_transfer::Transport* transport = nullptr;  // likewise
  kv_transfer::LinkProbe* probe = nullptr;            // likewise
  LinkGuard* links = nullptr;                         // null: no floor of the links' bandwidth
};

class DecodeSequence final : public worker::SequenceCall {
 public:
  // Starts the call and returns its reactor. `request` is read before the return only.
  static grpc::ServerWriteReactor<v1::DecodeEvent>* Start(const DecodeContext* worker,
                                                          grpc::CallbackServerContext* context,
                                                          const v1::DecodeRequest& request);

  explicit DecodeSequence(const DecodeContext* worker);

 private:
  using Writer = common::StreamWriter<v1::DecodeEvent>;

  absl::Status Accept(const v1::DecodeRequest& request, absl::Time deadline);
  absl::Status AcceptTicket(const v1::DecodeRequest& request);

  // runtime::EventSink, engine thread
  void OnAdmitted(const runtime::KvBlocks& kv, int32_t cached_tokens) override;
  void OnReserved(const absl::StatusOr<runtime::KvBlocks>& kv) override;
  void OnPrefillProgress(int32_t computed_tokens) override;
  void OnPromptLogprobs(int32_t first_index, std::vector<sampling::SampledToken> logprobs) override;
  void OnTokens(int32_t first_index, const std::vector<sampling::SampledToken>& tokens) override;
  void OnFinished(const absl::Status& status, sampling::FinishReason reason,
                  const runtime::Usage& usage) override;
  // Importer's callback, progress thread
  void OnPulled(const kv_transfer::PullResult& result);
  // worker::SequenceCall
  void AbortTransfer() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteEnd(const absl::Status& status) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FillOutcome(worker::RequestOutcome* outcome) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void Pull(const runtime::KvBlocks& kv) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Resume(const kv_transfer::PullResult& result, int32_t first_token)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool local() const { return worker_->importer == nullptr; }

  const DecodeContext* const worker_;
  std::shared_ptr<Writer> writer_;  // set by Start()
  worker::ParsedTicket ticket_;     // set before the engine knows the sequence, then constant

  int32_t cached_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  int32_t generated_tokens_ ABSL_GUARDED_BY(mutex_) = 0;  // the engine's count, token 1 included
  int32_t tokens_while_congested_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time started_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();  // memory was there
  absl::Time first_token_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  absl::Time last_token_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  std::unique_ptr<common::LocalHistogram> inter_token_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hyserve::decode_worker

#endif  // HYSERVE_SERVICES_DECODE_WORKER_DECODE_SEQUENCE_H_
