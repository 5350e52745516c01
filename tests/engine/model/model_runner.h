// Runs a model over sequences with a pool of its own, as the engine would, for the tests here.
#ifndef HYSERVE_TESTS_ENGINE_MODEL_MODEL_RUNNER_H_
#define HYSERVE_TESTS_ENGINE_MODEL_MODEL_RUNNER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/attention/kv_pool.h"
#include "engine/model/model.h"
#include "engine/tensor/device.h"

namespace hyserve::model {

// Logits of rows, and selections of those rows at which a step ended.
struct Trace {
  std::vector<std::vector<float>> logits;  // [row][vocab]
  // [row]: [oracle slots][kv heads][selected_blocks], empty where no step ended.
  std::vector<std::vector<int32_t>> selections;
};

class ModelRunner {
 public:
  struct Sequence {
    std::vector<int32_t> blocks;
    int32_t slab = -1;
    int32_t length = 0;
  };

  // Fails the test when something cannot be made.
  ModelRunner(std::unique_ptr<tensor::Device> device, std::unique_ptr<Model> model,
              int64_t num_blocks, int64_t num_slabs);
  static ModelRunner Load(const std::string& directory, tensor::DType kv_dtype,
                          int64_t num_blocks = 64, int64_t num_slabs = 8, int num_threads = 2);
  // With products of bf16 weights and f32 activations in f32, on the fastest instruction set of
  // this machine that does them so (avx512_bf16 rounds activations to bf16).
  static ModelRunner LoadExact(const std::string& directory, tensor::DType kv_dtype);
  // On the first GPU, with a bf16 cache.
  static ModelRunner LoadOnCuda(const std::string& directory);
  static ModelRunner Random(const ModelConfig& config, tensor::DType weight_dtype,
                            tensor::DType kv_dtype, uint64_t seed = 1,
                            const std::string& device_name = "cpu");

  // Blocks are handed out in a scattered order, so that a mistake in paging shows.
  Sequence NewSequence(int64_t max_tokens);

  // One step over one sequence, with the logits of every row.
  StepOutput Step(Sequence& sequence, std::span<const int32_t> ids,
                  SequenceRows::Logits logits = SequenceRows::Logits::kAll,
                  bool want_selection = true);
  // One step over one sequence; the token with the largest logit of the last row, -1 when it gave
  // none. Its logits stay on the device.
  int32_t GreedyStep(Sequence& sequence, std::span<const int32_t> ids);
  // Rows of a sequence, for a step over several; advances its length.
  static SequenceRows Rows(Sequence& sequence, std::span<const int32_t> ids,
                           SequenceRows::Logits logits);
  StepOutput Forward(const StepInput& input);

  // All of `ids` in steps of `chunk` rows.
  Trace Run(Sequence& sequence, std::span<const int32_t> ids, int chunk);

  Model& model() { return *model_; }
  attention::KvPool& pool() { return *pool_; }
  tensor::Device& device() { return *device_; }

 private:
  std::unique_ptr<tensor::Device> device_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<attention::KvPool> pool_;
  std::vector<int32_t> free_blocks_;
  int32_t next_slab_ = 0;
};

// ||out - ref|| / ||ref||.
double RelativeError(std::span<const float> out, std::span<const float> ref);

// `count` token ids below `vocab`, the same for the same seed.
std::vector<int32_t> RandomIds(int64_t count, int vocab, uint64_t seed);

}  // namespace hyserve::model

#endif  // HYSERVE_TESTS_ENGINE_MODEL_MODEL_RUNNER_H_
