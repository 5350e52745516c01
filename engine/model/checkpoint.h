// The tensors of a checkpoint directory: model.safetensors, or shards named by
// model.safetensors.index.json. A TensorSource that checks everything before the first byte of a
// weight is read.
#ifndef HYSERVE_ENGINE_MODEL_CHECKPOINT_H_
#define HYSERVE_ENGINE_MODEL_CHECKPOINT_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/config.h"
#include "engine/model/digest.h"
#include "engine/model/safetensors.h"
#include "engine/model/tensor_source.h"

namespace hyserve::model {

class Checkpoint : public TensorSource {
 public:
  // Opens the files and compares them with `config`: every tensor of the plan must be there once,
  // with its shape and a dtype of F32, BF16 or F16, and nothing else. Shards must lie in
  // `directory` itself. Errors: NOT_FOUND (no weights), INVALID_ARGUMENT (one line per fault, at
  // most 20), or those of the files.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory,
                                                          const ModelConfig& config,
                                                          bool check_finite);

  tensor::DType DTypeOf(const TensorSpec& spec) const override;
  // INVALID_ARGUMENT "<file>: tensor "...": weights contain 3 NaN or infinite values" when asked to
  // check; DATA_LOSS when the file changed.
  absl::Status Read(const TensorSpec& spec, void* out) override;
  // REQUIRES: every tensor of the plan has been read.
  absl::StatusOr<std::string> Finish() override;

 private:
  struct Place {
    const SafetensorsFile* file = nullptr;
    const TensorEntry* entry = nullptr;
    Sha256Value digest = {};
  };

  Checkpoint(const ModelConfig& config, bool check_finite)
      : config_(config), check_finite_(check_finite) {}
  absl::Status AddFile(std::unique_ptr<SafetensorsFile> file);
  absl::Status OpenShards(const std::string& directory);
  absl::Status CompareWithPlan() const;

  const ModelConfig config_;
  const bool check_finite_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Place, std::less<>> places_;
};

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_CHECKPOINT_H_
