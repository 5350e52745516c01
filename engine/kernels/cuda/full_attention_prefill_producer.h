// The two warps of the prefill kernel that feed its shared memory. Device code.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_PRODUCER_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_PRODUCER_H_

#include <cstdint>

#include "engine/kernels/cuda/full_attention_prefill_device.h"

namespace hyserve::kernels::cuda::prefill {

using hopper::RingPosition;

// Block ids of one sequence, 32 at a time in the lanes of the producer warp, the next 32 in flight.
class PageReader {
 public:
  __device__ __forceinline__ PageReader(const int32_t* pages, int num_pages)
      : pages_(pages), last_(num_pages - 1) {
    next_ = Load(0);
  }
  // Pages are asked for in ascending order from 0 on; past the last one the last is given.
  __device__ __forceinline__ int Get(int page) {
    if (page % 32 == 0) {
      current_ = next_;
      next_ = Load(page + 32);
    }
    return __shfl_sync(0xffffffffu, current_, page % 32);
  }

 private:
  __device__ __forceinline__ int Load(int first) const {
    return pages_[min(first + static_cast<int>(threadIdx.x % 32), last_)];
  }
  const int32_t* pages_;
  int last_;
  int current_ = 0;
  int next_;
};

// The two producer warps: warp 0 takes tiles and loads queries and keys, warp 1 follows it and
// loads values, so that neither ring waits for the other.
template <typename T, bool kValues>
class Producer {
 public:
  __device__ __forceinline__ Producer(const PrefillLaunch& launch, const Buffers<T>& buffers)
      : launch_(launch), buffers_(buffers), shared_(*buffers.shared) {}

  __device__ __forceinline__ void Run() {
    uint32_t parity = 0;
    while (true) {
      int id = 0;
      if constexpr (kValues) {
        if (leader_) {
          hopper::BarrierWaitIdle(&shared_.tile_full, parity);
          id = shared_.value_tile;
          hopper::BarrierArrive(&shared_.tile_empty);
        }
        id = __shfl_sync(0xffffffffu, id, 0);
      } else {
        if (leader_) {
          id = atomicAdd(launch_.tile_counter, 1);
          if (id >= launch_.num_tiles) id = -1;
          hopper::BarrierWaitIdle(&shared_.tile_empty, parity ^ 1);
          shared_.value_tile = id;
          hopper::BarrierArrive(&shared_.tile_full);
          hopper::BarrierWaitIdle(&shared_.q_empty, parity ^ 1);
          shared_.tile = id;
          if (id < 0) {
            hopper::BarrierArrive(&shared_.q_full);
          } else {
            LoadQueries(FindTile(launch_, id));
          }
        }
        id = __shfl_sync(0xffffffffu, id, 0);
      }
      parity ^= 1;
      if (id < 0) return;
      LoadTiles(FindTile(launch_, id));
    }
  }

 private:
  __device__ __forceinline__ void LoadQueries(const Tile& tile) {
    const PrefillSegment& segment = launch_.segments[tile.segment];
    hopper::BarrierArriveExpect(&shared_.q_full, T::kQBytes);
#pragma unroll
    for (int slab = 0; slab < T::kHeadDim / 64; ++slab) {
      hopper::LoadTile2d(&launch_.q, buffers_.q + slab * T::kTileRows * 128, &shared_.q_full,
                         tile.head * T::kHeadDim + slab * 64,
                         segment.first_row + tile.row_tile * kPrefillTileRows,
                         hopper::kEvictFirst);
    }
  }

  // All tiles of keys, or of values, of a tile of queries.
  __device__ __forceinline__ void LoadTiles(const Tile& tile) {
    constexpr int kBytes = kValues ? T::kVBytes : T::kKBytes;
    constexpr int kSlabs = (kValues ? T::kValueDim : T::kHeadDim) / 64;
    uint64_t* full = kValues ? shared_.v_full : shared_.k_full;
    uint64_t* empty = kValues ? shared_.v_empty : shared_.k_empty;
    uint8_t* buffer = kValues ? buffers_.v : buffers_.k;
    const CUtensorMap* map = kValues ? &launch_.v : &launch_.k;
    const PrefillSegment& segment = launch_.segments[tile.segment];
    const int num_keys = NumKeys(segment, tile.row_tile);
    const int num_tiles = (num_keys + T::kTileKeys - 1) / T::kTileKeys;
    const int kv_head = tile.head / launch_.heads_per_group;
    PageReader pages(launch_.page_table + segment.sequence * launch_.page_table_stride,
                     (num_keys + kPrefillBlockTokens - 1) / kPrefillBlockTokens);
    for (int j = 0; j < num_tiles; ++j) {
      int page[T::kPagesPerTile];
#pragma unroll
      for (int i = 0; i < T::kPagesPerTile; ++i) page[i] = pages.Get(j * T::kPagesPerTile + i);
      if (leader_) {
        hopper::BarrierWaitIdle(&empty[ring_.stage], ring_.parity ^ 1);
        hopper::BarrierArriveExpect(&full[ring_.stage], kBytes);
#pragma unroll
        for (int slab = 0; slab < kSlabs; ++slab) {
#pragma unroll
          for (int i = 0; i < T::kPagesPerTile; ++i) {
            hopper::LoadTile4d(map,
                               buffer + ring_.stage * kBytes + slab * T::kSlabBytes + i * 8192,
                               &full[ring_.stage], slab * 64, 0, kv_head, page[i]);
          }
        }
      }
      ring_.Advance();
      __syncwarp();
    }
  }

  const PrefillLaunch& launch_;
  const Buffers<T>& buffers_;
  Shared<T::kStages>& shared_;
  const bool leader_ = threadIdx.x % 32 == 0;
  RingPosition<T::kStages> ring_;
};

}  // namespace hyserve::kernels::cuda::prefill

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_PRODUCER_H_
