// The work list of a split-attention kernel, made by every block for itself from the batch's
// arrays: items in a fixed order, of which each block takes a contiguous range of about equal cost.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SPLIT_ATTENTION_WORK_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_SPLIT_ATTENTION_WORK_CUH_

#include "engine/kernels/cuda/split_attention.h"

namespace hyserve::kernels::cuda {

struct SequenceWork {
  int rows = 0;
  int first_row = 0;
  int position = 0;
  int pages = 0;
  int split_pages = 1;
  int cost_begin = 0;
  int partial_begin = 0;
  int maxima_begin = 0;

  __device__ int splits() const { return CeilDivide(pages, split_pages); }
};

struct alignas(16) SplitWork {
  SequenceWork sequences[kMaxSplitSequences];
  int total_cost;
};

// Fills work in shared memory; called by all threads of the block, which needs whole warps.
template <int kTileRows>
__device__ void BuildSplitWork(const SplitAttentionArgs& args, SplitWork& work) {
  const int group_heads = args.num_heads / args.num_kv_heads;
  for (int i = threadIdx.x; i < args.num_sequences; i += blockDim.x) {
    const int seq = args.first_sequence + i;
    const SequencePart part = PartOf(args, args.row_begin[seq], args.row_begin[seq + 1],
                                     args.first_position[seq]);
    SplitSize size;
    size.Add(part, part.splits(), args.num_kv_heads, group_heads, kTileRows);
    work.sequences[i] = {part.rows,
                         part.first_row,
                         part.position,
                         part.pages,
                         part.split_pages,
                         static_cast<int>(size.cost),
                         static_cast<int>(size.partial_rows),
                         static_cast<int>(size.block_maxima)};
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    const int lane = threadIdx.x;
    int before[3] = {0, 0, 0};
    for (int base = 0; base < args.num_sequences; base += 32) {
      const int i = base + lane;
      const bool inside = i < args.num_sequences;
      SequenceWork* entry = &work.sequences[inside ? i : 0];
      int own[3] = {inside ? entry->cost_begin : 0, inside ? entry->partial_begin : 0,
                    inside ? entry->maxima_begin : 0};
      int sum[3];
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        sum[k] = own[k];
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
          const int other = __shfl_up_sync(0xffffffff, sum[k], step);
          if (lane >= step) sum[k] += other;
        }
      }
      __syncwarp();
      if (inside) {
        entry->cost_begin = before[0] + sum[0] - own[0];
        entry->partial_begin = before[1] + sum[1] - own[1];
        entry->maxima_begin = before[2] + sum[2] - own[2];
        if (blockIdx.x == 0) args.offsets[i] = {entry->partial_begin, entry->maxima_begin};
      }
#pragma unroll
      for (int k = 0; k < 3; ++k) before[k] += __shfl_sync(0xffffffff, sum[k], 31);
    }
    if (lane == 0) work.total_cost = before[0];
  }
  __syncthreads();
}

struct WorkItem {
  int sequence = 0;  // index into SplitWork::sequences
  int kv_head = 0;
  int tile = 0;
  int split = 0;
  int page_begin = 0;
  int page_end = 0;
};

// The items of this block, in order. Every thread that needs them walks by itself.
template <int kTileRows>
class WorkWalker {
 public:
  __device__ WorkWalker(const SplitAttentionArgs& args, const SplitWork& work)
      : work_(work),
        num_sequences_(args.num_sequences),
        num_kv_heads_(args.num_kv_heads),
        group_heads_(args.num_heads / args.num_kv_heads) {
    const int64_t total = work.total_cost;
    const int begin = static_cast<int>(total * blockIdx.x / gridDim.x);
    end_ = static_cast<int>(total * (blockIdx.x + 1) / gridDim.x);
    // The last sequence that begins at or before `begin`.
    int low = 0;
    int high = num_sequences_;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (work.sequences[middle].cost_begin <= begin ? low : high) = middle;
    }
    sequence_ = low;
    const SequenceWork& entry = work.sequences[low];
    if (entry.rows == 0) return;
    const int offset = begin - entry.cost_begin;
    unit_ = offset / entry.pages;
    split_ = CeilDivide(offset % entry.pages, entry.split_pages);
  }

  __device__ bool Next(WorkItem& item) {
    while (sequence_ < num_sequences_) {
      const SequenceWork& entry = work_.sequences[sequence_];
      const int tiles = CeilDivide(entry.rows * group_heads_, kTileRows);
      if (unit_ < tiles * num_kv_heads_) {
        const int page = split_ * entry.split_pages;
        if (page >= entry.pages) {
          split_ = 0;
          ++unit_;
          continue;
        }
        if (entry.cost_begin + unit_ * entry.pages + page >= end_) return false;
        const int page_end = page + entry.split_pages;
        item = {sequence_,   unit_ / tiles, unit_ % tiles,
                split_,      page,          page_end < entry.pages ? page_end : entry.pages};
        ++split_;
        return true;
      }
      unit_ = 0;
      split_ = 0;
      ++sequence_;
    }
    return false;
  }

 private:
  const SplitWork& work_;
  const int num_sequences_;
  const int num_kv_heads_;
  const int group_heads_;
  int end_ = 0;
  int sequence_ = 0;
  int unit_ = 0;  // kv head * tiles + tile
  int split_ = 0;
};

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SPLIT_ATTENTION_WORK_CUH_
