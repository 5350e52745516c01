// Scores of the blocks that one (token, KV head) sees, and their selection, from block maxima.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SELECT_BLOCKS_DECODE_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_SELECT_BLOCKS_DECODE_CUH_

#include <cmath>

#include "engine/kernels/cuda/block_top_k.cuh"
#include "engine/kernels/cuda/split_attention.h"

namespace hyserve::kernels::cuda {

struct ScoreSource {
  float* maxima;   // of block 0, head 0
  int64_t stride;  // from block to block
  int heads;
  float scale;
  const float* lse;  // [heads], shared memory, 16-byte aligned where heads is a multiple of 4

  // Maxima may have been written during this kernel by other SMs: not through L1.
  __device__ float Of(int block) const {
    const float* from = maxima + block * stride;
    float score = -INFINITY;
    if (heads % 4 == 0) {  // then every row begins at a multiple of 16 bytes
#pragma unroll 4
      for (int h = 0; h < heads; h += 4) {
        const float4 m = __ldcg(reinterpret_cast<const float4*>(from + h));
        const float4 off = *reinterpret_cast<const float4*>(lse + h);
        score = fmaxf(score, fmaxf(fmaxf(fmaf(m.x, scale, -off.x), fmaf(m.y, scale, -off.y)),
                                   fmaxf(fmaf(m.z, scale, -off.z), fmaf(m.w, scale, -off.w))));
      }
    } else {
      for (int h = 0; h < heads; ++h) {
        score = fmaxf(score, fmaf(__ldcg(from + h), scale, -lse[h]));
      }
    }
    return score;
  }
};

// Where the results of one (token, KV head) go; null: not wanted.
struct SelectionTarget {
  float* scores;
  int64_t scores_stride;
  int32_t* selection;
  int selected;

  static __device__ SelectionTarget Of(const SplitAttentionArgs& args, int row, int kv_head) {
    const int64_t place = static_cast<int64_t>(row) * args.num_kv_heads + kv_head;
    return {args.block_scores == nullptr ? nullptr
                                         : args.block_scores + place * args.scores_stride,
            args.scores_stride,
            args.selection == nullptr ? nullptr : args.selection + place * args.selected_blocks,
            args.selected_blocks};
  }
  template <int kThreads>
  __device__ void PadScores(int count) const {
    if (scores == nullptr) return;
    for (int64_t i = count + threadIdx.x; i < scores_stride; i += kThreads) scores[i] = -INFINITY;
  }
};

// All of it by one block; count <=
// kThreads * kKeys.
template <int kThreads, int kKeys, typename Barrier>
__device__ void SelectBlocks(const ScoreSource& source, const SelectionTarget& target, int count,
                             TopKShared& shared) {
  target.PadScores<kThreads>(count);
  uint32_t keys[kKeys];
#pragma unroll
  for (int j = 0; j < kKeys; ++j) {
    const int block = j * kThreads + threadIdx.x;
    keys[j] = 0;
    if (block >= count) continue;
    const float score = source.Of(block);
    keys[j] = OrderedKey(score);
    if (target.scores != nullptr) target.scores[block] = score;
  }
  if (target.selection == nullptr) return;
  BlockTopK<kThreads, kKeys, Barrier>([&](int j) { return keys[j]; }, count, target.selected,
                                      target.selection, shared);
}

// Scores of blocks [begin, end); they replace the maxima of head 0.
template <int kThreads>
__device__ void ScoreBlocks(const ScoreSource& source, const SelectionTarget& target, int begin,
                            int end) {
  for (int block = begin + threadIdx.x; block < end; block += kThreads) {
    const float score = source.Of(block);
    source.maxima[block * source.stride] = score;
    if (target.scores != nullptr) target.scores[block] = score;
  }
}

// Selection from scores that ScoreBlocks left, in this or another block. kKeys 0: any count.
template <int kThreads, int kKeys, typename Barrier>
__device__ void SelectScored(const ScoreSource& source, const SelectionTarget& target, int count,
                             TopKShared& shared) {
  const auto read = [&](int j) {
    const int block = j * kThreads + threadIdx.x;
    return block < count ? OrderedKey(__ldcg(source.maxima + block * source.stride)) : 0;
  };
  if constexpr (kKeys > 0) {
    uint32_t keys[kKeys];
#pragma unroll
    for (int j = 0; j < kKeys; ++j) keys[j] = read(j);
    BlockTopK<kThreads, kKeys, Barrier>([&](int j) { return keys[j]; }, count, target.selected,
                                        target.selection, shared);
  } else {
    BlockTopK<kThreads, 0, Barrier>(read, count, target.selected, target.selection, shared);
  }
}

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SELECT_BLOCKS_DECODE_CUH_
