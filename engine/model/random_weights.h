// Random weights of any config, without a file: for benchmarks, tests and `hyserve model make`.
//
// Counter-based: element i of a tensor depends on the seed, the tensor's name and i alone, so any
// part can be drawn by any thread, in any order, with the same result. Values are
// close to normal (the sum of four uniform numbers), with the mean and deviation of the tensor
// plan.
#ifndef HYSERVE_ENGINE_MODEL_RANDOM_WEIGHTS_H_
#define HYSERVE_ENGINE_MODEL_RANDOM_WEIGHTS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "engine/model/config.h"
#include "engine/model/tensor_source.h"

namespace hyserve::model {

class RandomWeights : public TensorSource {
 public:
  // `dtype`: kF32, kBF16 or kF16 of every tensor. REQUIRES: CheckModelConfig passes.
  RandomWeights(const ModelConfig& config, tensor::DType dtype, uint64_t seed)
      : config_(config), dtype_(dtype), seed_(seed) {}

  tensor::DType DTypeOf(const TensorSpec& spec) const override { return dtype_; }
  absl::Status Read(const TensorSpec& spec, void* out) override;
  absl::StatusOr<std::string> Finish() override;

 private:
  const ModelConfig config_;
  const tensor::DType dtype_;
  const uint64_t seed_;
};

// Makes a checkpoint of random weights: <directory>/config.json and model.safetensors, with the
// values that RandomWeights gives for the same arguments. The directory is created when it does not
// exist; files in it are not overwritten (ALREADY_EXISTS). Memory: one tensor.
absl::Status WriteCheckpoint(const ModelConfig& config, uint64_t seed, tensor::DType dtype,
                             const std::string& directory);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_RANDOM_WEIGHTS_H_
