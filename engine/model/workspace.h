// Device memory for the activations of a step, reused by every layer and every step.
//
// Each slot grows to the largest step seen, or reserved (reserve.h), and stays. Not thread-safe.
#ifndef HYSERVE_ENGINE_MODEL_WORKSPACE_H_
#define HYSERVE_ENGINE_MODEL_WORKSPACE_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tensor/buffer.h"
#include "engine/tensor/device.h"
#include "engine/tensor/tensor.h"

namespace hyserve::model {

class Workspace {
 public:
  enum Slot {
    kHidden,      // residual stream
    kNormed,      // normalised input of a sub-layer
    kDelta,       // output of a sub-layer, before it is added
    kProjection,  // q, k, v and gates of the rows
    kQuery,       // q of a pruned last layer
    kAttention,   // attention output, heads in columns
    kGateUp,      // of the dense FFN
    kActivated,
    kRouter,
    kStepK,  // keys and values of this step's rows of a window layer, cache dtype
    kStepV,
    kChosenHidden,  // the same for the rows whose logits are wanted
    kChosenNormed,
    kChosenDelta,
    kLogits,
    kSampledRows,
    kNumSlots
  };

  explicit Workspace(tensor::Device& device) : device_(device) {}

  // A contiguous matrix in the slot. Its contents are undefined, views of the slot taken before are
  // invalid. RESOURCE_EXHAUSTED when the device lacks the memory.
  absl::StatusOr<tensor::TensorView> Get(Slot slot, tensor::DType dtype, int64_t rows,
                                         int64_t cols);

  // Selection of one oracle: `count` int32. Its own buffer per oracle slot, because a later layer
  // may read any of them.
  absl::StatusOr<int32_t*> Selection(int oracle, int64_t count);

 private:
  absl::Status Grow(tensor::Buffer& buffer, size_t bytes);

  tensor::Device& device_;
  std::array<tensor::Buffer, kNumSlots> buffers_;
  std::vector<tensor::Buffer> selections_;
};

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_WORKSPACE_H_
