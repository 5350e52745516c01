#include "engine/kernels/cuda/full_attention_generic.h"

#include <cuda_bf16.h>

#include <cmath>

#include "engine/kernels/cuda/split_attention_work.cuh"

namespace hyserve::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kRows = kGenericTileRows / kWarps;  // query rows of a warp
constexpr int kDimGroups = kGenericMostDim / 32;

// One page and the query tile, in f32. Keys have an odd stride: a lane reads its own key.
struct SharedTiles {
  float* keys;    // [64][key_stride]
  float* values;  // [64][v_head_dim]
  float* q;       // [32][head_dim]
  int key_stride;
};

__host__ __device__ int KeyStride(int head_dim) { return head_dim | 1; }

// Tokens from `context` on are not read: their values become zero.
__device__ void LoadPage(const SplitAttentionArgs& args, int block, int kv_head, int context,
                         const SharedTiles& tiles) {
  const int64_t dims = args.head_dim + args.v_head_dim;
  const auto* slice = static_cast<const __nv_bfloat16*>(args.pages) +
                      block * dims * args.num_kv_heads * kPageTokens;
  const __nv_bfloat16* keys = slice + static_cast<int64_t>(kv_head) * kPageTokens * args.head_dim;
  const __nv_bfloat16* values =
      slice + (static_cast<int64_t>(args.num_kv_heads) * args.head_dim +
               static_cast<int64_t>(kv_head) * args.v_head_dim) *
                  kPageTokens;
  for (int i = threadIdx.x; i < kPageTokens * args.head_dim; i += kThreads) {
    const int token = i / args.head_dim;
    tiles.keys[token * tiles.key_stride + i % args.head_dim] =
        token < context ? __bfloat162float(keys[i]) : 0.0f;
  }
  for (int i = threadIdx.x; i < kPageTokens * args.v_head_dim; i += kThreads) {
    tiles.values[i] = i / args.v_head_dim < context ? __bfloat162float(values[i]) : 0.0f;
  }
}

__device__ void LoadQueries(const SplitAttentionArgs& args, const SequenceWork& work,
                            const WorkItem& item, float* q) {
  const int group_heads = args.num_heads / args.num_kv_heads;
  for (int i = threadIdx.x; i < kGenericTileRows * args.head_dim; i += kThreads) {
    const int row = item.tile * kGenericTileRows + i / args.head_dim;
    float value = 0.0f;
    if (row < work.rows * group_heads) {
      const int64_t head = item.kv_head * group_heads + row % group_heads;
      value = __bfloat162float(static_cast<const __nv_bfloat16*>(
          args.q)[(work.first_row + row / group_heads) * args.q_stride + head * args.head_dim +
                  i % args.head_dim]);
    }
    q[i] = value;
  }
}

// What a warp holds of its query rows: lane i has dims i, i + 32, ...
struct WarpRows {
  float m[kRows];
  float l[kRows];  // this lane's keys only
  float o[kRows][kDimGroups];
};

// logits: q . k of this lane's keys (lane and lane + 32), -inf where not visible.
__device__ void Accumulate(const SplitAttentionArgs& args, const SharedTiles& tiles,
                           float (&logits)[kRows][2], const float (&page_max)[kRows],
                           WarpRows& rows) {
  const int lane = threadIdx.x % 32;
  const float scale_log2 = args.scale * 1.44269504088896341f;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float m = fmaxf(rows.m[r], page_max[r]);
    const float base = m == -INFINITY ? 0.0f : m * scale_log2;
    const float factor = exp2f(rows.m[r] * scale_log2 - base);
    rows.m[r] = m;
#pragma unroll
    for (int i = 0; i < 2; ++i) logits[r][i] = exp2f(logits[r][i] * scale_log2 - base);
    rows.l[r] = rows.l[r] * factor + logits[r][0] + logits[r][1];
#pragma unroll
    for (int j = 0; j < kDimGroups; ++j) rows.o[r][j] *= factor;
  }
  for (int token = 0; token < kPageTokens; ++token) {
    float p[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      p[r] = __shfl_sync(0xffffffff, token < 32 ? logits[r][0] : logits[r][1], token % 32);
    }
#pragma unroll
    for (int j = 0; j < kDimGroups; ++j) {
      const int dim = j * 32 + lane;
      if (j * 32 >= args.v_head_dim) break;
      const float v = dim < args.v_head_dim ? tiles.values[token * args.v_head_dim + dim] : 0.0f;
#pragma unroll
      for (int r = 0; r < kRows; ++r) rows.o[r][j] = fmaf(p[r], v, rows.o[r][j]);
    }
  }
}

// One query row; out: where its output goes if its sequence has one split only, else null.
__device__ void StoreRow(const SplitAttentionArgs& args, int64_t place, float m, float l,
                         const float (&o)[kDimGroups], __nv_bfloat16* out) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) l += __shfl_xor_sync(0xffffffff, l, step);
  if (lane == 0) *reinterpret_cast<float2*>(args.partial_state + 2 * place) = {m, l};
  const float inverse = 1.0f / l;
#pragma unroll
  for (int j = 0; j < kDimGroups; ++j) {
    const int dim = j * 32 + lane;
    if (dim >= args.v_head_dim) continue;
    if (out != nullptr) {
      out[dim] = __float2bfloat16(o[j] * inverse);
    } else {
      args.partial_out[place * args.v_head_dim + dim] = o[j];
    }
  }
}

__device__ void AttendItem(const SplitAttentionArgs& args, const SequenceWork& work,
                           const WorkItem& item, const SharedTiles& tiles) {
  const int lane = threadIdx.x % 32;
  const int group_heads = args.num_heads / args.num_kv_heads;
  const int query_rows = work.rows * group_heads;
  const int first = threadIdx.x / 32 * kRows;  // of the tile
  const int row = item.tile * kGenericTileRows + first;
  const int32_t* page_table =
      args.page_table +
      static_cast<int64_t>(args.first_sequence + item.sequence) * args.page_table_stride;
  WarpRows rows;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    rows.m[r] = -INFINITY;
    rows.l[r] = 0.0f;
#pragma unroll
    for (int j = 0; j < kDimGroups; ++j) rows.o[r][j] = 0.0f;
  }
  for (int page = item.page_begin; page < item.page_end; ++page) {
    const int key = page * kPageTokens;
    __syncthreads();
    if (page == item.page_begin) LoadQueries(args, work, item, tiles.q);
    LoadPage(args, page_table[page], item.kv_head, work.position + work.rows - key, tiles);
    __syncthreads();
    float logits[kRows][2] = {};
    const float* q = tiles.q + first * args.head_dim;
    for (int dim = 0; dim < args.head_dim; ++dim) {
      const float k0 = tiles.keys[lane * tiles.key_stride + dim];
      const float k1 = tiles.keys[(lane + 32) * tiles.key_stride + dim];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        logits[r][0] = fmaf(q[r * args.head_dim + dim], k0, logits[r][0]);
        logits[r][1] = fmaf(q[r * args.head_dim + dim], k1, logits[r][1]);
      }
    }
    float page_max[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int limit = work.position + (row + r) / group_heads - key;
      if (lane > limit) logits[r][0] = -INFINITY;
      if (lane + 32 > limit) logits[r][1] = -INFINITY;
      page_max[r] = fmaxf(logits[r][0], logits[r][1]);
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        page_max[r] = fmaxf(page_max[r], __shfl_xor_sync(0xffffffff, page_max[r], step));
      }
      if (args.block_maxima != nullptr && lane == 0 && row + r < query_rows) {
        args.block_maxima[work.maxima_begin +
                          (static_cast<int64_t>(item.kv_head) * work.pages + page) * query_rows +
                          row + r] = page_max[r];
      }
    }
    Accumulate(args, tiles, logits, page_max, rows);
  }
  const int64_t partial =
      work.partial_begin +
      (static_cast<int64_t>(item.kv_head) * work.splits() + item.split) * query_rows;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (row + r >= query_rows) continue;
    __nv_bfloat16* out = nullptr;
    if (work.splits() == 1) {
      const int64_t head = item.kv_head * group_heads + (row + r) % group_heads;
      out = static_cast<__nv_bfloat16*>(args.out) +
            (work.first_row + (row + r) / group_heads) * args.out_stride + head * args.v_head_dim;
    }
    StoreRow(args, partial + row + r, rows.m[r], rows.l[r], rows.o[r], out);
  }
}

__global__ void __launch_bounds__(kThreads)
    GenericAttentionKernel(const __grid_constant__ SplitAttentionArgs args) {
  __shared__ SplitWork work;
  extern __shared__ float memory[];
  SharedTiles tiles;
  tiles.key_stride = KeyStride(args.head_dim);
  tiles.keys = memory;
  tiles.values = tiles.keys + kPageTokens * tiles.key_stride;
  tiles.q = tiles.values + kPageTokens * args.v_head_dim;
  BuildSplitWork<kGenericTileRows>(args, work);
  WorkWalker<kGenericTileRows> walker(args, work);
  WorkItem item;
  while (walker.Next(item)) AttendItem(args, work.sequences[item.sequence], item, tiles);
}

}  // namespace

cudaError_t LaunchGenericAttention(const SplitAttentionArgs& args, int num_sms,
                                   cudaStream_t stream) {
  if (args.head_dim > kGenericMostDim || args.v_head_dim > kGenericMostDim) {
    return cudaErrorInvalidValue;
  }
  const size_t shared_bytes =
      sizeof(float) * (static_cast<size_t>(kPageTokens) *
                           (KeyStride(args.head_dim) + args.v_head_dim) +
                       static_cast<size_t>(kGenericTileRows) * args.head_dim);
  const cudaError_t error = cudaFuncSetAttribute(
      GenericAttentionKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
      static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  GenericAttentionKernel<<<2 * num_sms, kThreads, shared_bytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace hyserve::kernels::cuda
