// Full attention with the keys of a sequence cut into splits: what one launch does, and the
// arithmetic that host and device share. Plain C++; no device state.
//
// Two kernels follow. The first (full_attention_decode.h or full_attention_generic.h) walks over
// work items (sequence, KV head, tile of query rows, split of pages) and leaves per split and query
// row: m = the largest q . k, l = sum of exp(scale (q . k - m)), O = sum of exp(..) v, and per page
// the largest q . k; where a sequence has one split only it writes the output instead of O. The
// second (select_blocks_decode.h) merges the splits of a row and selects blocks. A query row is a
// (token, head of the group) pair: r = token * heads per group + head.
//
// The splits of a sequence depend on its own context length and on whether it has few rows or many;
// so a row's bits do not depend on the other sequences of the step.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SPLIT_ATTENTION_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_SPLIT_ATTENTION_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#if defined(__CUDACC__)
#define HYSERVE_HOST_DEVICE __host__ __device__
#else
#define HYSERVE_HOST_DEVICE
#endif

namespace hyserve::kernels::cuda {

inline constexpr int kPageTokens = 64;
// Sequences of one launch.
inline constexpr int kMaxSplitSequences = 256;
// Query heads per KV head.
inline constexpr int kMaxGroupHeads = 512;
// Sequences with more rows use long splits, at most so many.
inline constexpr int kFewRows = 8;
inline constexpr int kManyRowsSplits = 64;
// Block maxima that one block of the second kernel reads.
inline constexpr int kMaximaPerPart = 1 << 14;

// Where a sequence's partial results begin: rows of partial_out, floats of block_maxima.
struct SplitOffsets {
  int32_t partial_row = 0;
  int32_t block_maximum = 0;
};

struct SplitAttentionArgs {
  // bf16, device; strides in elements.
  const void* q = nullptr;
  int64_t q_stride = 0;
  void* out = nullptr;
  int64_t out_stride = 0;
  const void* pages = nullptr;  // as PagedKv::data
  int64_t num_blocks = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
  float scale = 1.0f;  // > 0

  // Device arrays of AttentionBatch.
  const int32_t* row_begin = nullptr;
  const int32_t* first_position = nullptr;
  const int32_t* page_table = nullptr;
  int page_table_stride = 0;

  // Sequences [first_sequence, first_sequence + num_sequences), of which those with at most
  // row_limit rows, and of each its rows [window_begin, window_begin + window_rows).
  int first_sequence = 0;
  int num_sequences = 0;  // <= kMaxSplitSequences
  int row_limit = 0;
  int window_begin = 0;
  int window_rows = 0;
  int max_pages = 0;   // of any of them
  int max_splits = 0;  // of any of them

  // Workspace, sizes from SplitSize.
  float* partial_out = nullptr;    // [partial rows, v_head_dim]
  float* partial_state = nullptr;  // [partial rows, 2]: m, l
  float* block_maxima = nullptr;   // per sequence [kv head][page][query row]; null: not wanted
  SplitOffsets* offsets = nullptr;  // [num_sequences], written by the first kernel
  // [num_sequences, window_rows, num_kv_heads], zero before and after every launch.
  int32_t* tickets = nullptr;

  int32_t* selection = nullptr;  // as FullAttentionParams
  int selected_blocks = 0;
  float* block_scores = nullptr;
  int64_t scores_stride = 0;
};

HYSERVE_HOST_DEVICE inline int CeilDivide(int a, int b) { return (a + b - 1) / b; }

// Of sequences with few rows. The number of places is a constant, so that every GPU gives the same
// bits.
struct SplitLimits {
  int least;     // pages of a split
  int most;      // pages of a split up to which one wave does
  int per_head;  // splits of a wave

  HYSERVE_HOST_DEVICE SplitLimits(int num_kv_heads, int group_heads, int head_dim)
      : least(num_kv_heads > 4 ? 16 : 8), most(group_heads <= 16 ? 32 : 64) {
    const int places = head_dim > 192 ? 132 : 264;
    per_head = places / num_kv_heads > 0 ? places / num_kv_heads : 1;
  }
  HYSERVE_HOST_DEVICE int Waves(int pages) const {
    const int waves = CeilDivide(pages, per_head * most);
    return waves > 8 ? 8 : waves;
  }
};

// Pages of a split of a context of `pages` pages. One sequence alone fills the GPU when it is long
// enough, in up to 8 waves of splits, so that ragged batches balance; partial results stay small
// beside the pages, and short contexts are not split.
HYSERVE_HOST_DEVICE inline int SplitPages(int pages, bool few_rows, int num_kv_heads,
                                          int group_heads, int head_dim) {
  if (!few_rows) {
    const int split = CeilDivide(pages, kManyRowsSplits);
    return split < 64 ? 64 : split;
  }
  if (pages <= 16) return 16;
  const SplitLimits limits(num_kv_heads, group_heads, head_dim);
  const int split = CeilDivide(pages, limits.per_head * limits.Waves(pages));
  return split < limits.least ? limits.least : split;
}

// No context of up to `pages` pages of a sequence with few rows has more splits.
inline int MostSplits(int pages, int num_kv_heads, int group_heads, int head_dim) {
  const SplitLimits limits(num_kv_heads, group_heads, head_dim);
  const int by_size = CeilDivide(pages, limits.least);
  const int by_waves = limits.per_head * limits.Waves(pages);
  return by_size < by_waves ? by_size : by_waves;
}

// What a launch does of one sequence.
struct SequencePart {
  int rows = 0;         // tokens; 0: nothing
  int first_row = 0;    // row of the step
  int position = 0;     // of the first row
  int pages = 0;        // that the last row sees
  int split_pages = 1;

  HYSERVE_HOST_DEVICE int splits() const { return CeilDivide(pages, split_pages); }
};

HYSERVE_HOST_DEVICE inline SequencePart PartOf(const SplitAttentionArgs& args, int row_begin,
                                               int row_end, int first_position) {
  SequencePart part;
  const int rows = row_end - row_begin;
  if (rows > args.row_limit || rows <= args.window_begin) return part;
  const int left = rows - args.window_begin;
  part.rows = left < args.window_rows ? left : args.window_rows;
  part.first_row = row_begin + args.window_begin;
  part.position = first_position + args.window_begin;
  part.pages = CeilDivide(part.position + part.rows, kPageTokens);
  part.split_pages =
      SplitPages(CeilDivide(first_position + rows, kPageTokens), rows <= kFewRows,
                 args.num_kv_heads, args.num_heads / args.num_kv_heads, args.head_dim);
  return part;
}

// Sums over sequences.
struct SplitSize {
  int64_t cost = 0;  // pages times tiles
  int64_t partial_rows = 0;
  int64_t block_maxima = 0;

  HYSERVE_HOST_DEVICE void Add(const SequencePart& part, int splits, int num_kv_heads,
                               int group_heads, int tile_rows) {
    if (part.rows == 0) return;
    const int64_t query_rows = static_cast<int64_t>(part.rows) * group_heads;
    cost += (query_rows + tile_rows - 1) / tile_rows * num_kv_heads * part.pages;
    partial_rows += query_rows * num_kv_heads * splits;
    block_maxima += query_rows * num_kv_heads * part.pages;
  }
};

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SPLIT_ATTENTION_H_
