// One model on one device, running continuously: the engine loop.
//
// The engine owns the device, the model, the KV pool, the allocators, the prefix cache and one
// thread, the engine loop, which alone touches them. Every public function is thread-safe, never
// blocks on the loop and only enqueues a command (the queue is bounded: RESOURCE_EXHAUSTED when
// full). Answers come as calls on the request's EventSink, on the engine thread: a sink must not
// block and must not call back into the engine synchronously expecting an answer (enqueueing
// commands is fine).
//
// One kind of sequence serves all roles:
//   kPrefill  computes the prompt, samples token 1, then keeps its blocks and slab pinned until
//             Release(): the hand-off's source.
//   kDecode   Reserve() gives blocks and a slab whose content a transfer fills; Resume() says that
//             it arrived, with token 1; generation continues at token 2.
//   kLocal    prompt and generation in this engine (single-process mode).
// Memory of a sequence is reserved for prompt + max_tokens when it is admitted (kPrefill: the
// prompt only), so a running sequence never runs out of blocks.
//
// Life of a handle: Submit/Reserve ... OnFinished (exactly once) ... and, for kPrefill and for
// kDecode before Resume, blocks stay owned until Release(). After OnFinished and Release nothing is
// called on the sink any more.
#ifndef HYSERVE_ENGINE_RUNTIME_ENGINE_H_
#define HYSERVE_ENGINE_RUNTIME_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/attention/kv_pool.h"
#include "engine/kv_cache/kv_layout.h"
#include "engine/model/model.h"
#include "engine/sampling/finish_reason.h"
#include "engine/sampling/sampling_params.h"

namespace hyserve::runtime {

// Begins the message of Engine::health().
inline constexpr char kDeviceFailed[] = "device_failed: ";

using SequenceId = uint64_t;  // chosen by the caller, unique among live sequences of this engine

enum class SequenceMode : uint8_t { kPrefill, kDecode, kLocal };

struct SequenceRequest {
  SequenceId id = 0;
  SequenceMode mode = SequenceMode::kLocal;
  std::vector<int32_t> prompt;  // 1 .. max_context tokens
  sampling::SamplingParams sampling;
  int32_t num_prompt_logprobs = -1;  // -1: none; prefill and local only
  bool use_prefix_cache = true;
  std::string cache_scope;  // prefixes are shared only within a scope
  absl::Time deadline = absl::InfiniteFuture();  // checked before every step
  // The last tokens of `prompt` that an earlier attempt generated: they count as generated for the
  // penalties, and random numbers go on behind them. max_tokens and min_tokens are of this attempt.
  int32_t prior_generated_tokens = 0;
};

// Blocks and slab of a sequence, indices into the engine's KvPool.
struct KvBlocks {
  std::vector<int32_t> blocks;  // NumBlocks(prompt tokens) for the hand-off; logical order
  int32_t slab = -1;
};

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;  // restored from the prefix cache
  int32_t generated_tokens = 0;
};

class EventSink {
 public:
  virtual ~EventSink() = default;
  // kPrefill and kLocal: memory is reserved, computing begins. Blocks of the prompt, of which the
  // first cached_tokens / 64 are final already (in every layer).
  virtual void OnAdmitted(const KvBlocks& kv, int32_t cached_tokens) {}
  // kDecode: the answer to Reserve(), or why not (then OnFinished is not called).
  virtual void OnReserved(const absl::StatusOr<KvBlocks>& kv) {}
  // kPrefill: the prompt's tokens [0, num_tokens) are final in this full layer. Called per chunk
  // and layer, while later layers still compute. A last, partly filled block is final when
  // num_tokens is the prompt's length.
  virtual void OnLayerReady(int layer_slot, int32_t num_tokens) {}
  // Progress of the prompt after each chunk (kPrefill, kLocal).
  virtual void OnPrefillProgress(int32_t computed_tokens) {}
  // Log-probabilities of prompt token i (from 1) given the tokens before it; asked for by
  // num_prompt_logprobs; in order, possibly in several calls.
  virtual void OnPromptLogprobs(int32_t first_index,
                                std::vector<sampling::SampledToken> logprobs) {}
  // kPrefill: the slab is final and the prompt computed; called before OnTokens of token 1.
  // selection as in model::StepOutput::selections.
  virtual void OnPrefillDone(std::vector<int32_t> selection) {}
  // Generated tokens in order; first_index counts generated tokens from 0.
  virtual void OnTokens(int32_t first_index, const std::vector<sampling::SampledToken>& tokens) {}
  // The end. status is OK for stop and length; CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED
  // (never fits, or the device's memory did not suffice for a step), UNAVAILABLE (Engine::health)
  // or an engine error otherwise.
  virtual void OnFinished(const absl::Status& status, sampling::FinishReason reason,
                          const Usage& usage) {}
};

struct EngineOptions {
  tensor::DeviceOptions device;
  std::string model_directory;     // a checkpoint, or
  std::string random_preset;       // random weights of a preset
  tensor::DType random_dtype = tensor::DType::kBF16;
  uint64_t random_seed = 0;
  model::ModelOptions model;
  int64_t kv_memory_bytes = int64_t{1} << 30;  // blocks and slabs together, or
  double kv_memory_share = 0;  // > 0: this part of what the device has free beside weights and
                               // workspaces, but all save 1 GiB at most
  int64_t max_context_tokens = 0;              // 0: the model's max_position_embeddings
  int32_t max_sequences = 64;                  // also the number of slabs beside the cache's
  int32_t chunk_tokens = 1024;                 // prompt rows per step, a multiple of 64
  int32_t max_queue = 4096;                    // waiting sequences
  bool prefix_cache = true;
  int32_t snapshot_interval_tokens = 4096;     // restore points inside a prompt; multiple of 64
  int32_t snapshot_slabs = 16;                 // slabs for restore points
};

// Loads are instantaneous counts, readable from any thread.
struct EngineLoad {
  int64_t step_counter = 0;           // watermark: grows while there is work
  absl::Time last_step = absl::InfinitePast();
  int32_t waiting_sequences = 0;
  int64_t waiting_tokens = 0;         // prompt tokens not yet computed, waiting and running
  int32_t running_sequences = 0;
  int64_t context_tokens = 0;         // cached tokens of running sequences
  int64_t blocks_total = 0, blocks_free = 0, blocks_cached = 0, blocks_used = 0;
  int64_t slabs_total = 0, slabs_free = 0, slabs_cached = 0, slabs_used = 0;
  // Moving averages, 0 before the first step of the kind.
  double prefill_tokens_per_second = 0;
  double decode_step_ms = 0;
};

// Cumulative counters and per-step observations for metrics; called on the engine thread once per
// step, must not block.
struct StepStats {
  int32_t prefill_tokens = 0;
  int32_t decode_tokens = 0;
  int32_t num_sequences = 0;
  double seconds = 0;
  int64_t prefix_query_tokens = 0;  // prompt tokens looked up in this step
  int64_t prefix_hit_tokens = 0;
  int32_t preemptions = 0;
};
using StepObserver = std::function<void(const StepStats&)>;

class Engine {
 public:
  // Loads the model and starts the loop. Errors as Model::Load, PlanKvMemory (kv_budget.h),
  // KvPool::Create, Device::Create; and INVALID_ARGUMENT for options.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options,
                                                        StepObserver observer);
  // Stops the loop; live sequences finish with CANCELLED first.
  virtual ~Engine() = default;

  virtual const model::ModelConfig& config() const = 0;
  virtual const kv_cache::KvLayout& layout() const = 0;
  virtual int64_t max_context_tokens() const = 0;
  // For registering memory with a transport and for its copies; see kv_pool.h for who may touch
  // what.
  virtual const attention::KvPool& kv_pool() const = 0;
  virtual EngineLoad load() const = 0;
  virtual std::string Description() const = 0;  // device, model, parameters: for logs
  // OK, or UNAVAILABLE "device_failed: ..." once the device is lost: it failed in a step and could
  // not be synchronised afterwards. Then every sequence has ended with this status and every new
  // one is refused with it; memory still is released. It does not become good again.
  virtual absl::Status health() const = 0;

  // Prefill and local sequences. INVALID_ARGUMENT (prompt empty, id out of vocabulary, too long,
  // sampling rules), RESOURCE_EXHAUSTED (queue full, or can never fit), ALREADY_EXISTS. After an
  // error the sink is not called.
  virtual absl::Status Submit(SequenceRequest request, std::shared_ptr<EventSink> sink) = 0;
  // kDecode: reserve memory for prompt and generation. Answer: OnReserved. A reservation that
  // cannot be met now waits until `deadline`.
  virtual absl::Status Reserve(SequenceRequest request, std::shared_ptr<EventSink> sink) = 0;
  // kDecode: the KV has arrived, generation continues after `first_token` (index 0, already counted
  // and already sent to the client by the prefill worker).
  virtual void Resume(SequenceId id, int32_t first_token) = 0;
  // Ends a sequence; OnFinished(CANCELLED). No effect on an unknown id. A kDecode sequence that was
  // not resumed and a kPrefill sequence keep their blocks until Release().
  virtual void Cancel(SequenceId id) = 0;
  // Gives blocks and slab of a kPrefill sequence, or of a kDecode sequence that was not resumed,
  // back (to the prefix cache or the free list). REQUIRES: no transfer touches them any more.
  // Idempotent; cancels if still running.
  virtual void Release(SequenceId id) = 0;
};

}  // namespace hyserve::runtime

#endif  // HYSERVE_ENGINE_RUNTIME_ENGINE_H_
