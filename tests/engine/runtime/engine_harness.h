// What the tests of the engine share: a sink that remembers, waiting, and hand-offs by hand.
#ifndef HYSERVE_TESTS_ENGINE_RUNTIME_ENGINE_HARNESS_H_
#define HYSERVE_TESTS_ENGINE_RUNTIME_ENGINE_HARNESS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/runtime/engine.h"

namespace hyserve::runtime {

// Everything that the engine said about one sequence.
struct Record {
  std::vector<std::string> calls;  // names in order: "admitted", "layer", "progress", ...
  std::optional<KvBlocks> kv;
  absl::Status reserve_status;
  int32_t cached_tokens = -1;
  std::vector<std::pair<int, int32_t>> layers_ready;  // slot, tokens
  int32_t progress = 0;
  std::vector<int32_t> logprob_indices;
  std::vector<sampling::SampledToken> prompt_logprobs;
  std::vector<int32_t> selection;
  std::vector<int32_t> token_indices;
  std::vector<sampling::SampledToken> tokens;
  int ends = 0;
  absl::Status status;
  sampling::FinishReason reason = sampling::FinishReason::kNone;
  Usage usage;

  std::vector<int32_t> TokenIds() const;
};

class RecordingSink : public EventSink {
 public:
  // Each waits until it is so (at most a minute, then the test fails) and returns the record.
  Record AwaitEnd();
  Record AwaitReserved();
  Record Await(const std::function<bool(const Record&)>& condition);
  Record Now();

  void OnAdmitted(const KvBlocks& kv, int32_t cached_tokens) override;
  void OnReserved(const absl::StatusOr<KvBlocks>& kv) override;
  void OnLayerReady(int layer_slot, int32_t num_tokens) override;
  void OnPrefillProgress(int32_t computed_tokens) override;
  void OnPromptLogprobs(int32_t first_index, std::vector<sampling::SampledToken> logprobs) override;
  void OnPrefillDone(std::vector<int32_t> selection) override;
  void OnTokens(int32_t first_index, const std::vector<sampling::SampledToken>& tokens) override;
  void OnFinished(const absl::Status& status, sampling::FinishReason reason,
                  const Usage& usage) override;

  // Called on the engine thread in OnLayerReady. Set before the sequence is submitted.
  std::function<void(int layer_slot, int32_t num_tokens)> on_layer_ready;

 private:
  absl::Mutex mutex_;
  Record record_ ABSL_GUARDED_BY(mutex_);
};

// `length` token ids below `vocab`, the same for the same seed; prompts of one seed are prefixes of
// each other.
std::vector<int32_t> Prompt(int length, uint32_t seed, int32_t vocab = 90);

SequenceRequest Request(SequenceId id, SequenceMode mode, std::vector<int32_t> prompt,
                        sampling::SamplingParams sampling = {.temperature = 0, .max_tokens = 8});

// Runs one kLocal sequence to its end.
Record RunLocal(Engine& engine, SequenceRequest request);

enum class Pull { kAtTheEnd, kPerLayer };

// One sequence through `prefill` and `decode`; the pages are copied when all is done or as layers
// become ready. Both engines must be of the same model. Returns tokens, reason and usage as the
// client sees them.
Record RunHandoff(Engine& prefill, Engine& decode, SequenceRequest request, Pull pull);

// Waits until no sequence holds memory.
void AwaitAllFree(const Engine& engine);

}  // namespace hyserve::runtime

#endif  // HYSERVE_TESTS_ENGINE_RUNTIME_ENGINE_HARNESS_H_
