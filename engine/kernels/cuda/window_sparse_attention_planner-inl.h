// The planner warp of the prefill kernel: finds the tiles and merges the tokens' selections on the
// fly, one token a lane. It runs ahead of the producer, so that no copy waits for an index in
// memory.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PLANNER_INL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PLANNER_INL_H_

#include <climits>

#include "engine/kernels/cuda/hopper/mbarrier.h"
#include "engine/kernels/cuda/window_sparse_attention_prefill-inl.h"

namespace hyserve::kernels::cuda::window_sparse {

template <typename Shared>
class Planner {
 public:
  __device__ Planner(const WindowSparseArgs& args, const PrefillPlan& plan, Shared& shared)
      : args_(args), plan_(plan), shared_(shared), lane_(threadIdx.x % 32) {}

  // The whole warp.
  __device__ void Run() {
    tile_size_ = kConsumers * ConsumerTokens(args_.num_heads / args_.num_kv_heads);
    const int total = plan_.num_tiles * args_.num_kv_heads;
    for (int work = blockIdx.x; work < total; work += gridDim.x) {
      kv_head_ = work / plan_.num_tiles;
      FindTile(work - kv_head_ * plan_.num_tiles);
      PlanTile();
    }
    Put(0, 0, kEndOfWork, BlockSource::kStep, 0, 0, 0);
  }

 private:
  // The tile-th tile over all sequences that are this kernel's.
  __device__ void FindTile(int tile) {
    for (int begin = 0; begin < args_.num_seqs; begin += 32) {
      const int seq = begin + lane_;
      int tiles = 0;
      if (seq < args_.num_seqs) {
        const int rows = args_.row_begin[seq + 1] - args_.row_begin[seq];
        if (rows > plan_.min_rows) tiles = (rows + tile_size_ - 1) / tile_size_;
      }
      int sum = tiles;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const int below = __shfl_up_sync(~0u, sum, offset);
        if (lane_ >= offset) sum += below;
      }
      const uint32_t past = __ballot_sync(~0u, sum > tile);
      if (past != 0) {
        const int source = __ffs(past) - 1;
        seq_ = begin + source;
        token_begin_ = (tile - __shfl_sync(~0u, sum - tiles, source)) * tile_size_;
        break;
      }
      tile -= __shfl_sync(~0u, sum, 31);
    }
    row_begin_ = args_.row_begin[seq_];
    rows_ = args_.row_begin[seq_ + 1] - row_begin_;
    first_position_ = args_.first_position[seq_];
    tokens_ = min(tile_size_, rows_ - token_begin_);
    tile_position_ = first_position_ + token_begin_;
  }

  __device__ void PlanTile() {
    starts_tile_ = 1;
    const int position = tile_position_ + lane_;  // of this lane's token
    const bool is_token = lane_ < tokens_;
    // The selection of this lane's token: the head of what is left of it and the entry after that.
    const int selected = args_.selection == nullptr || !is_token ? 0 : args_.selected_blocks;
    const int32_t* list =
        args_.selection + (int64_t{row_begin_ + token_begin_ + lane_} * args_.num_kv_heads +
                           kv_head_) * args_.selected_blocks;
    int taken = 0;
    int head = selected > 0 ? list[0] : -1;
    int next = selected > 1 ? list[1] : -1;
    // Takes the least block of all lanes off the lists; INT_MAX: there is none.
    const auto take = [&](int& block, uint32_t& tokens) {
      const int mine = head >= 0 && head <= position / kSparseBlock ? head : INT_MAX;
      block = __reduce_min_sync(~0u, mine);
      const bool wants = block != INT_MAX && mine == block;
      tokens = __ballot_sync(~0u, wants);
      if (wants) {
        ++taken;
        head = next;
        next = taken + 1 < selected ? list[taken + 1] : -1;
      }
    };
    const int32_t* pages = args_.page_table + int64_t{seq_} * args_.page_table_stride;
    int block = 0;
    uint32_t tokens = 0;
    take(block, tokens);
    int page = block == INT_MAX ? 0 : pages[block];

    const int last = (tile_position_ + tokens_ - 1) / kSparseBlock;
    for (int i = max(0, tile_position_ - args_.window + 1) / kSparseBlock; i <= last; ++i) {
      const int base = i * kSparseBlock;
      const bool sees = is_token && base <= position &&
                        base + kSparseBlock > position - args_.window + 1;
      uint32_t flags = kWindowStage;
      if (i == last) flags |= kEndOfWindow;
      if (i == last && block == INT_MAX) flags |= kEndOfTile;
      PutWindow(base, __ballot_sync(~0u, sees), flags);
    }
    while (block != INT_MAX) {
      const int this_block = block;
      const int this_page = page;
      const uint32_t this_tokens = tokens;
      take(block, tokens);
      if (block != INT_MAX) page = pages[block];
      const int base = this_block * kSparseBlock;
      const int written = first_position_ + rows_ - base;  // keys that the page holds
      Put(base, this_tokens, block == INT_MAX ? kEndOfTile : 0,
          written >= kSparseBlock ? BlockSource::kPage : BlockSource::kPartOfPage, this_page, 0,
          written);
    }
  }

  __device__ void PutWindow(int base, uint32_t tokens, uint32_t flags) {
    if (base >= first_position_ && base + kSparseBlock <= first_position_ + rows_) {
      Put(base, tokens, flags, BlockSource::kStep, row_begin_ + base - first_position_, 0, 0);
    } else {
      // Only what a token of the tile may see.
      Put(base, tokens, flags, BlockSource::kMixedStep, 0,
          max(0, tile_position_ - args_.window + 1) - base, tile_position_ + tokens_ - base);
    }
  }

  __device__ void Put(int base, uint32_t tokens, uint32_t flags, BlockSource source, int index,
                      int lo, int hi) {
    hopper::BarrierWaitIdle(&shared_.plan_empty[ring_.stage], ring_.parity ^ 1);
    if (lane_ == 0) {
      shared_.plan[ring_.stage] = {
          {tokens, base, flags, kv_head_, row_begin_ + token_begin_, tile_position_, tokens_, 0},
          source, index, lo, hi, seq_, starts_tile_};
      hopper::BarrierArrive(&shared_.plan_full[ring_.stage]);
    }
    __syncwarp();
    starts_tile_ = 0;
    ring_.Advance();
  }

  const WindowSparseArgs& args_;
  const PrefillPlan& plan_;
  Shared& shared_;
  const int lane_;
  hopper::RingPosition<kPlanDepth> ring_;
  int tile_size_ = 0;  // tokens
  // The tile.
  int kv_head_ = 0;
  int seq_ = 0;
  int token_begin_ = 0;
  int tokens_ = 0;
  int row_begin_ = 0;
  int rows_ = 0;
  int first_position_ = 0;
  int tile_position_ = 0;
  int starts_tile_ = 0;
};

}  // namespace hyserve::kernels::cuda::window_sparse

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PLANNER_INL_H_
