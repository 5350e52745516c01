#include "engine/kernels/cuda/select_blocks_decode.h"

#include <cuda_bf16.h>

#include <algorithm>

#include "engine/kernels/cuda/merge_splits.cuh"
#include "engine/kernels/cuda/overlap.cuh"
#include "engine/kernels/cuda/select_blocks_decode.cuh"

namespace hyserve::kernels::cuda {
namespace {

constexpr int kPieceDims = 128;  // output dims of a row that are merged together
constexpr int kPieceLanes = kPieceDims / 32;
constexpr int kFewSplits = 32;
constexpr int kFewPieces = 1024;
constexpr int kMergeWarps = 16;  // of a piece of many splits: two for every group

// What the blocks of a launch are: per token, `parts` for every KV head (block selection), then
// `merges` for all heads (output).
struct MergeGrid {
  int parts;
  int part_blocks;  // scored by one part
  int merges;
  int pieces;  // of a row
};

// A piece of one row by one warp, lane i holding dims i, i + 32, ...
__device__ void MergeFewSplits(const PartialRows& partial, int row, int dim, int first_dim,
                               __nv_bfloat16* out) {
  const int lane = threadIdx.x % 32;
  float weight[1];
  const MergedState merged = MergeFewStates(partial, row, weight);
  float sum[kMergeGroups][kPieceLanes] = {};
  for (int i = 0; i < partial.splits; i += kMergeGroups) {
    float values[kMergeGroups][kPieceLanes];
#pragma unroll
    for (int g = 0; g < kMergeGroups; ++g) {
      const float* from = partial.Out(i + g, row, dim) + first_dim + lane;
#pragma unroll
      for (int j = 0; j < kPieceLanes; ++j) {
        const bool inside = i + g < partial.splits && first_dim + j * 32 + lane < dim;
        values[g][j] = inside ? __ldcg(from + j * 32) : 0.0f;
      }
    }
#pragma unroll
    for (int g = 0; g < kMergeGroups; ++g) {
      const float w = __shfl_sync(0xffffffff, weight[0], (i + g) % 32);
      if (i + g >= partial.splits) continue;
#pragma unroll
      for (int j = 0; j < kPieceLanes; ++j) sum[g][j] = fmaf(w, values[g][j], sum[g][j]);
    }
  }
  const float inverse = 1.0f / merged.l;
#pragma unroll
  for (int j = 0; j < kPieceLanes; ++j) {
    float total = 0.0f;
#pragma unroll
    for (int g = 0; g < kMergeGroups; ++g) total += sum[g][j];
    if (first_dim + j * 32 + lane < dim) {
      out[first_dim + j * 32 + lane] = __float2bfloat16(total * inverse);
    }
  }
}

constexpr int kHalfLanes = kPieceLanes / 2;
constexpr int kAhead = 8;  // splits whose loads are in flight at once

// Outputs of `count` of the splits i, i + 8, ...; from: of this lane's first dim.
__device__ __forceinline__ void LoadOutputs(const PartialRows& partial, int row, int dim,
                                            int first_dim, int i, int count,
                                            float (&values)[kAhead][kHalfLanes]) {
#pragma unroll
  for (int u = 0; u < kAhead; ++u) {
    const float* from = partial.Out(i + u * kMergeGroups, row, dim) + first_dim;
#pragma unroll
    for (int j = 0; j < kHalfLanes; ++j) {
      values[u][j] = u < count && first_dim + j * 32 < dim ? __ldcg(from + j * 32) : 0.0f;
    }
  }
}

// Adds the outputs of the splits of `group`, of which there are many.
__device__ MergedState AddManySplits(const PartialRows& partial, int row, int dim, int first_dim,
                                     int group, float (&sum)[kHalfLanes]) {
  const int lane = threadIdx.x % 32;
  const MergedState all = MergeStates(partial, row);
  const MergedState merged = {__shfl_sync(0xffffffff, all.m, 0),
                              __shfl_sync(0xffffffff, all.l, 0)};
  for (int base = group; base < partial.splits; base += 32 * kMergeGroups) {
    const int mine = base + lane * kMergeGroups;
    const float weight =
        mine < partial.splits ? partial.Weight(partial.State(mine, row).x, merged.m) : 0.0f;
    const int count = min(32, (partial.splits - base + kMergeGroups - 1) / kMergeGroups);
    for (int t = 0; t < count; t += kAhead) {
      float values[kAhead][kHalfLanes];
      LoadOutputs(partial, row, dim, first_dim, base + t * kMergeGroups, count - t, values);
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        const float w = __shfl_sync(0xffffffff, weight, (t + u) % 32);
        if (t + u >= count) continue;
#pragma unroll
        for (int j = 0; j < kHalfLanes; ++j) sum[j] = fmaf(w, values[u][j], sum[j]);
      }
    }
  }
  return merged;
}

// The same for up to 64 splits: outputs and states are loaded at the same time.
__device__ MergedState AddSomeSplits(const PartialRows& partial, int row, int dim, int first_dim,
                                     int group, float (&sum)[kHalfLanes]) {
  float values[kAhead][kHalfLanes];
  const int count = (partial.splits - group + kMergeGroups - 1) / kMergeGroups;
  LoadOutputs(partial, row, dim, first_dim, group, count, values);
  float weight[2];
  const MergedState merged = MergeFewStates(partial, row, weight);
#pragma unroll
  for (int u = 0; u < kAhead; ++u) {
    const float w =
        __shfl_sync(0xffffffff, weight[u / 4], group + u % 4 * kMergeGroups);
    if (u >= count) continue;
#pragma unroll
    for (int j = 0; j < kHalfLanes; ++j) sum[j] = fmaf(w, values[u][j], sum[j]);
  }
  return merged;
}

// A piece of one row by a block of kMergeWarps warps: a warp takes one group of splits and half of
// the dims.
__device__ void MergeManySplits(const PartialRows& partial, int row, int dim, int first_dim,
                                __nv_bfloat16* out, float (*shared)[kPieceDims]) {
  const int lane = threadIdx.x % 32;
  const int group = threadIdx.x / 32 % kMergeGroups;
  const int offset = threadIdx.x / 32 / kMergeGroups * (kPieceDims / 2) + lane;
  float sum[kHalfLanes] = {};
  const MergedState merged =
      partial.splits <= kAhead * kMergeGroups
          ? AddSomeSplits(partial, row, dim, first_dim + offset, group, sum)
          : AddManySplits(partial, row, dim, first_dim + offset, group, sum);
#pragma unroll
  for (int j = 0; j < kHalfLanes; ++j) shared[group][offset + j * 32] = sum[j];
  __syncthreads();
  const int own = first_dim + threadIdx.x;
  if (threadIdx.x < kPieceDims && own < dim) {
    float total = 0.0f;
#pragma unroll
    for (int g = 0; g < kMergeGroups; ++g) total += shared[g][threadIdx.x];
    const float inverse = 1.0f / merged.l;
    out[own] = __float2bfloat16(total * inverse);
  }
}

struct SelectShared {
  alignas(16) float lse[kMaxGroupHeads];
  TopKShared top_k;
  int is_last;
};

// One part of the blocks of one (token, KV head); the part that is done last selects.
template <int kThreads, int kKeys>
__device__ void SelectPart(const SplitAttentionArgs& args, const PartialRows& partial,
                           float* maxima, const SelectionTarget& target, int token, int part,
                           int part_blocks, int count, int32_t* ticket, SelectShared& shared) {
  if (part * part_blocks >= count) return;
  if (target.scores == nullptr && count <= target.selected) {
    for (int i = threadIdx.x; i < target.selected; i += kThreads) {
      target.selection[i] = i < count ? i : -1;
    }
    return;
  }
  const int group_heads = args.num_heads / args.num_kv_heads;
  const int lane = threadIdx.x % 32;
  for (int h = threadIdx.x / 32 * kRowsPerWarp; h < group_heads;
       h += kThreads / 32 * kRowsPerWarp) {
    const MergedState state = MergeStates(partial, token * group_heads + h);
    if (lane < kRowsPerWarp && h + lane < group_heads) {
      shared.lse[h + lane] = state.LogSumExp(args.scale);
    }
  }
  __syncthreads();
  const ScoreSource source = {maxima + token * group_heads, partial.rows, group_heads, args.scale,
                              shared.lse};
  const int parts = CeilDivide(count, part_blocks);
  if constexpr (kKeys > 0) {
    if (parts == 1) {
      SelectBlocks<kThreads, kKeys, BlockBarrier>(source, target, count, shared.top_k);
      return;
    }
  }
  ScoreBlocks<kThreads>(source, target, part * part_blocks,
                        min(count, (part + 1) * part_blocks));
  if (part == 0) target.PadScores<kThreads>(count);
  if (target.selection == nullptr) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.is_last = parts == 1 || atomicAdd(ticket, 1) == parts - 1;
    if (shared.is_last) *ticket = 0;
  }
  __syncthreads();
  if (shared.is_last == 0) return;
  __threadfence();
  SelectScored<kThreads, kKeys, BlockBarrier>(source, target, count, shared.top_k);
}

// kMany: a block merges one piece of a row, else one per warp.
template <int kThreads, int kKeys, bool kMany>
__global__ void __launch_bounds__(kThreads)
    MergeSplitsKernel(const __grid_constant__ SplitAttentionArgs args, const MergeGrid grid) {
  __shared__ union {
    float sums[kMany ? kMergeGroups : 1][kPieceDims];
    SelectShared select;
  } shared;
  const int selections = grid.parts * args.num_kv_heads;
  const int units = selections + grid.merges;
  const int unit = blockIdx.x % units;
  const int index = blockIdx.x / units / args.window_rows;
  const int token = blockIdx.x / units % args.window_rows;
  const int sequence = args.first_sequence + index;
  WaitForPriorKernels();  // for the first kernel's results
  const SplitOffsets offsets = args.offsets[index];
  const SequencePart part = PartOf(args, args.row_begin[sequence], args.row_begin[sequence + 1],
                                   args.first_position[sequence]);
  if (token >= part.rows) return;
  const int group_heads = args.num_heads / args.num_kv_heads;
  const int query_rows = part.rows * group_heads;
  const int splits = part.splits();
  const auto partial_of = [&](int kv_head) {
    const int64_t first =
        offsets.partial_row + static_cast<int64_t>(kv_head) * splits * query_rows;
    return PartialRows{args.partial_out + first * args.v_head_dim, args.partial_state + first * 2,
                       splits, query_rows, args.scale * kLog2E};
  };
  const int row = part.first_row + token;
  if (unit >= selections) {
    if (splits == 1) return;  // the first kernel wrote the output
    const int piece =
        kMany ? unit - selections : (unit - selections) * (kThreads / 32) + threadIdx.x / 32;
    const int head = piece / grid.pieces;
    if (head >= args.num_heads) return;
    const int query_row = token * group_heads + head % group_heads;
    const int first_dim = piece % grid.pieces * kPieceDims;
    __nv_bfloat16* out = static_cast<__nv_bfloat16*>(args.out) + row * args.out_stride +
                         static_cast<int64_t>(head) * args.v_head_dim;
    const PartialRows partial = partial_of(head / group_heads);
    if constexpr (kMany) {
      MergeManySplits(partial, query_row, args.v_head_dim, first_dim, out, shared.sums);
    } else {
      MergeFewSplits(partial, query_row, args.v_head_dim, first_dim, out);
    }
    return;
  }
  const int kv_head = unit / grid.parts;
  float* maxima = args.block_maxima + offsets.block_maximum +
                  static_cast<int64_t>(kv_head) * part.pages * query_rows;
  const int64_t ticket =
      (static_cast<int64_t>(index) * args.window_rows + token) * args.num_kv_heads + kv_head;
  SelectPart<kThreads, kKeys>(args, partial_of(kv_head), maxima,
                              SelectionTarget::Of(args, row, kv_head), token, unit % grid.parts,
                              grid.part_blocks, (part.position + token) / kPageTokens + 1,
                              args.tickets + ticket, shared.select);
}

template <int kThreads, int kKeys, bool kMany>
cudaError_t Launch(const SplitAttentionArgs& args, cudaStream_t stream) {
  static_assert(!kMany || kThreads == 32 * kMergeWarps);
  MergeGrid grid = {0, 1, 0, CeilDivide(args.v_head_dim, kPieceDims)};
  if (args.max_splits > 1) {
    grid.merges = CeilDivide(args.num_heads * grid.pieces, kMany ? 1 : kThreads / 32);
  }
  if (args.block_maxima != nullptr) {
    const int group_heads = args.num_heads / args.num_kv_heads;
    grid.part_blocks = std::max(kThreads, kMaximaPerPart / group_heads);
    grid.parts = CeilDivide(args.max_pages, grid.part_blocks);
  }
  const int64_t units = grid.parts * args.num_kv_heads + grid.merges;
  if (units == 0) return cudaSuccess;
  return LaunchOverlapped(MergeSplitsKernel<kThreads, kKeys, kMany>,
                          dim3(static_cast<unsigned>(units * args.window_rows *
                                                     args.num_sequences)),
                          kThreads, 0, stream, args, grid);
}

}  // namespace

cudaError_t LaunchMergeSplits(const SplitAttentionArgs& args, cudaStream_t stream) {
  // With few rows a block for each of them is done sooner than a warp.
  const int64_t pieces = static_cast<int64_t>(args.num_sequences) * args.window_rows *
                         args.num_heads * CeilDivide(args.v_head_dim, kPieceDims);
  if (args.max_splits <= kFewSplits && (pieces > kFewPieces || args.max_splits == 1)) {
    if (args.max_pages <= 128 * 4) return Launch<128, 4, false>(args, stream);
    if (args.max_pages <= 128 * 16) return Launch<128, 16, false>(args, stream);
  }
  if (args.max_pages <= 512 * 4) return Launch<512, 4, true>(args, stream);
  if (args.max_pages <= 512 * 32) return Launch<512, 32, true>(args, stream);
  return Launch<512, 0, true>(args, stream);
}

}  // namespace hyserve::kernels::cuda
