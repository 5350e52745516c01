// Many small copies within a device as one launch.
#ifndef HYSERVE_KV_TRANSFER_CUDA_COPY_PARTS_H_
#define HYSERVE_KV_TRANSFER_CUDA_COPY_PARTS_H_

#include <cuda_runtime_api.h>

#include <cstddef>

namespace hyserve::kv_transfer::cuda {

struct CopyPart {
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;  // > 0
};
inline constexpr int kMaxCopyParts = 128;

// Addresses and sizes are multiples of 16: else CopyPartsLaunch is not for them.
bool CopyPartsFit(const CopyPart* parts, int count);
// `count`: 1 .. kMaxCopyParts parts that do not overlap.
cudaError_t CopyPartsLaunch(const CopyPart* parts, int count, cudaStream_t stream);

}  // namespace hyserve::kv_transfer::cuda

#endif  // HYSERVE_KV_TRANSFER_CUDA_COPY_PARTS_H_
