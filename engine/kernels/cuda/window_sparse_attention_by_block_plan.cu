// Which tiles go by block, and the lists of rows that chose each block.
//
// Places in a list are given out by atomic counters: its order may differ from run to run, but a
// row's result does not depend on its place.
#include <algorithm>
#include <type_traits>

#include "engine/kernels/cuda/window_sparse_attention-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_by_block.h"

namespace hyserve::kernels::cuda::window_sparse {
namespace {

constexpr int kPlanWarps = 4;
constexpr int kItemThreads = 1024;
constexpr int kMinRows = 256;  // fewer: the extra launches cost more than they save
constexpr int kMinPassRows = 2048;
constexpr int kListRows = 64;  // rows that a block's list should have, to share its copy
constexpr int kMaxBitmapBytes = 48 * 1024;

// The L2 cache bounds both classes. Bytes of a block of the tile kernel, and of a (row, block) pair
// by block (queries once, the partial result written and read); a byte of the latter takes about
// kPairCost times as long (measured on an H200: 1.7 to 2.0 over the shapes of sparse_bench).
constexpr int kPairCost = 2;
__host__ __device__ int BlockBytes(const WindowSparseArgs& args) {
  return 2 * kSparseBlock * (args.head_dim + args.v_head_dim);
}
__host__ __device__ int PairBytes(const WindowSparseArgs& args) {
  return 2 * (args.num_heads / args.num_kv_heads) * (args.head_dim + 2 * args.v_head_dim);
}

// Number of the last of begins[0 .. count) that is <= value; begins ascend from 0.
__device__ int FindSpan(const int32_t* begins, int count, int value) {
  int low = 0;
  while (count > 1) {
    const int half = count / 2;
    if (begins[low + half] <= value) low += half;
    count -= half;
  }
  return low;
}

// One warp.
__global__ void SumKernel(const WindowSparseArgs args, const ByBlockPlan plan) {
  int tile_sum = 0;
  int block_sum = 0;
  for (int begin = 0; begin < args.num_seqs; begin += 32) {
    const int seq = begin + static_cast<int>(threadIdx.x);
    int tiles = 0;
    int blocks = 0;
    if (seq < args.num_seqs) {
      const int rows = args.row_begin[seq + 1] - args.row_begin[seq];
      if (rows > plan.min_rows) {
        tiles = (rows + plan.tile_tokens - 1) / plan.tile_tokens;
        blocks = (args.first_position[seq] + rows + kSparseBlock - 1) / kSparseBlock;
      }
    }
    int tiles_up_to = tiles;
    int blocks_up_to = blocks;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int t = __shfl_up_sync(~0u, tiles_up_to, offset);
      const int b = __shfl_up_sync(~0u, blocks_up_to, offset);
      if (static_cast<int>(threadIdx.x) >= offset) {
        tiles_up_to += t;
        blocks_up_to += b;
      }
    }
    if (seq < args.num_seqs) {
      plan.tile_begin[seq + 1] = tile_sum + tiles_up_to;
      plan.block_begin[seq + 1] = block_sum + blocks_up_to;
    }
    tile_sum += __shfl_sync(~0u, tiles_up_to, 31);
    block_sum += __shfl_sync(~0u, blocks_up_to, 31);
  }
  if (threadIdx.x == 0) plan.tile_begin[0] = plan.block_begin[0] = 0;
}

// A warp for each (tile, kv head): the size of the union of the tile's selections, in a bitmap in
// shared memory, and the choice.
__global__ void __launch_bounds__(kPlanWarps * 32)
    ChooseKernel(const WindowSparseArgs args, const ByBlockPlan plan) {
  extern __shared__ uint32_t bitmaps[];
  const int lane = threadIdx.x % 32;
  const int words = (plan.max_blocks + 31) / 32;
  uint32_t* bitmap = bitmaps + (threadIdx.x / 32) * words;
  const int work = blockIdx.x * kPlanWarps + static_cast<int>(threadIdx.x / 32);
  if (work >= plan.num_tiles * args.num_kv_heads) return;
  const int tile = work / args.num_kv_heads;
  const int kv_head = work - tile * args.num_kv_heads;
  // Sequences without tiles begin where the next one does: the last that begins there has some.
  const int seq = FindSpan(plan.tile_begin, args.num_seqs, tile);
  const int rows = args.row_begin[seq + 1] - args.row_begin[seq];
  const int token = (tile - plan.tile_begin[seq]) * plan.tile_tokens;
  const int row0 = args.row_begin[seq] + token;
  const int position = args.first_position[seq] + token;
  const int slots = args.selected_blocks;
  const int tokens = min(plan.tile_tokens, rows - token);
  const int count = tokens * slots;
  // The block of an entry; -1: none.
  const auto block_of = [&](int i, int64_t& index) {
    const int t = i / slots;
    index = (int64_t{row0 + t} * args.num_kv_heads + kv_head) * slots + (i - t * slots);
    const int block = args.selection[index];
    return block <= (position + t) / kSparseBlock ? block : -1;
  };
  for (int i = lane; i < words; i += 32) bitmap[i] = 0;
  __syncwarp();
  int distinct = 0;
  int pairs = 0;
  int64_t index = 0;
  for (int i = lane; i < count; i += 32) {
    const int block = block_of(i, index);
    if (block < 0) continue;
    const uint32_t bit = 1u << (block % 32);
    ++pairs;
    if ((atomicOr(&bitmap[block / 32], bit) & bit) == 0) ++distinct;
  }
  distinct = __reduce_add_sync(~0u, distinct);
  pairs = __reduce_add_sync(~0u, pairs);
  const int blocks = plan.block_begin[seq + 1] - plan.block_begin[seq];
  // Rows that share a copy of a block when they choose evenly.
  const float list = static_cast<float>(min(rows, plan.pass_rows)) * slots / blocks;
  const float block_bytes = static_cast<float>(BlockBytes(args));
  const bool by_block =
      distinct * block_bytes > kPairCost * pairs * (PairBytes(args) + block_bytes / list);
  if (!by_block) return;
  if (lane == 0) atomicOr(plan.any, 1);
  for (int t = lane; t < tokens; t += 32) {
    const int64_t pair = int64_t{row0 + t} * args.num_kv_heads + kv_head;
    uint64_t valid = 0;
    for (int slot = 0; slot < slots; ++slot) {
      const int block = args.selection[pair * slots + slot];
      if (block >= 0 && block <= (position + t) / kSparseBlock) valid |= uint64_t{1} << slot;
    }
    plan.by_block[pair] = valid;
  }
  for (int i = lane; i < count; i += 32) {
    const int block = block_of(i, index);
    if (block < 0) continue;
    const int64_t part =
        int64_t{kv_head} * plan.num_passes + (row0 + i / slots) / plan.pass_rows;
    plan.ranks[index] = atomicAdd(
        &plan.counts[part * plan.num_blocks + plan.block_begin[seq] + block], 1);
  }
}

// Sums of (low: rows, high: items) before this thread; *total: over the thread block.
__device__ uint64_t SumBefore(uint64_t value, uint64_t* total) {
  __shared__ uint64_t warp_sums[kItemThreads / 32];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  uint64_t up_to = value;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t below = __shfl_up_sync(~0u, up_to, offset);
    if (lane >= offset) up_to += below;
  }
  if (lane == 31) warp_sums[warp] = up_to;
  __syncthreads();
  const uint64_t of_lane = warp_sums[lane];
  uint64_t warps_up_to = of_lane;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t below = __shfl_up_sync(~0u, warps_up_to, offset);
    if (lane >= offset) warps_up_to += below;
  }
  *total = __shfl_sync(~0u, warps_up_to, 31);
  const uint64_t before = __shfl_sync(~0u, warps_up_to - of_lane, warp);
  __syncthreads();
  return before + up_to - value;
}

// A thread block for each part: where each block's rows begin, and the items.
__global__ void __launch_bounds__(kItemThreads)
    ItemKernel(const WindowSparseArgs args, const ByBlockPlan plan) {
  if (*plan.any == 0) return;
  const int64_t part = blockIdx.x;
  int32_t* counts = plan.counts + part * plan.num_blocks;
  BlockItem* items = plan.items + part * plan.part_items;
  const int tile = ByBlockTokens(args.num_heads / args.num_kv_heads);
  uint64_t sum = 0;
  for (int base = 0; base < plan.num_blocks; base += kItemThreads) {
    const int key = base + static_cast<int>(threadIdx.x);
    const int count = key < plan.num_blocks ? counts[key] : 0;
    const int tiles = (count + tile - 1) / tile;
    const int parts = (tiles + kMaxItemTiles - 1) / kMaxItemTiles;
    uint64_t total = 0;
    const uint64_t before =
        sum + SumBefore(static_cast<uint64_t>(parts) << 32 | static_cast<uint32_t>(count), &total);
    sum += total;
    if (key < plan.num_blocks) counts[key] = static_cast<int>(before & 0xffffffffu);
    if (count == 0) continue;
    const int seq = FindSpan(plan.block_begin, args.num_seqs, key);
    const int block = key - plan.block_begin[seq];
    const int context =
        args.first_position[seq] + args.row_begin[seq + 1] - args.row_begin[seq];
    BlockItem item;
    item.page = args.page_table[int64_t{seq} * args.page_table_stride + block];
    item.written = min(kSparseBlock, context - block * kSparseBlock);
    const int step = (tiles + parts - 1) / parts * tile;
    for (int i = 0; i < parts; ++i) {
      item.begin = static_cast<int>(before & 0xffffffffu) + i * step;
      item.count = min(step, count - i * step);
      items[static_cast<int>(before >> 32) + i] = item;
    }
  }
  if (threadIdx.x == 0) plan.num_items[part] = static_cast<int>(sum >> 32);
}

// A thread for each (row, kv head, slot).
__global__ void EntryKernel(const WindowSparseArgs args, const ByBlockPlan plan) {
  if (*plan.any == 0) return;
  const int slots = args.selected_blocks;
  const int64_t total = int64_t{args.num_rows} * args.num_kv_heads * slots;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < total;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int pair = static_cast<int>(i / slots);
    if (plan.by_block[pair] == 0) continue;
    const int row = pair / args.num_kv_heads;
    const int block = args.selection[i];
    const int visible = args.positions[row] + 1 - block * kSparseBlock;
    if (block < 0 || visible <= 0) continue;
    const int64_t part =
        int64_t{pair - row * args.num_kv_heads} * plan.num_passes + row / plan.pass_rows;
    const int key = plan.block_begin[args.row_seq[row]] + block;
    const int place = plan.counts[part * plan.num_blocks + key] + plan.ranks[i];
    plan.entries[part * plan.pass_rows * slots + place] = {
        row, static_cast<uint16_t>(i - int64_t{pair} * slots),
        static_cast<uint16_t>(min(visible, kSparseBlock))};
  }
}

int CeilDiv(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Whether a tile of which every row chooses other blocks could pay.
bool MayPay(const WindowSparseArgs& args, int max_blocks) {
  const int slots = args.selected_blocks;
  const int tile_tokens = WindowSparsePrefillTileTokens(args);
  return int64_t{std::min(max_blocks, tile_tokens * slots)} * BlockBytes(args) >
         int64_t{kPairCost} * tile_tokens * slots * PairBytes(args);
}

// Rows of a pass at most.
int64_t PassRows(const WindowSparseArgs& args, int max_blocks) {
  const int slots = args.selected_blocks;
  const int heads = args.num_heads / args.num_kv_heads;
  const int64_t row_bytes = int64_t{slots} * heads * (2 * args.v_head_dim + 4);  // of a kv head
  return std::min<int64_t>(
      {std::max<int64_t>(kMinPassRows, int64_t{kListRows} * max_blocks / slots), args.num_rows,
       static_cast<int64_t>(kSparsePartialBytes / 2) / row_bytes});
}

// Sets plan.part_items and the addresses, from the sizes; the bytes.
size_t Place(const WindowSparseArgs& args, char* workspace, ByBlockPlan& plan) {
  const int slots = args.selected_blocks;
  const int heads = args.num_heads / args.num_kv_heads;
  const int64_t part_pairs = int64_t{plan.pass_rows} * slots;
  plan.part_items = static_cast<int>(std::min<int64_t>(plan.num_blocks, part_pairs) +
                                     part_pairs / (ByBlockTokens(heads) * kMaxItemTiles) + 1);
  size_t used = 0;
  const auto place = [&](auto*& array, int64_t count) {
    array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(workspace + used);
    used += (static_cast<size_t>(count) * sizeof(*array) + 255) / 256 * 256;
  };
  const int64_t parts = plan.num_parts;
  const int64_t pairs = int64_t{args.num_rows} * args.num_kv_heads;
  place(plan.by_block, pairs);
  place(plan.counts, parts * plan.num_blocks);
  place(plan.any, 1);
  place(plan.stored, parts);
  place(plan.merged, parts);
  place(plan.tile_begin, args.num_seqs + 1);
  place(plan.block_begin, args.num_seqs + 1);
  place(plan.ranks, pairs * slots);
  place(plan.entries, parts * part_pairs);
  place(plan.items, parts * plan.part_items);
  place(plan.num_items, parts);
  place(plan.partial_lse, 2 * part_pairs * heads);
  place(plan.partial, 2 * part_pairs * heads * args.v_head_dim);
  return used;
}

}  // namespace

ByBlockPlan MakeByBlockPlan(const WindowSparseArgs& args, const SparsePrefillWork& work,
                            char* workspace, size_t* bytes) {
  *bytes = 0;
  ByBlockPlan plan;
  plan.tile_tokens = WindowSparsePrefillTileTokens(args);
  if (args.selection == nullptr || args.selected_blocks == 0 || work.num_rows < kMinRows ||
      !MayPay(args, work.max_blocks) ||
      work.num_blocks > int64_t{work.num_rows} * args.selected_blocks / 2 ||
      kPlanWarps * (work.max_blocks / 8 + 4) > kMaxBitmapBytes) {
    return plan;
  }
  plan.min_rows = work.min_rows;
  plan.num_tiles = work.num_tiles;
  plan.num_blocks = work.num_blocks;
  plan.max_blocks = work.max_blocks;
  plan.num_passes = CeilDiv(args.num_rows, PassRows(args, work.max_blocks));
  plan.pass_rows = CeilDiv(args.num_rows, plan.num_passes);
  plan.num_parts = plan.num_passes * args.num_kv_heads;
  *bytes = Place(args, workspace, plan);
  return plan;
}

// Every size at its own largest: the number of passes where contexts are short, the rows of a pass
// where they are long.
size_t MostByBlockBytes(const WindowSparseArgs& args, int max_blocks) {
  if (args.selected_blocks == 0 || args.num_rows < kMinRows || !MayPay(args, max_blocks)) return 0;
  ByBlockPlan plan;
  plan.num_blocks =
      static_cast<int>(std::min(int64_t{args.num_seqs} * max_blocks,
                                int64_t{args.num_rows} * args.selected_blocks / 2));
  plan.pass_rows = static_cast<int>(PassRows(args, max_blocks));
  plan.num_parts = CeilDiv(args.num_rows, PassRows(args, 0)) * args.num_kv_heads;
  return Place(args, nullptr, plan);
}

cudaError_t LaunchByBlockPlan(const WindowSparseArgs& args, const ByBlockPlan& plan,
                              cudaStream_t stream) {
  const size_t zeroed = reinterpret_cast<char*>(plan.tile_begin) -
                        reinterpret_cast<char*>(plan.by_block);
  const cudaError_t error = cudaMemsetAsync(plan.by_block, 0, zeroed, stream);
  if (error != cudaSuccess) return error;
  SumKernel<<<1, 32, 0, stream>>>(args, plan);
  const int words = (plan.max_blocks + 31) / 32;
  const int work = plan.num_tiles * args.num_kv_heads;
  ChooseKernel<<<CeilDiv(work, kPlanWarps), kPlanWarps * 32, kPlanWarps * words * 4, stream>>>(
      args, plan);
  ItemKernel<<<plan.num_parts, kItemThreads, 0, stream>>>(args, plan);
  const int64_t entries = int64_t{args.num_rows} * args.num_kv_heads * args.selected_blocks;
  EntryKernel<<<std::min(CeilDiv(entries, 256), 2048), 256, 0, stream>>>(args, plan);
  return cudaGetLastError();
}

}  // namespace hyserve::kernels::cuda::window_sparse
