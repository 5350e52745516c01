// Producer and consumers of the by-block kernel of WindowSparseAttention.
//
// Part after part, the producer warp takes the items of its thread block: a block's keys and values
// once, then tile after tile of 64 query rows (tokens of the item's list x heads of the group). A
// consumer warpgroup does whole tiles: logits, softmax over the one block, values, and the
// normalised result with its logarithm of the sum to the workspace. Another warpgroup merges the
// results of the part before (window_sparse_attention_merge-inl.h).
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_BY_BLOCK_INL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_BY_BLOCK_INL_H_

#include <cuda.h>

#include "engine/kernels/cuda/hopper/mbarrier.h"
#include "engine/kernels/cuda/hopper/tma.h"
#include "engine/kernels/cuda/hopper/warpgroup.h"
#include "engine/kernels/cuda/hopper/wgmma.h"
#include "engine/kernels/cuda/window_sparse_attention_by_block.h"
#include "engine/kernels/cuda/window_sparse_attention_copy-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_scores-inl.h"

namespace hyserve::kernels::cuda::window_sparse {

inline constexpr int kByBlockConsumers = 2;  // warpgroups
inline constexpr int kBlockStages = 2;

// q [rows][heads * dim / 64][64]: a token's heads of a group are one box.
struct ByBlockMaps {
  CUtensorMap q;
  CUtensorMap page_k;
  CUtensorMap page_v;
};

// Waits until all thread blocks have counted themselves in; one lane, then __syncwarp.
__device__ __forceinline__ void WaitForAll(const int32_t* counter) {
  int32_t count = 0;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
  } while (count < static_cast<int32_t>(gridDim.x));
}

struct QueryTile {
  int tokens;  // 0: the part's end
  int block_stage;
  uint32_t block_parity;
  int all_visible;  // every row sees the whole block
  ListEntry entries[64];
};

template <int kDim, int kVDim, int kQueryStages>
struct ByBlockShared {
  static constexpr int kStages = kQueryStages;
  static constexpr int kKeySlabs = kDim / 64;
  static constexpr int kValueSlabs = kVDim / 64;
  // Row 64 bytes x 2 of slab s of head h of token t: (t * heads + h) * kKeySlabs + s.
  alignas(1024) unsigned char q[kQueryStages][64 * kDim * 2];
  struct Block {
    unsigned char k[kKeySlabs][kSlabBytes];
    unsigned char v[kValueSlabs][kSlabBytes];
  };
  alignas(1024) Block blocks[kBlockStages];
  QueryTile tiles[kQueryStages];
  uint64_t q_full[kQueryStages];   // every lane of the producer, and the bytes
  uint64_t q_empty[kQueryStages];  // every thread of a consumer
  uint64_t block_full[kBlockStages];
  uint64_t block_empty[kBlockStages];  // 4 warps x kMaxItemTiles; the producer makes up the rest
};

template <int kDim, int kVDim, typename Shared>
class ByBlockProducer {
 public:
  __device__ ByBlockProducer(const WindowSparseArgs& args, const ByBlockPlan& plan,
                             const ByBlockMaps& maps, Shared& shared)
      : args_(args),
        plan_(plan),
        maps_(maps),
        shared_(shared),
        lane_(threadIdx.x % 32),
        heads_(args.num_heads / args.num_kv_heads),
        tile_tokens_(ByBlockTokens(heads_)) {}

  // The whole warp.
  __device__ void Run() {
    const int grid = static_cast<int>(gridDim.x);
    int first = blockIdx.x;  // item of the part
    for (int part = 0; part < plan_.num_parts; ++part) {
      const int kv_head = part / plan_.num_passes;
      const int total = plan_.num_items[part];
      const BlockItem* items = plan_.items + int64_t{part} * plan_.part_items;
      const ListEntry* entries =
          plan_.entries + int64_t{part} * plan_.pass_rows * args_.selected_blocks;
      while (first < total) {
        const int mine = first + lane_ * grid;
        int4 item = {0, 0, 0, 0};
        if (mine < total) item = *reinterpret_cast<const int4*>(items + mine);
        const int count = min(32, (total - first + grid - 1) / grid);
        for (int i = 0; i < count; ++i) {
          Produce({__shfl_sync(~0u, item.x, i), __shfl_sync(~0u, item.y, i),
                   __shfl_sync(~0u, item.z, i), __shfl_sync(~0u, item.w, i)},
                  kv_head, entries);
        }
        first += count * grid;
      }
      first -= total;  // so that the thread blocks take turns in having an item more
      EndPart();
    }
  }

 private:
  // Every consumer's next tile: wherever the ring stands, they take turns.
  __device__ void EndPart() {
    for (int consumer = 0; consumer < kByBlockConsumers; ++consumer) {
      hopper::BarrierWaitIdle(&shared_.q_empty[q_.stage], q_.parity ^ 1);
      if (lane_ == 0) shared_.tiles[q_.stage].tokens = 0;
      hopper::BarrierArrive(&shared_.q_full[q_.stage]);
      q_.Advance();
    }
  }

  __device__ void Produce(const BlockItem& item, int kv_head, const ListEntry* entries) {
    const ListEntry* list = entries + item.begin;
    uint64_t low = Load(list, lane_, item.count);
    uint64_t high = Load(list, lane_ + 32, item.count);
    const int tiles = (item.count + tile_tokens_ - 1) / tile_tokens_;
    hopper::BarrierWaitIdle(&shared_.block_empty[block_.stage], block_.parity ^ 1);
    if (lane_ == 0) {
      for (int i = tiles * 4; i < kMaxItemTiles * 4; ++i) {
        hopper::BarrierArrive(&shared_.block_empty[block_.stage]);
      }
    }
    __syncwarp();
    CopyBlock(item, kv_head);
    for (int begin = 0; begin < item.count; begin += tile_tokens_) {
      const int tokens = min(tile_tokens_, item.count - begin);
      hopper::BarrierWaitIdle(&shared_.q_empty[q_.stage], q_.parity ^ 1);
      QueryTile& tile = shared_.tiles[q_.stage];
      if (lane_ < tokens) *reinterpret_cast<uint64_t*>(&tile.entries[lane_]) = low;
      if (lane_ + 32 < tokens) *reinterpret_cast<uint64_t*>(&tile.entries[lane_ + 32]) = high;
      const bool part_seen = (lane_ < tokens && (low >> 48) < kSparseBlock) ||
                             (lane_ + 32 < tokens && (high >> 48) < kSparseBlock);
      const bool all_visible = !__any_sync(~0u, part_seen);
      __syncwarp();
      if (lane_ != 0) {
        hopper::BarrierArrive(&shared_.q_full[q_.stage]);
      } else {
        tile.tokens = tokens;
        tile.block_stage = block_.stage;
        tile.block_parity = block_.parity;
        tile.all_visible = all_visible;
        uint64_t* full = &shared_.q_full[q_.stage];
        hopper::BarrierArriveExpect(full, tokens * heads_ * kDim * 2);
        unsigned char* to = shared_.q[q_.stage];
        for (int t = 0; t < tokens; ++t) {
          hopper::LoadTile3d(&maps_.q, to + t * heads_ * kDim * 2, full, 0,
                             kv_head * heads_ * Shared::kKeySlabs, tile.entries[t].row);
        }
      }
      low = Load(list, begin + tile_tokens_ + lane_, item.count);
      high = Load(list, begin + tile_tokens_ + lane_ + 32, item.count);
      __syncwarp();
      q_.Advance();
    }
    block_.Advance();
  }

  __device__ uint64_t Load(const ListEntry* list, int i, int count) const {
    return i < count ? *reinterpret_cast<const uint64_t*>(list + i) : 0;
  }

  __device__ void CopyBlock(const BlockItem& item, int kv_head) {
    auto& block = shared_.blocks[block_.stage];
    uint64_t* full = &shared_.block_full[block_.stage];
    if (item.written < kSparseBlock) {
      CopyBlockByHand<kDim, kVDim>(block.k, block.v, full, [&](int slot) -> KeyRows {
        if (slot >= item.written) return {nullptr, nullptr};
        return PageKey(args_, item.page, kv_head, slot);
      });
      return;
    }
    if (lane_ == 0) {
      hopper::BarrierArriveExpect(full, (Shared::kKeySlabs + Shared::kValueSlabs) * kSlabBytes);
      StartPageCopy<kDim, kVDim>(maps_.page_k, maps_.page_v, block.k, block.v, full, kv_head,
                                 item.page);
    }
    __syncwarp();
  }

  const WindowSparseArgs& args_;
  const ByBlockPlan& plan_;
  const ByBlockMaps& maps_;
  Shared& shared_;
  const int lane_;
  const int heads_;
  const int tile_tokens_;
  hopper::RingPosition<Shared::kStages> q_;
  hopper::RingPosition<kBlockStages> block_;
};

template <int kDim, int kVDim, typename Shared>
class ByBlockConsumer {
 public:
  __device__ ByBlockConsumer(const WindowSparseArgs& args, const ByBlockPlan& plan,
                             Shared& shared, int consumer)
      : args_(args),
        plan_(plan),
        shared_(shared),
        consumer_(consumer),
        warp_(threadIdx.x / 32 % 4),
        lane_(threadIdx.x % 32),
        heads_(args.num_heads / args.num_kv_heads),
        factor_(args.scale * kLog2e) {}

  // The whole warpgroup.
  __device__ void Run() {
    // Row 16 warp + lane % 16 of every tile.
    const int row = warp_ * 16 + lane_ % 16;
    const int token = row / heads_;
    const int head = row - token * heads_;
    hopper::RingPosition<Shared::kStages> q;
    for (int i = 0; i < consumer_; ++i) q.Advance();
    for (int part = 0; part < plan_.num_parts; ++part) {
      // Part - 2 had the same buffer.
      if (part >= 2 && lane_ == 0) WaitForAll(plan_.merged + part - 2);
      __syncwarp();
      const int first_row = part % plan_.num_passes * plan_.pass_rows;
      const int buffer_rows = part % 2 * plan_.pass_rows;
      while (true) {
        hopper::BarrierWait(&shared_.q_full[q.stage], q.parity);
        const QueryTile& tile = shared_.tiles[q.stage];
        const int tokens = tile.tokens;
        if (tokens > 0) {
          // Place of this lane's row among the partial results, -1: no such row; keys it sees.
          int place = -1;
          int keys = kSparseBlock;
          if (token < tokens) {
            const ListEntry entry = tile.entries[token];
            keys = entry.keys;
            place = ((buffer_rows + entry.row - first_row) * args_.selected_blocks + entry.slot) *
                        heads_ + head;
          }
          Attend(tile, q.stage, keys);
          Store(q.stage, place);
          hopper::FenceSharedForAsync();
        }
        hopper::BarrierArrive(&shared_.q_empty[q.stage]);
        for (int i = 0; i < kByBlockConsumers; ++i) q.Advance();
        if (tokens == 0) break;
      }
      __threadfence();
      hopper::NamedBarrierSync(1, kByBlockConsumers * hopper::kWarpgroupThreads);
      if (consumer_ == 0 && warp_ == 0 && lane_ == 0) atomicAdd(plan_.stored + part, 1);
    }
  }

 private:
  static constexpr int kSteps = kDim / 16;
  static constexpr int kChunks = kVDim / 8;  // of 16 bytes in a result row

  __device__ __forceinline__ void LoadQueries(int stage, uint32_t (&q)[kSteps][4]) {
    const uint32_t base = hopper::SharedAddress(shared_.q[stage]);
    const int row = warp_ * 16 + (lane_ & 15);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int index = row * Shared::kKeySlabs + step / 4;
      const int chunk = (step % 4) * 2 + (lane_ >> 4);
      const uint32_t address = base + index * 128 + ((chunk ^ (index & 7)) << 4);
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                   : "=r"(q[step][0]), "=r"(q[step][1]), "=r"(q[step][2]), "=r"(q[step][3])
                   : "r"(address)
                   : "memory");
    }
  }

  // keys: of this lane's row (lane % 16).
  __device__ __forceinline__ void Attend(const QueryTile& tile, int stage, int keys) {
    uint32_t q[kSteps][4];
    LoadQueries(stage, q);
    const int block_stage = tile.block_stage;
    const bool all_visible = tile.all_visible != 0;
    hopper::BarrierWait(&shared_.block_full[block_stage], tile.block_parity);
    const auto& block = shared_.blocks[block_stage];
    float s[32];
    const uint64_t k = hopper::DescriptorKMajor(hopper::SharedAddress(block.k));
    hopper::FenceRegisters(q);
    hopper::FenceRegisters(s);
    hopper::WgmmaFence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      hopper::WgmmaRegister<64, false>::Issue(
          s, q[step],
          hopper::AdvanceDescriptor(k, (step / 4) * kSlabBytes + (step % 4) * 32),
          step > 0 ? 1 : 0);
    }
    hopper::WgmmaCommit();
    hopper::WgmmaWait<0>();
    hopper::FenceRegisters(s);
    if (!all_visible) {
      int seen[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        seen[half] = __shfl_sync(~0u, keys, lane_ / 4 + half * 8);
      }
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int slot = (i / 4) * 8 + (lane_ & 3) * 2 + (i & 1);
        if (slot >= seen[(i >> 1) & 1]) s[i] = -INFINITY;
      }
    }
    float sum[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float max = RowMax(s, half);
      lse_[half] = max == -INFINITY ? 0.0f : max * factor_;
      sum[half] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int half = (i >> 1) & 1;
      s[i] = hopper::Exp2(fmaf(s[i], factor_, -lse_[half]));
      sum[half] += s[i];
    }
    uint32_t p[4][4];
    PackProbabilities(s, p);
    const uint64_t v =
        hopper::DescriptorMnMajor(hopper::SharedAddress(block.v), kSlabBytes);
    hopper::FenceRegisters(p);
    hopper::FenceRegisters(out_);
    hopper::WgmmaFence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      hopper::WgmmaRegister<kVDim, true>::Issue(
          out_, p[step], hopper::AdvanceDescriptor(v, step * 2048), step > 0 ? 1 : 0);
    }
    hopper::WgmmaCommit();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
      sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
      inverse_[half] = __fdividef(1.0f, sum[half]);
      lse_[half] += __log2f(sum[half]);
    }
    hopper::WgmmaWait<0>();
    hopper::FenceRegisters(out_);
    __syncwarp();
    if (lane_ == 0) hopper::BarrierArrive(&shared_.block_empty[block_stage]);
  }

  // Through this warp's own rows of the query stage, so that whole rows go out.
  __device__ __forceinline__ void Store(int stage, int place) {
    unsigned char* staging = shared_.q[stage] + warp_ * 16 * kDim * 2;
    const uint32_t base = hopper::SharedAddress(staging);
    const int matrix_row = ((lane_ >> 3) & 1) * 8 + (lane_ & 7);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kVDim / 16; ++i) {
      const int chunk = 2 * i + (lane_ >> 4);
      const uint32_t address =
          base + matrix_row * kVDim * 2 + ((chunk ^ (matrix_row & 7)) << 4);
      uint32_t packed[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        packed[j] = hopper::PackBf16(out_[8 * i + 2 * j] * inverse_[j & 1],
                                     out_[8 * i + 2 * j + 1] * inverse_[j & 1]);
      }
      asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(address),
                   "r"(packed[0]), "r"(packed[1]), "r"(packed[2]), "r"(packed[3])
                   : "memory");
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 * kChunks / 32; ++i) {
      const int row = i * (32 / kChunks) + lane_ / kChunks;
      const int chunk = lane_ % kChunks;
      const int to = __shfl_sync(~0u, place, row);
      const uint4 value = *reinterpret_cast<const uint4*>(
          staging + row * kVDim * 2 + ((chunk ^ (row & 7)) << 4));
      if (to >= 0) {
        *reinterpret_cast<uint4*>(plan_.partial + int64_t{to} * kVDim + chunk * 8) = value;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int to = __shfl_sync(~0u, place, lane_ / 4 + half * 8);
      if (to >= 0 && (lane_ & 3) == 0) plan_.partial_lse[to] = lse_[half];
    }
  }

  const WindowSparseArgs& args_;
  const ByBlockPlan& plan_;
  Shared& shared_;
  const int consumer_;
  const int warp_;
  const int lane_;
  const int heads_;
  const float factor_;
  float out_[kVDim / 2];
  float inverse_[2];
  float lse_[2];
};

}  // namespace hyserve::kernels::cuda::window_sparse

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_BY_BLOCK_INL_H_
