// Merging the partial results of a query row's splits. The order of every sum is fixed by the
// number of the split alone: split i belongs to group i mod 8, groups add up in ascending order of
// i, and the sums of the groups in ascending order; so whoever merges gives the same bits.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_MERGE_SPLITS_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_MERGE_SPLITS_CUH_

#include <cmath>

#include "engine/kernels/cuda/hopper/warpgroup.h"
#include "engine/kernels/cuda/split_attention.h"

namespace hyserve::kernels::cuda {

inline constexpr int kMergeGroups = 8;
inline constexpr int kRowsPerWarp = 4;  // 8 groups times 4 rows are a warp
inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kLn2 = 0.69314718055994531f;

// The partial results of one KV head of one sequence.
struct PartialRows {
  const float* out;    // [splits][rows][v_dim]
  const float* state;  // [splits][rows][2]
  int splits;
  int rows;
  float scale_log2;

  // Other SMs wrote them, perhaps during this kernel: not through L1.
  __device__ float2 State(int split, int row) const {
    return __ldcg(reinterpret_cast<const float2*>(state) + static_cast<int64_t>(split) * rows +
                  row);
  }
  __device__ const float* Out(int split, int row, int v_dim) const {
    return out + (static_cast<int64_t>(split) * rows + row) * v_dim;
  }
  __device__ float Weight(float m, float merged_m) const {
    return hopper::Exp2((m - merged_m) * scale_log2);
  }
};

struct MergedState {
  float m;  // largest q . k
  float l;  // sum of exp(scale (q . k - m))

  __device__ float LogSumExp(float scale) const { return m * scale + log2f(l) * kLn2; }
};

// By one warp: lane i gets the state of row first_row + i % 4 (of the last row where that is
// beyond).
__device__ inline MergedState MergeStates(const PartialRows& partial, int first_row) {
  const int lane = threadIdx.x % 32;
  const int group = lane / kRowsPerWarp;
  const int row = min(first_row + lane % kRowsPerWarp, partial.rows - 1);
  constexpr int kCached = 8;
  float2 cached[kCached];
#pragma unroll
  for (int t = 0; t < kCached; ++t) {
    const int i = group + t * kMergeGroups;
    cached[t] = {-INFINITY, 0.0f};
    if (i < partial.splits) cached[t] = partial.State(i, row);
  }
  float m = -INFINITY;
#pragma unroll
  for (int t = 0; t < kCached; ++t) m = fmaxf(m, cached[t].x);
#pragma unroll 4
  for (int i = group + kCached * kMergeGroups; i < partial.splits; i += kMergeGroups) {
    m = fmaxf(m, partial.State(i, row).x);
  }
#pragma unroll
  for (int step = kRowsPerWarp; step < 32; step *= 2) {
    m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, step));
  }
  float own = 0.0f;
#pragma unroll
  for (int t = 0; t < kCached; ++t) {
    if (group + t * kMergeGroups >= partial.splits) continue;
    own = fmaf(cached[t].y, partial.Weight(cached[t].x, m), own);
  }
#pragma unroll 4
  for (int i = group + kCached * kMergeGroups; i < partial.splits; i += kMergeGroups) {
    const float2 state = partial.State(i, row);
    own = fmaf(state.y, partial.Weight(state.x, m), own);
  }
  float l = 0.0f;
#pragma unroll
  for (int g = 0; g < kMergeGroups; ++g) {
    l += __shfl_sync(0xffffffff, own, g * kRowsPerWarp + lane % kRowsPerWarp);
  }
  return {m, l};
}

// The same by one warp for one row of at most 32 * kRounds splits: the same bits, in every lane;
// weight[r]: of split lane + 32 r, 0 beyond the splits.
template <int kRounds>
__device__ MergedState MergeFewStates(const PartialRows& partial, int row,
                                      float (&weight)[kRounds]) {
  const int lane = threadIdx.x % 32;
  float2 state[kRounds];
  float m = -INFINITY;
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    state[r] = {-INFINITY, 0.0f};
    if (lane + 32 * r < partial.splits) state[r] = partial.State(lane + 32 * r, row);
    m = fmaxf(m, state[r].x);
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, step));
  }
  float own = 0.0f;
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    weight[r] = lane + 32 * r < partial.splits ? partial.Weight(state[r].x, m) : 0.0f;
#pragma unroll
    for (int t = 0; t < 32 / kMergeGroups; ++t) {
      const int i = lane % kMergeGroups + t * kMergeGroups;
      const float other_l = __shfl_sync(0xffffffff, state[r].y, i);
      const float other_weight = __shfl_sync(0xffffffff, weight[r], i);
      if (i + 32 * r < partial.splits) own = fmaf(other_l, other_weight, own);
    }
  }
  float l = 0.0f;
#pragma unroll
  for (int g = 0; g < kMergeGroups; ++g) l += __shfl_sync(0xffffffff, own, g);
  return {m, l};
}

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_MERGE_SPLITS_CUH_
