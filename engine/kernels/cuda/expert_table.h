// Addresses and tensor maps of all experts' matrices in device memory, for kernels that choose the
// expert on the device. Made at a layer's first use and kept with the matrix of its first expert.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_EXPERT_TABLE_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_EXPERT_TABLE_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/kernels/cuda/moe_forward.h"
#include "engine/kernels/ops.h"
#include "engine/tensor/buffer.h"
#include "engine/tensor/cuda_device.h"

namespace hyserve::kernels::cuda {

// Thread-safe.
class ExpertTableCache {
 public:
  // The table of `experts`, equal in shape, whose first owns this cache. Made anew when the group
  // is another than at the call before. The result is valid for kernels enqueued before the next
  // call. RESOURCE_EXHAUSTED without device memory.
  absl::StatusOr<ExpertMatrices> Get(tensor::CudaDevice& device,
                                     std::span<const std::unique_ptr<PackedMatrix>> experts);

 private:
  bool IsCurrent(std::span<const std::unique_ptr<PackedMatrix>> experts);

  std::mutex mutex_;
  // What the table was made from: pointers compare fast, and say all as long as no matrix has been
  // destroyed since; ids tell a new matrix at an old address.
  std::vector<const PackedMatrix*> members_;
  std::vector<uint64_t> ids_;
  uint64_t num_destroyed_ = 0;
  tensor::Buffer memory_;
  ExpertMatrices matrices_;
};

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_EXPERT_TABLE_H_
