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
}

AttentionTile::AttentionTile(const SimdKernels& simd, const TileShape& shape, int num_tokens,
                             float* memory)
    : simd_(simd), shape_(shape), num_tokens_(num_tokens) {
  const int64_t rows = num_rows();
  scores_ = memory;  // first: it and the packed block stay aligned to vectors
  keys_ = scores_ + rows * kBlockTokens;
  values_ = keys_ + static_cast<int64_t>(kBlockTokens) * shape.head_dim;
  q_ = values_ + static_cast<int64_t>(kBlockTokens) * shape.v_cols();
  state_ = SoftmaxState::At(q_ + rows * shape.head_dim, rows);
}

void AttentionTile::LoadQueries(const tensor::TensorView& q, int64_t first_row, int kv_head,
                                float scale) {
  const int64_t cols = static_cast<int64_t>(shape_.heads) * shape_.head_dim;
  for (int token = 0; token < num_tokens_; ++token) {
    simd_.scale(q.Row<const float>(first_row + token) + kv_head * cols, scale, q_ + token * cols,
                cols);
  }
}

void AttentionTile::ResetState() {
  const int64_t rows = num_rows();
  std::fill(state_.max, state_.max + rows, -std::numeric_limits<float>::infinity());
  std::fill(state_.sum, state_.sum + rows, 0.0f);
  std::memset(state_.out, 0, rows * shape_.v_cols() * sizeof(float));
}

void AttentionTile::PackBlock(const BlockKeys& block, DType dtype) {
  if (dtype == DType::kF32) {
    simd_.pack_keys_f32(block.keys, shape_.head_dim, keys_);
    simd_.pack_values_f32(block.values, shape_.v_head_dim, values_);
  } else {
    simd_.pack_keys_bf16(block.keys, shape_.head_dim, keys_);
    simd_.pack_values_bf16(block.values, shape_.v_head_dim, values_);
  }
}

void AttentionTile::Attend(int token_begin, int token_end, int lo, int hi, float* block_max,
                           int64_t block_max_stride) {
  const int64_t row = static_cast<int64_t>(token_begin) * shape_.heads;
  const int rows = (token_end - token_begin) * shape_.heads;
  const int64_t panel = shape_.panel_cols;
  const int64_t v_cols = shape_.v_cols();
  float* scores = scores_ + row * kBlockTokens;
  float* out = state_.out + row * v_cols;
  for (int64_t j = lo / panel * panel; j < hi; j += panel) {
    simd_.gemm_rows(q_ + row * shape_.head_dim, shape_.head_dim, keys_ + j * shape_.head_dim,
                    scores + j, kBlockTokens, shape_.head_dim, rows, false);
  }
  simd_.softmax_step(scores, rows, lo, hi, state_.max + row, state_.sum + row, out, v_cols,
                     static_cast<int>(v_cols), block_max, block_max_stride);
  for (int64_t j = 0; j < v_cols; j += panel) {
    simd_.gemm_rows(scores + lo, kBlockTokens, values_ + j * kBlockTokens + lo * panel, out + j,
                    v_cols, hi - lo, rows, true);
  }
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
