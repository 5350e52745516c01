// From the raw block maxima and LSEs of a prefill launch to the selected blocks of every row and KV
// head: score = max over the group's heads of (scale * raw - lse); the best `selected_blocks` by
// (score descending, block ascending), written in ascending order, -1 where fewer blocks are
// visible. Plain types, no checks.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SELECT_BLOCKS_PREFILL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_SELECT_BLOCKS_PREFILL_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/kernels/cuda/full_attention_prefill_kernel.h"

namespace hyserve::kernels::cuda {

struct SelectBlocksLaunch {
  PrefillSegment segments[kMaxPrefillSegments];
  int group_begin[kMaxPrefillSegments] = {};  // filled by the launch function
  int num_segments = 0;
  int num_kv_heads = 0;
  int heads_per_group = 0;
  float scale = 0.0f;
  const float* raw_scores = nullptr;
  const float* lse = nullptr;
  int32_t* selection = nullptr;  // [rows, num_kv_heads, selected_blocks]
  int selected_blocks = 0;       // 1 .. 64
  // For tests: [rows, num_kv_heads, scores_stride], -inf where a block is not visible; or null.
  float* block_scores = nullptr;
  int64_t scores_stride = 0;
};

cudaError_t LaunchSelectBlocks(SelectBlocksLaunch launch, int num_sms, cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SELECT_BLOCKS_PREFILL_H_
