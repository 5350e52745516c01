// Split attention with the copy engine and wgmma, for bf16 pages of the common head sizes. Made for
// decode (few rows, long contexts): bound by the bandwidth of the pages.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_DECODE_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_DECODE_H_

#include <cuda_runtime_api.h>

#include "engine/kernels/cuda/split_attention.h"

namespace hyserve::kernels::cuda {

// Query rows of a tile.
inline constexpr int kDecodeTileRows = 64;

// 64/64, 128/128, 192/128 and 256/256.
bool DecodeSupports(int head_dim, int v_head_dim);

// Enqueues the first kernel (see split_attention.h). cudaErrorInvalidValue: unsupported head sizes.
cudaError_t LaunchDecodeAttention(const SplitAttentionArgs& args, int num_sms,
                                  cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_DECODE_H_
