// Where weights come from: a checkpoint (checkpoint.h) or a random generator (random_weights.h).
#ifndef HYSERVE_ENGINE_MODEL_TENSOR_SOURCE_H_
#define HYSERVE_ENGINE_MODEL_TENSOR_SOURCE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/tensor_plan.h"
#include "engine/tensor/tensor.h"

namespace hyserve::model {

// Not thread-safe.
class TensorSource {
 public:
  virtual ~TensorSource() = default;

  // kF32, kBF16 or kF16. REQUIRES: the tensor belongs to the source's config.
  virtual tensor::DType DTypeOf(const TensorSpec& spec) const = 0;
  // The tensor's elements, row-major, into `out`, which has room for them in DTypeOf(spec).
  virtual absl::Status Read(const TensorSpec& spec, void* out) = 0;
  // After all tensors have been read: checks that they all came from the same state of the source
  // and returns the model digest (digest.h).
  virtual absl::StatusOr<std::string> Finish() = 0;
};

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_TENSOR_SOURCE_H_
