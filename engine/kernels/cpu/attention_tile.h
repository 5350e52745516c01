// A tile of query rows against one block of 64 keys at a time: the arithmetic that every attention
// of the CPU shares, for one row as for many, so that decode and prefill agree bit for bit.
//
// Rows of a tile are (token, head of the group), heads innermost. Per block: logits by one chain of
// multiply-adds over the head dim; the online softmax; then the values by one chain over the
// visible keys in ascending order, continued from block to block. Keys that a row does not see
// never enter its sums.
#ifndef HYSERVE_ENGINE_KERNELS_CPU_ATTENTION_TILE_H_
#define HYSERVE_ENGINE_KERNELS_CPU_ATTENTION_TILE_H_

#include <cstddef>
#include <cstdint>

#include "engine/kernels/attention_batch.h"
#include "engine/kernels/cpu/simd_kernels.h"
#include "engine/tensor/tensor.h"

namespace hyserve::kernels::cpu {

struct TileShape {
  int heads = 0;  // query heads per KV head
  int head_dim = 0;
  int v_head_dim = 0;
  int panel_cols = 0;
  tensor::DType dtype = tensor::DType::kF32;  // of keys and values

  int q_cols() const { return (head_dim + 1) / 2 * 2; }
  int v_cols() const { return (v_head_dim + panel_cols - 1) / panel_cols * panel_cols; }
  // Floats of one tile of num_tokens tokens, and of one packed block.
  int64_t StateFloats(int num_tokens) const {
    return static_cast<int64_t>(num_tokens) * heads * (v_cols() + 2);
  }
  int64_t TileFloats(int num_tokens) const {
    return StateFloats(num_tokens) +
           static_cast<int64_t>(num_tokens) * heads * (q_cols() + kBlockTokens);
  }
  int64_t BlockFloats() const {
    return static_cast<int64_t>(kBlockTokens) * (q_cols() + v_cols());
  }
};

// Running softmax of the rows of a tile; a view of memory owned elsewhere.
struct SoftmaxState {
  float* max = nullptr;   // [rows], largest logit so far, -inf before the first
  float* sum = nullptr;   // [rows], sum of exp(logit - max)
  float* out = nullptr;   // [rows, v_cols], not yet divided by the sum; columns as they accumulate

  static SoftmaxState At(float* memory, int64_t rows) {
    return {memory, memory + rows, memory + 2 * rows};
  }
};

// Keys and values of one block, as pointers to the single tokens (null: not in the cache).
struct BlockKeys {
  const void* keys[kBlockTokens];
  const void* values[kBlockTokens];
  // Elements from one value to the next when all are there at equal distances, else 0.
  int64_t value_stride = 0;
};

// Pointers into page `block` of a full layer for one KV head.
void PagePointers(const PagedKv& kv, int64_t block, int kv_head, BlockKeys& out);

class AttentionTile {
 public:
  // memory: TileFloats(num_tokens) + BlockFloats() floats, used until the tile is destroyed.
  AttentionTile(const SimdKernels& simd, const TileShape& shape, int num_tokens, float* memory);

  int num_tokens() const { return num_tokens_; }
  int64_t num_rows() const { return static_cast<int64_t>(num_tokens_) * shape_.heads; }
  const TileShape& shape() const { return shape_; }
  const SoftmaxState& state() const { return state_; }

  // Copies q of one KV head's query heads, times scale. first_row is the row of the tile's first
  // token; columns [kv_head * heads * head_dim, ...) are taken.
  void LoadQueries(const tensor::TensorView& q, int64_t first_row, int kv_head, float scale);
  // No key seen yet.
  void ResetState();
  // Takes the keys and values of a block; values at equal distances are read where they are.
  void SetBlock(const BlockKeys& block);
  // The pages (first key, first value) of the block after this one: fetched into the caches while
  // this one is worked on. Null: none.
  void SetNextBlock(const void* keys, const void* values);
  // Attends tokens [token_begin, token_end) to keys [lo, hi) of the block; the same range for all
  // of them. block_max as in SimdKernels::softmax_step, at the first of these rows, or null.
  void Attend(int token_begin, int token_end, int lo, int hi, float* block_max,
              int64_t block_max_stride);

 private:
  // A range to fetch while a loop of `steps` steps runs.
  struct Prefetch {
    const char* begin = nullptr;
    int64_t step_bytes = 0;
  };
  Prefetch Share(const void* base, int64_t bytes, int64_t part, int64_t parts, int64_t steps) const;

  const SimdKernels& simd_;
  const TileShape shape_;
  const int num_tokens_;
  SoftmaxState state_;
  float* q_ = nullptr;       // [rows, q_cols]
  float* scores_ = nullptr;  // [rows, kBlockTokens]
  float* keys_ = nullptr;    // packed
  float* values_ = nullptr;  // room for values that do not lie at equal distances
  // The current block.
  const void* block_values_ = nullptr;
  int64_t value_stride_ = 0;
  const void* next_keys_ = nullptr;
  const void* next_values_ = nullptr;
};

// Columns of one row of SoftmaxState::out in the order of the head; v_cols of them, in row itself
// or in buffer (v_cols floats).
const float* OrderedColumns(const SimdKernels& simd, const TileShape& shape, const float* row,
                            float* buffer);

// Joins the softmax of a later range of keys into `into`, for every row that saw keys there.
void MergeState(const SimdKernels& simd, const TileShape& shape, int64_t rows,
                const SoftmaxState& later, const SoftmaxState& into);

}  // namespace hyserve::kernels::cpu

#endif  // HYSERVE_ENGINE_KERNELS_CPU_ATTENTION_TILE_H_
