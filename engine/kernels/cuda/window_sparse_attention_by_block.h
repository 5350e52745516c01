// The second class of prefill kernels of WindowSparseAttention: for tiles whose tokens select
// different blocks. The selections are inverted (block -> rows that chose it), every block is
// loaded once for many rows, and each (row, selected block) leaves a partial result; those of a row
// are then merged. The cost does not depend on how alike neighbours choose; that of tiles does.
//
// A planner kernel chooses the class of each tile and kv head from the number of blocks in the
// tile's union, on the device. Rows are taken in passes so that the partial results stay bounded.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_BY_BLOCK_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_BY_BLOCK_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "engine/kernels/cuda/window_sparse_attention_launch.h"

namespace hyserve::kernels::cuda::window_sparse {

// Products of at most this many 64-row tiles share one copy of a block's keys and values.
inline constexpr int kMaxItemTiles = 8;

// Rows of one product tile for groups of `heads` heads.
__host__ __device__ constexpr int ByBlockTokens(int heads) { return 64 / heads; }

// Rows [begin, begin + count) of a list against one block.
struct alignas(16) BlockItem {
  int page;
  int begin;
  int count;
  int written;  // keys that the page holds
};

// One (row, selected block) of a list.
struct alignas(8) ListEntry {
  int row;              // of the step
  uint16_t slot;        // in the row's selection
  uint16_t keys;        // of the block that the row sees, 1 .. 64
};

// Sizes and memory of one call. The rows of the step are taken in passes; a part is a kv head and
// a pass (p = kv head * num_passes + pass), and part p's partial results lie in buffer p % 2.
// "Block" counts over the blocks of all sequences that are the prefill kernels'.
struct ByBlockPlan {
  int min_rows = 0;  // sequences with more rows
  int num_tiles = 0;
  int tile_tokens = 0;
  int num_blocks = 0;
  int max_blocks = 0;  // of one sequence
  int num_passes = 0;
  int num_parts = 0;
  int pass_rows = 0;
  int part_items = 0;  // room of a part's items
  // Zeroed first.
  uint64_t* by_block = nullptr;  // [rows][kv heads] slots that go by block
  int32_t* counts = nullptr;     // [parts][num_blocks] rows of a block, then where they begin
  int32_t* any = nullptr;        // 1: some tile is of this class
  int32_t* stored = nullptr;     // [parts] thread blocks whose partial results are in place
  int32_t* merged = nullptr;     // [parts] thread blocks that need them no more
  // Not zeroed.
  int32_t* tile_begin = nullptr;   // [num_seqs + 1]
  int32_t* block_begin = nullptr;  // [num_seqs + 1]
  int32_t* ranks = nullptr;        // [rows][kv heads][slots] place among the block's rows
  ListEntry* entries = nullptr;    // [parts][pass_rows * slots]
  BlockItem* items = nullptr;      // [parts][part_items]
  int32_t* num_items = nullptr;    // [parts]
  uint16_t* partial = nullptr;     // [2][pass_rows][slots][heads of group][v_head_dim]
  float* partial_lse = nullptr;    // the same without the last; log2 domain
};

// The plan of a call in the memory from `workspace` on (null: for its size), 256-byte aligned;
// *bytes: what it needs.
ByBlockPlan MakeByBlockPlan(const WindowSparseArgs& args, const SparsePrefillWork& work,
                            char* workspace, size_t* bytes);

// As WindowSparsePrefillMostWorkspaceBytes.
size_t MostByBlockBytes(const WindowSparseArgs& args, int max_blocks);

// Chooses the classes and makes the lists.
cudaError_t LaunchByBlockPlan(const WindowSparseArgs& args, const ByBlockPlan& plan,
                              cudaStream_t stream);
// Adds the sparse branch of the rows of this class to `out`, which holds their window branch.
cudaError_t LaunchByBlock(const WindowSparseArgs& args, const ByBlockPlan& plan, int num_sms,
                          cudaStream_t stream);

}  // namespace hyserve::kernels::cuda::window_sparse

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_BY_BLOCK_H_
