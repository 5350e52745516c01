// What planner, producer and consumers of the prefill kernel of WindowSparseAttention share.
//
// A tile is a few consecutive tokens of one sequence and one kv head; its rows are (token, head of
// the group), 64 for each of the two consumer warpgroups. Keys come in blocks of 64: first the
// blocks of the window (a grid from position 0), then the union of the blocks that the tile's
// tokens selected, in ascending order. Each stage says which tokens want it.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PREFILL_INL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PREFILL_INL_H_

#include <cuda.h>

#include <cstdint>

#include "engine/kernels/cuda/hopper/mbarrier.h"
#include "engine/kernels/cuda/window_sparse_attention_copy-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_launch.h"

namespace hyserve::kernels::cuda::window_sparse {

inline constexpr int kConsumers = 2;           // warpgroups
inline constexpr int kTileRows = 64;           // of one consumer
inline constexpr int kMaxConsumerTokens = 16;  // so that a tile has at most 32: one a lane

// Tokens of one consumer for groups of `heads` heads (at most 64).
__host__ __device__ constexpr int ConsumerTokens(int heads) {
  const int tokens = kTileRows / heads;
  return tokens < kMaxConsumerTokens ? tokens : kMaxConsumerTokens;
}

enum StageFlags : uint32_t {
  kWindowStage = 1,   // a block of the window branch
  kEndOfWindow = 2,   // the last one of the tile
  kEndOfTile = 4,
  kEndOfWork = 8,     // nothing in the stage; the consumers leave
};

struct alignas(16) StageInfo {
  uint32_t tokens;     // bit i: token i of the tile attends to this block
  int first_position;  // of the block
  uint32_t flags;
  int kv_head;
  int tile_row;        // first row of the tile in the step
  int tile_position;   // its position
  int tile_tokens;
  int unused;
};

// Where the keys of a block come from.
enum class BlockSource : int {
  kStep,        // 64 rows of the step from row `index` on
  kPage,        // page `index`
  kMixedStep,   // slots [lo, hi) of a block that lies in the ring, or in the step in part only
  kPartOfPage,  // slots [0, hi) of page `index`: the newest block, not full yet
};

// What the planner tells the producer.
struct PlannedBlock {
  StageInfo info;
  BlockSource source;
  int index;
  int lo;
  int hi;
  int seq;
  int starts_tile;  // the queries are to be loaded
};
inline constexpr int kPlanDepth = 16;

// A struct in shared memory for the whole warp, read by lane 0, which also releases its place.
template <typename T>
__device__ __forceinline__ T ReadForWarp(const T& shared) {
  static_assert(sizeof(T) % 16 == 0);
  union {
    uint4 quads[sizeof(T) / 16];
    uint32_t words[sizeof(T) / 4];
    T value;
  } copy = {};
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (size_t i = 0; i < sizeof(T) / 16; ++i) {
      copy.quads[i] = reinterpret_cast<const uint4*>(&shared)[i];
    }
  }
#pragma unroll
  for (size_t i = 0; i < sizeof(T) / 4; ++i) {
    copy.words[i] = __shfl_sync(~0u, copy.words[i], 0);
  }
  return copy.value;
}

template <int kDim, int kVDim, int kStages>
struct PrefillShared {
  static constexpr int kKeySlabs = kDim / 64;
  static constexpr int kValueSlabs = kVDim / 64;
  alignas(1024) unsigned char q[kConsumers][kKeySlabs][kSlabBytes];
  struct Stage {
    unsigned char k[kKeySlabs][kSlabBytes];
    unsigned char v[kValueSlabs][kSlabBytes];
  };
  alignas(1024) Stage stages[kStages];
  StageInfo info[kStages];
  PlannedBlock plan[kPlanDepth];
  uint64_t full[kStages];
  uint64_t empty[kStages];
  uint64_t plan_full[kPlanDepth];
  uint64_t plan_empty[kPlanDepth];
  uint64_t q_full;
  uint64_t q_empty;
};

// How the copy engine sees the tensors: q [rows][heads][kDim], pages [block][kv head][64][dim],
// step rows [rows][kv heads * dim].
struct PrefillMaps {
  CUtensorMap q;
  CUtensorMap page_k;
  CUtensorMap page_v;
  CUtensorMap step_k;
  CUtensorMap step_v;
};

struct PrefillPlan {
  int min_rows = 0;  // sequences with more rows are this kernel's
  int num_tiles = 0;
  // [rows][kv heads], or null: where not 0, the sparse branch of the row's tile is the by-block
  // kernel's.
  const uint64_t* by_block = nullptr;
};

}  // namespace hyserve::kernels::cuda::window_sparse

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PREFILL_INL_H_
