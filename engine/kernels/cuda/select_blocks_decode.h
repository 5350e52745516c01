// The second kernel of split attention (split_attention.h): merges the splits of every query row
// into out, and scores and selects blocks from the block maxima.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SELECT_BLOCKS_DECODE_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_SELECT_BLOCKS_DECODE_H_

#include <cuda_runtime_api.h>

#include "engine/kernels/cuda/split_attention.h"

namespace hyserve::kernels::cuda {

// After the first kernel with the same args on the same stream. Overwrites block_maxima.
cudaError_t LaunchMergeSplits(const SplitAttentionArgs& args, cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SELECT_BLOCKS_DECODE_H_
