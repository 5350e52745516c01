// The life of one request at the router, as a pure state machine: events in, actions out.
//
//   queued --OnAssigned--> running --+--> finished   (stop, length)
//      ^                      |      +--> failed     (one status)
//      +------ retry ---------+           (before token 1 only)
//
// Rules:
//   * Both workers are called at once; token 1 comes from prefill and is written at once.
//   * Token i is written only if it is the next one and its attempt is the current one. Decode's
//     tokens may overtake token 1: they are held until it is there.
//   * A worker lost before token 1: attempt + 1, elsewhere. After token 1: ABORTED.
//   * A stop string, a cancel, a deadline, a slow client: both calls are cancelled.
//   * If decode is lost after its last token, the end is made here: the router counts itself.
//   * Exactly one Finish() or Fail(); no action after it except the cancelling of calls.
//
// Not thread-safe: the owner serializes events. No gRPC, no threads, no clock of its own.
#ifndef HYSERVE_SERVICES_ROUTER_REQUEST_PIPELINE_H_
#define HYSERVE_SERVICES_ROUTER_REQUEST_PIPELINE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "hyserve/v1/inference.pb.h"
#include "hyserve/v1/worker.pb.h"
#include "services/router/text.h"

namespace hyserve::router {

// Which part of an attempt failed.
enum class FailedPart : uint8_t { kNone, kPrefill, kHandoff, kDecode };
std::string_view FailedPartName(FailedPart part);  // "prefill", "handoff", "decode"

// Tokens to be written, contiguous. Valid during the call only.
struct TokenBatch {
  int32_t first_index = 0;
  std::vector<const v1::SampledToken*> tokens;
  std::string text;
};

struct FinishInfo {
  v1::FinishReason reason = v1::FINISH_REASON_STOP;
  int32_t stop_index = -1;    // of the stop string, -1: none
  int32_t stop_token_id = -1;
  std::string text;           // held back until now
};

class PipelineActions {
 public:
  virtual ~PipelineActions() = default;
  // Get workers for attempt `attempt`, avoiding those of the failed part; answer with OnAssigned()
  // or OnNotAssigned(). False: the retry budget is spent, nothing happens.
  virtual bool Retry(uint32_t attempt, FailedPart failed) = 0;
  virtual void CancelPrefill() = 0;
  virtual void CancelDecode() = 0;
  virtual void WriteProgress(int32_t computed_tokens) = 0;
  virtual void WritePromptLogprobs(
      int32_t first_index, const google::protobuf::RepeatedPtrField<v1::SampledToken>& row) = 0;
  virtual void WriteTokens(const TokenBatch& batch) = 0;
  // The prompt is computed: the prefill worker's load is gone.
  virtual void OnPromptComputed() = 0;
  // A hand-off between the current workers succeeded or failed.
  virtual void OnHandoff(bool ok) = 0;
  virtual void OnStaleEvent() = 0;
  virtual void Finish(const FinishInfo& info) = 0;
  virtual void Fail(const absl::Status& status, std::string_view reason) = 0;
};

struct PipelineOptions {
  int32_t max_tokens = 1;
  std::vector<int32_t> ending_token_ids = {};  // sorted: end tokens (unless ignored) and stop ids
  int32_t min_tokens = 0;
  bool report_progress = false;
  int32_t max_retries = 2;
};

// What is known about the request so far; for usage, timings and metrics.
struct PipelineRecord {
  uint32_t attempts = 1;
  int32_t cached_tokens = 0;
  int32_t recomputed_tokens = 0;
  uint64_t shipped_bytes = 0;
  double prefill_ms = 0;
  double transfer_ms = 0;
  double transfer_exposed_ms = 0;
  absl::Time assigned = absl::InfinitePast();     // of the last attempt
  absl::Time first_token = absl::InfinitePast();
  absl::Time last_token = absl::InfinitePast();
};

class RequestPipeline {
 public:
  // `actions` must outlive the pipeline.
  RequestPipeline(PipelineOptions options, TextStream text, PipelineActions* actions);

  void OnAssigned(uint32_t attempt, bool monolithic, absl::Time now);
  void OnNotAssigned(const absl::Status& status);
  void OnPrefillEvent(uint32_t attempt, const v1::PrefillEvent& event, absl::Time now);
  void OnDecodeEvent(uint32_t attempt, const v1::DecodeEvent& event, absl::Time now);
  // The call's end; nothing of the attempt is held by that worker any more.
  void OnPrefillEnd(uint32_t attempt, const absl::Status& status, absl::Time now);
  void OnDecodeEnd(uint32_t attempt, const absl::Status& status, absl::Time now);
  void OnPrefillLost(uint32_t attempt, absl::Time now);
  void OnDecodeLost(uint32_t attempt, absl::Time now);
  // The client cancelled, the deadline passed, the client does not read, the router stops.
  void OnClientCancelled();
  void OnDeadline();
  void OnSlowConsumer();
  void OnShutdown();

  bool ended() const { return state_ == State::kEnded; }
  uint32_t attempt() const { return attempt_; }
  int32_t generated_tokens() const { return next_index_; }
  const PipelineRecord& record() const { return record_; }

 private:
  enum class State : uint8_t { kQueued, kRunning, kEnded };

  bool IsCurrent(uint32_t attempt);
  void OnTokens(int32_t first_index,
                const google::protobuf::RepeatedPtrField<v1::SampledToken>& tokens, absl::Time now);
  // Writes those of tokens[0..) that are next. False: the request ended in it.
  bool Emit(const v1::SampledToken* const* tokens, size_t count, absl::Time now);
  void OnDecodeFinished(const v1::DecodeEvent::Finished& finished, absl::Time now);
  void OnAttemptFailed(FailedPart part, const absl::Status& status, absl::Time now);
  bool TryFinishWithoutWorker();
  bool EndsSequence() const;
  void FinishByToken(bool by_length);
  void FinishByStopString(int stop_index, std::string text);
  void End();
  void Fail(const absl::Status& status, std::string_view reason);
  void ResetAttempt();

  const PipelineOptions options_;
  PipelineActions* const actions_;
  TextStream text_;
  State state_ = State::kQueued;
  uint32_t attempt_ = 1;
  bool monolithic_ = false;
  bool prefill_open_ = false;
  bool decode_open_ = false;
  bool handoff_done_ = false;
  int32_t next_index_ = 0;
  int32_t last_token_id_ = -1;
  int32_t progress_ = 0;
  int32_t prompt_logprobs_end_ = 0;
  std::vector<v1::SampledToken> held_;  // decode's tokens from index 1 on, while token 1 is missing
  bool held_finished_ = false;
  v1::DecodeEvent::Finished finished_;
  absl::Status prefill_error_;  // after token 1: decode's end decides
  TokenBatch batch_;            // memory reused from batch to batch
  PipelineRecord record_;
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_REQUEST_PIPELINE_H_
