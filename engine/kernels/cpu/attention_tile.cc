#include "engine/kernels/cpu/attention_tile.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace hyserve::kernels::cpu {

using tensor::DType;

void PagePointers(const PagedKv& kv, int64_t block, int kv_head, BlockKeys& out) {
  const int64_t size = static_cast<int64_t>(tensor::SizeOf(kv.dtype));
  const int64_t k_slice = static_cast<int64_t>(kv.num_kv_heads) * kBlockTokens * kv.head_dim;
  const int64_t v_slice = static_cast<int64_t>(kv.num_kv_heads) * kBlockTokens * kv.v_head_dim;
  const char* base = static_cast<const char*>(kv.data) + block * (k_slice + v_slice) * size;
  const char* key = base + static_cast<int64_t>(kv_head) * kBlockTokens * kv.head_dim * size;
  const char* value =
      base + (k_slice + static_cast<int64_t>(kv_head) * kBlockTokens * kv.v_head_dim) * size;
  for (int j = 0; j < kBlockTokens; ++j) {
    out.keys[j] = key + j * kv.head_dim * size;
    out.values[j] = value + j * kv.v_head_dim * size;
  }
  out.value_stride = kv.v_head_dim;
}

AttentionTile::AttentionTile(const SimdKernels& simd, const TileShape& shape, int num_tokens,
                             float* memory)
    : simd_(simd), shape_(shape), num_tokens_(num_tokens) {
  const int64_t rows = num_rows();
  scores_ = memory;  // first: it and the packed block stay aligned to vectors
  keys_ = scores_ + rows * kBlockTokens;
  values_ = keys_ + static_cast<int64_t>(kBlockTokens) * shape.q_cols();
  q_ = values_ + static_cast<int64_t>(kBlockTokens) * shape.v_cols();
  state_ = SoftmaxState::At(q_ + rows * shape.q_cols(), rows);
}

void AttentionTile::LoadQueries(const tensor::TensorView& q, int64_t first_row, int kv_head,
                                float scale) {
  const int64_t dim = shape_.head_dim;
  const int64_t q_cols = shape_.q_cols();
  float* to = q_;
  for (int token = 0; token < num_tokens_; ++token) {
    const float* from =
        q.Row<const float>(first_row + token) + static_cast<int64_t>(kv_head) * shape_.heads * dim;
    for (int h = 0; h < shape_.heads; ++h, from += dim, to += q_cols) {
      simd_.scale(from, scale, to, dim);
      if (q_cols > dim) to[dim] = 0;
    }
  }
}

void AttentionTile::ResetState() {
  const int64_t rows = num_rows();
  std::fill(state_.max, state_.max + rows, -std::numeric_limits<float>::infinity());
  std::fill(state_.sum, state_.sum + rows, 0.0f);
  std::memset(state_.out, 0, rows * shape_.v_cols() * sizeof(float));
}

void AttentionTile::SetBlock(const BlockKeys& block) {
  next_keys_ = nullptr;
  if (shape_.dtype == DType::kF32) {
    simd_.pack_keys_f32(block.keys, shape_.head_dim, keys_);
  } else {
    simd_.pack_keys_bf16(block.keys, shape_.head_dim, reinterpret_cast<uint32_t*>(keys_));
  }
  // Whole panels are read, so values that end inside one are copied beside zeros.
  if (block.value_stride > 0 && shape_.v_head_dim % shape_.panel_cols == 0) {
    block_values_ = block.values[0];
    value_stride_ = block.value_stride;
    return;
  }
  const int64_t size = static_cast<int64_t>(tensor::SizeOf(shape_.dtype));
  value_stride_ = shape_.v_cols();
  block_values_ = values_;
  char* to = reinterpret_cast<char*>(values_);
  for (int j = 0; j < kBlockTokens; ++j, to += value_stride_ * size) {
    const int64_t bytes = block.values[j] == nullptr ? 0 : shape_.v_head_dim * size;
    if (bytes > 0) std::memcpy(to, block.values[j], bytes);
    std::memset(to + bytes, 0, value_stride_ * size - bytes);
  }
}

void AttentionTile::SetNextBlock(const void* keys, const void* values) {
  next_keys_ = keys;
  next_values_ = values;
}

AttentionTile::Prefetch AttentionTile::Share(const void* base, int64_t bytes, int64_t part,
                                             int64_t parts, int64_t steps) const {
  // Without a next block the same two cached lines, over and over.
  if (next_keys_ == nullptr) return {reinterpret_cast<const char*>(q_), 0};
  const int64_t share = bytes / parts;
  return {static_cast<const char*>(base) + part * share, (share / steps + 63) / 64 * 64};
}

void AttentionTile::Attend(int token_begin, int token_end, int lo, int hi, float* block_max,
                           int64_t block_max_stride) {
  const int64_t row = static_cast<int64_t>(token_begin) * shape_.heads;
  const int rows = (token_end - token_begin) * shape_.heads;
  const int64_t panel = shape_.panel_cols;
  const int64_t dim = shape_.q_cols();
  const int64_t v_cols = shape_.v_cols();
  const bool f32 = shape_.dtype == DType::kF32;
  const int64_t size = static_cast<int64_t>(tensor::SizeOf(shape_.dtype));
  const float* q = q_ + row * dim;
  float* scores = scores_ + row * kBlockTokens;
  float* out = state_.out + row * v_cols;
  for (int64_t j = lo / panel * panel; j < hi; j += panel) {
    const Prefetch next = Share(next_keys_, kBlockTokens * shape_.head_dim * size, j / panel,
                                kBlockTokens / panel, f32 ? dim : dim / 2);
    if (f32) {
      simd_.logits_f32(q, dim, keys_ + j * shape_.head_dim, scores + j, kBlockTokens,
                       shape_.head_dim, rows, next.begin, next.step_bytes);
    } else {
      const uint32_t* pairs = reinterpret_cast<const uint32_t*>(keys_);
      simd_.logits_bf16(q, dim, pairs + j * dim / 2, scores + j, kBlockTokens, shape_.head_dim,
                        rows, next.begin, next.step_bytes);
    }
  }
  simd_.softmax_step(scores, rows, lo, hi, state_.max + row, state_.sum + row, out, v_cols,
                     static_cast<int>(v_cols), block_max, block_max_stride);
  for (int64_t j = 0; j < v_cols; j += panel) {
    const Prefetch next = Share(next_values_, kBlockTokens * shape_.v_head_dim * size, j / panel,
                                v_cols / panel, hi - lo);
    const int64_t first = lo * value_stride_ + j;
    if (f32) {
      simd_.weigh_f32(scores + lo, static_cast<const float*>(block_values_) + first, value_stride_,
                      out + j, v_cols, hi - lo, rows, next.begin, next.step_bytes);
    } else {
      simd_.weigh_bf16(scores + lo, static_cast<const uint16_t*>(block_values_) + first,
                       value_stride_, out + j, v_cols, hi - lo, rows, next.begin, next.step_bytes);
    }
  }
  next_keys_ = nullptr;  // asked for once
}

const float* OrderedColumns(const SimdKernels& simd, const TileShape& shape, const float* row,
                            float* buffer) {
  if (shape.dtype == DType::kF32) return row;
  simd.join_columns(row, buffer, shape.v_cols() / shape.panel_cols);
  return buffer;
}

void MergeState(const SimdKernels& simd, const TileShape& shape, int64_t rows,
                const SoftmaxState& later, const SoftmaxState& into) {
  const int64_t v_cols = shape.v_cols();
  for (int64_t row = 0; row < rows; ++row) {
    if (later.max[row] == -std::numeric_limits<float>::infinity()) continue;
    const float max = std::max(into.max[row], later.max[row]);
    const float a = std::exp(into.max[row] - max);
    const float b = std::exp(later.max[row] - max);
    into.max[row] = max;
    into.sum[row] = into.sum[row] * a + later.sum[row] * b;
    simd.blend(a, into.out + row * v_cols, b, later.out + row * v_cols, v_cols);
  }
}

}  // namespace hyserve::kernels::cpu
