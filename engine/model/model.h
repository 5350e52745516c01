// A HySparse v1 net on one device: weights and the forward pass of one step.
//
// Owned by the engine; Forward is called by the engine loop's thread only. Weights are immutable
// after loading. Cached state is not the model's: it is given per step (KvPool).
#ifndef HYSERVE_ENGINE_MODEL_MODEL_H_
#define HYSERVE_ENGINE_MODEL_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/attention/kv_pool.h"
#include "engine/kernels/sample_tokens.h"
#include "engine/kv_cache/kv_layout.h"
#include "engine/model/config.h"
#include "engine/tensor/device.h"

namespace hyserve::model {

// Rows of one sequence in a step.
struct SequenceRows {
  std::span<const int32_t> token_ids;  // the new rows; all in [0, vocab_size)
  int32_t first_position = 0;          // tokens of the sequence that are cached already
  std::span<const int32_t> blocks;     // blocks of the sequence, enough for first_position + rows
  int32_t slab = -1;                   // its slab; -1 when the model has no window layers
  // Rows whose logits are wanted: none, the last, or every one (prompt logprobs: turns row pruning
  // of the last layer off for this sequence).
  enum class Logits : uint8_t { kNone, kLast, kAll } logits = Logits::kNone;
  // One for each of these rows: a token is chosen, or a given one scored, on the device
  // (StepOutput::sampled). Empty: the logits themselves are copied, for tests and reports. Either
  // all sequences of a step that want logits have samples or none.
  std::span<const kernels::SampleRow> samples = {};
  // Ask for the selection of the last row (hand-off self-check); see StepOutput::selections.
  bool want_selection = false;
};

struct StepInput {
  std::vector<SequenceRows> sequences;
  // Of all samples, which refer to them by their position here.
  std::span<const kernels::LogitEdit> edits;
  // Called on the engine thread, in the order of the layers, once the keys and values of this
  // step's rows of a full layer are final in the pages, while later layers still compute.
  // `layer_slot` is the position in KvLayout::full_layers. May be null. Must not block.
  std::function<void(int layer_slot)> on_layer_kv_ready;
};

struct StepOutput {
  // Rows of logits are in the order of the sequences' rows; those of sequence s are
  // [logit_row_begin[s], logit_row_begin[s + 1]).
  std::vector<int32_t> logit_row_begin;
  std::vector<kernels::SampledRow> sampled;  // per row of logits, where samples were given, or
  std::vector<float> logits;                 // f32 [rows of logits, vocab_size]
  // Per sequence that wanted it: [oracle slots][kv heads][selected_blocks] int32 ascending, padded
  // with -1; empty otherwise.
  std::vector<std::vector<int32_t>> selections;
};

struct ModelOptions {
  tensor::DType kv_dtype = tensor::DType::kBF16;  // kBF16 or kF32
  bool check_finite = true;                       // refuse NaN and infinity in weights
};

// Bounds over all steps.
struct StepLimits {
  int64_t num_rows = 0;        // of all sequences of a step together
  int64_t num_sequences = 0;   // of a step
  int64_t context_tokens = 0;  // of a sequence, its rows of the step included
};

class Model {
 public:
  // Loads config.json and model.safetensors (or shards with model.safetensors.index.json).
  // Every fault of the files is INVALID_ARGUMENT (or NOT_FOUND, DATA_LOSS) with file, tensor or key
  // and reason; RESOURCE_EXHAUSTED when memory does not suffice: at once, before a weight is read,
  // where the device says how much it has free.
  static absl::StatusOr<std::unique_ptr<Model>> Load(tensor::Device& device,
                                                     const std::string& directory,
                                                     const ModelOptions& options);
  // Random weights (seeded, scaled so that activations stay of order 1), nothing on disk.
  static absl::StatusOr<std::unique_ptr<Model>> Random(tensor::Device& device,
                                                       const ModelConfig& config,
                                                       tensor::DType weight_dtype, uint64_t seed,
                                                       const ModelOptions& options);
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  virtual const kv_cache::KvLayout& layout() const = 0;
  virtual size_t weight_bytes() const = 0;
  virtual int64_t num_parameters() const = 0;

  // Brings all memory beside weights and KV pool to the size of the largest step: afterwards steps
  // within the limits allocate nothing on the device (on the CPU the ops' own scratch memory still
  // grows), and the addresses that recorded steps know stay. Not counted: logits that are copied
  // themselves, and edits beyond a million (step_results.h). RESOURCE_EXHAUSTED.
  virtual absl::Status ReserveWorkspaces(const StepLimits& limits) = 0;

  // One step over ragged rows of several sequences. On success the pages and rings of every
  // sequence hold its rows. On an error (a device's) nothing is promised of the sequences of this
  // step, others are untouched. RESOURCE_EXHAUSTED: memory did not suffice, later steps may
  // succeed.
  virtual absl::Status Forward(const StepInput& input, attention::KvPool& pool,
                               StepOutput* output) = 0;
};

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_MODEL_H_
