// Host memory for the tensors that become one matrix, reused from matrix to matrix.
#ifndef HYSERVE_ENGINE_MODEL_HOST_STACK_H_
#define HYSERVE_ENGINE_MODEL_HOST_STACK_H_

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/tensor_source.h"
#include "engine/tensor/tensor.h"

namespace hyserve::model {

// Not thread-safe.
class HostStack {
 public:
  // Reads the tensors into host memory and returns a view of each, all of one dtype: that of the
  // source, or f32 when asked for or when the tensors differ. The views live until the next Read.
  // Errors: the source's, and RESOURCE_EXHAUSTED.
  absl::StatusOr<std::vector<tensor::TensorView>> Read(
      TensorSource& source, const std::vector<const TensorSpec*>& specs, bool as_f32);
  // What Read would return, without data.
  static std::vector<tensor::TensorView> Shapes(const TensorSource& source,
                                                const std::vector<const TensorSpec*>& specs,
                                                bool as_f32);

 private:
  // 64-byte aligned memory that only grows.
  class Memory {
   public:
    // Null when there is not enough.
    char* Reserve(size_t bytes);

   private:
    struct Free {
      void operator()(void* memory) const { std::free(memory); }
    };
    std::unique_ptr<char, Free> memory_;
    size_t bytes_ = 0;
  };

  Memory stack_;
  Memory raw_;  // one tensor before it is converted
};

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_HOST_STACK_H_
