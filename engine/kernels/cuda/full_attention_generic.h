// Split attention for any head sizes up to 256, without tensor cores: what the fast kernels do not
// take.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_GENERIC_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_GENERIC_H_

#include <cuda_runtime_api.h>

#include "engine/kernels/cuda/split_attention.h"

namespace hyserve::kernels::cuda {

// Query rows of a tile.
inline constexpr int kGenericTileRows = 32;
inline constexpr int kGenericMostDim = 256;

// Enqueues the first kernel (see split_attention.h).
cudaError_t LaunchGenericAttention(const SplitAttentionArgs& args, int num_sms,
                                   cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_GENERIC_H_
