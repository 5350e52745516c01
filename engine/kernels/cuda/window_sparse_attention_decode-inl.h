// What the two decode kernels of WindowSparseAttention share: a part (one selected block, or 64
// keys of the window) of one row and kv head, worked on by four warps with the heads of the group
// as the rows of an mma; and the merge of parts. Part p belongs to chain p % kChains; the parts of
// a chain are merged in ascending order, then the chains. Both kernels compute every part and every
// merge with the same operations in this order, so they give the same bits.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_DECODE_INL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_DECODE_INL_H_

#include "engine/kernels/cuda/hopper/mbarrier.h"
#include "engine/kernels/cuda/hopper/warpgroup.h"
#include "engine/kernels/cuda/window_sparse_attention-inl.h"

namespace hyserve::kernels::cuda::window_sparse {

inline constexpr int kHeads = 16;              // rows of an mma: heads of the group, padded
inline constexpr int kPartKeys = kSparseBlock;  // 64
inline constexpr int kPartThreads = 128;
inline constexpr int kPartWarps = 4;
inline constexpr int kChains = 2;
inline constexpr int kPStride = kPartKeys + 8;  // elements; the rows of P lie in different banks

__device__ __forceinline__ void CopyAsync(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void Multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Address of 16-byte chunk `chunk` of row `row`: chunks of a row are permuted within each eight so
// that the eight rows of a matrix load lie in different banks.
template <int kCols>
__device__ __forceinline__ uint32_t ChunkAddress(uint32_t base, int row, int chunk) {
  return base + (row * (kCols / 8) + (chunk ^ (row & 7))) * 16;
}

template <int kDim, int kVDim>
struct alignas(128) PartKeys {
  uint16_t k[kPartKeys * kDim];
  uint16_t v[kPartKeys * kVDim];
};

// What the four warps of a part tell each other.
struct PartExchange {
  alignas(16) uint16_t p[kHeads * kPStride];
  float max[kPartWarps][kHeads];
  float sum[kPartWarps][kHeads];
};

// The row that a thread block works on.
struct DecodeRow {
  int seq;
  int kv_head;
  int position;
  int64_t row;
};

// False: this thread block has no row.
__device__ __forceinline__ bool FindRow(const WindowSparseArgs& args, int rows_per_seq, int kv_head,
                                        int index, DecodeRow& at) {
  at.kv_head = kv_head;
  if (args.one_row_each) {  // saves a round trip to memory
    at.seq = index;
    at.row = index;
    at.position = args.positions[index];
    return true;
  }
  at.seq = index / rows_per_seq;
  const int i = index % rows_per_seq;
  const int begin = args.row_begin[at.seq];
  const int rows = args.row_begin[at.seq + 1] - begin;
  if (i >= rows || rows > kSparseDecodeRows) return false;
  at.row = begin + i;
  at.position = args.first_position[at.seq] + i;
  return true;
}

// Slots [lo, hi) of a part are visible; k: first key of a selected block.
struct PartPlace {
  const uint16_t* k = nullptr;
  int lo = 0;
  int hi = 0;
};

__host__ __device__ inline int NumSparseParts(const WindowSparseArgs& args) {
  return args.selection == nullptr ? 0 : args.selected_blocks;
}
__host__ __device__ inline int NumParts(const WindowSparseArgs& args) {
  return NumSparseParts(args) + (args.window + kPartKeys - 1) / kPartKeys;
}

// Parts [0, selected_blocks) are the selected blocks, the rest the window from its oldest key on.
__device__ __forceinline__ PartPlace FindPart(const WindowSparseArgs& args, const DecodeRow& at,
                                              int part) {
  const int sparse = NumSparseParts(args);
  PartPlace place;
  if (part >= sparse) {
    const int begin = (part - sparse) * kPartKeys;
    place.lo = max(0, args.window - 1 - at.position - begin);
    place.hi = min(kPartKeys, args.window - begin);
    return place;
  }
  const int block =
      args.selection[(at.row * args.num_kv_heads + at.kv_head) * args.selected_blocks + part];
  if (block < 0 || block > at.position / kSparseBlock) return place;
  place.hi = min(kPartKeys, at.position + 1 - block * kSparseBlock);
  const int page = args.page_table[int64_t{at.seq} * args.page_table_stride + block];
  place.k = PageKey(args, page, at.kv_head, 0).k;
  return place;
}

// Starts the copies of a part's K (kIsKey) or V rows: thread `thread` of kPartThreads copies chunk
// thread % 8 and every eighth after it of row thread / 8 and every sixteenth after it. Slots that
// are not visible become zero.
template <int kCols, bool kIsKey>
__device__ __forceinline__ void CopyRows(const WindowSparseArgs& args, const DecodeRow& at,
                                         int part, const PartPlace& place, uint16_t* to,
                                         int thread) {
  const int first_row = thread / 8;
  const int chunk = thread % 8;
  const uint32_t target =
      hopper::SharedAddress(to) + first_row * kCols * 2 + (chunk ^ (first_row & 7)) * 16;
  const int sparse = NumSparseParts(args);
  const uint16_t* base = place.k;
  if constexpr (!kIsKey) {
    base += int64_t{kSparseBlock} * args.num_kv_heads * args.head_dim +
            at.kv_head * kSparseBlock * (args.v_head_dim - args.head_dim);
  }
  base += first_row * kCols + chunk * 8;
  if (part < sparse && place.hi == kPartKeys) {
#pragma unroll
    for (int i = 0; i < kPartKeys / 16; ++i) {
#pragma unroll
      for (int c = 0; c < kCols / 64; ++c) {
        CopyAsync(target + i * 16 * kCols * 2 + c * 128, base + i * 16 * kCols + c * 64, true);
      }
    }
    return;
  }
#pragma unroll 1
  for (int i = 0; i < kPartKeys / 16; ++i) {
    const int slot = first_row + i * 16;
    const bool visible = slot >= place.lo && slot < place.hi;
    const uint16_t* from = base + i * 16 * kCols;
    if (part >= sparse && visible) {
      const KeyRows key = WindowKey(
          args, at.seq, at.kv_head,
          at.position - args.window + 1 + (part - sparse) * kPartKeys + slot);
      from = (kIsKey ? key.k : key.v) + chunk * 8;
    }
    if (!visible) from = args.q.data;  // not read
#pragma unroll
    for (int c = 0; c < kCols / 64; ++c) {
      CopyAsync(target + i * 16 * kCols * 2 + c * 128, from + (visible ? c * 64 : 0), visible);
    }
  }
}

// Queries of the group, 16 rows padded with zeros, by `threads` threads.
template <int kDim>
__device__ __forceinline__ void CopyQueries(const WindowSparseArgs& args, const DecodeRow& at,
                                            int group, uint16_t* to, int thread, int threads) {
  constexpr int kChunks = kDim / 8;
  const uint16_t* q =
      args.q.data + at.row * args.q.stride + int64_t{at.kv_head} * group * kDim;
  for (int i = thread; i < kHeads * kChunks; i += threads) {
    const int head = i / kChunks;
    const int chunk = i % kChunks;
    const bool valid = head < group;
    CopyAsync(ChunkAddress<kDim>(hopper::SharedAddress(to), head, chunk),
              valid ? q + head * kDim + chunk * 8 : q, valid);
  }
}

// A softmax over some keys: of this thread's two rows (heads lane / 4 and + 8) the maximum (log2
// domain), the sum, and output columns warp * kVDim / 4 + 8 i + 2 (lane % 4) + {0, 1}.
template <int kVDim>
struct PartResult {
  static constexpr int kTiles = kVDim / kPartWarps / 8;
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
  float out[kTiles][4] = {};
};

template <int kVDim>
__device__ __forceinline__ void Clear(PartResult<kVDim>& result) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    result.max[half] = -INFINITY;
    result.sum[half] = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < PartResult<kVDim>::kTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) result.out[i][j] = 0.0f;
  }
}

// One step of a merge; every use of it must round alike.
struct MergeWeights {
  float max;
  float before;  // weight of what was there
  float part;
};
__device__ __forceinline__ MergeWeights Merge(float max, float part_max) {
  MergeWeights weights;
  weights.max = fmaxf(max, part_max);
  const float finite = weights.max == -INFINITY ? 0.0f : weights.max;
  weights.before = hopper::Exp2(max - finite);
  weights.part = hopper::Exp2(part_max - finite);
  return weights;
}
__device__ __forceinline__ float Merged(const MergeWeights& weights, float before, float part) {
  return __fmaf_rn(part, weights.part, __fmul_rn(before, weights.before));
}

// total becomes the merge of total and part.
template <int kVDim>
__device__ __forceinline__ void MergePart(PartResult<kVDim>& total, const PartResult<kVDim>& part) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const MergeWeights weights = Merge(total.max[half], part.max[half]);
    total.max[half] = weights.max;
    total.sum[half] = Merged(weights, total.sum[half], part.sum[half]);
#pragma unroll
    for (int i = 0; i < PartResult<kVDim>::kTiles; ++i) {
#pragma unroll
      for (int j = 2 * half; j < 2 * half + 2; ++j) {
        total.out[i][j] = Merged(weights, total.out[i][j], part.out[i][j]);
      }
    }
  }
}

// Logits and probabilities of this warp's 16 keys, to `exchange`. The keys must have arrived; then
// a barrier of the part's warps, then PartValues.
template <int kDim>
__device__ __forceinline__ void PartLogits(const uint16_t* keys, const uint16_t* queries,
                                           const PartPlace& place, float factor,
                                           PartExchange& exchange) {
  const int warp = threadIdx.x / 32 % kPartWarps;
  const int lane = threadIdx.x % 32;
  float s[2][4] = {};
  const uint32_t k = hopper::SharedAddress(keys);
  const uint32_t q = hopper::SharedAddress(queries);
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    // Matrices: keys 0-7 and 8-15 of the first 8 dims, then of the next 8.
    uint32_t a[4], b[4];
    LoadMatrices(a, ChunkAddress<kDim>(q, lane & 15, 2 * step + (lane >> 4)));
    LoadMatrices(b, ChunkAddress<kDim>(k, warp * 16 + (lane & 15), 2 * step + (lane >> 4)));
    Multiply(s[0], a, b[0], b[2]);
    Multiply(s[1], a, b[1], b[3]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int head = lane / 4 + half * 8;
    float max = -INFINITY;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int slot = warp * 16 + i * 8 + (lane & 3) * 2 + j;
        float& logit = s[i][2 * half + j];
        logit = slot >= place.lo && slot < place.hi ? logit * factor : -INFINITY;
        max = fmaxf(max, logit);
      }
    }
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
    const float finite = max == -INFINITY ? 0.0f : max;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float p0 = hopper::Exp2(s[i][2 * half] - finite);
      const float p1 = hopper::Exp2(s[i][2 * half + 1] - finite);
      sum += p0 + p1;
      *reinterpret_cast<uint32_t*>(
          &exchange.p[head * kPStride + warp * 16 + i * 8 + (lane & 3) * 2]) = PackBf16(p0, p1);
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if ((lane & 3) == 0) {
      exchange.max[warp][head] = max;
      exchange.sum[warp][head] = sum;
    }
  }
}

// The part's result, of this thread's rows and columns.
template <int kVDim>
__device__ __forceinline__ void PartValues(const uint16_t* values, const PartExchange& exchange,
                                           PartResult<kVDim>& result) {
  const int warp = threadIdx.x / 32 % kPartWarps;
  const int lane = threadIdx.x % 32;
  float weight[kPartWarps][2];  // of each warp's 16 keys
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int head = lane / 4 + half * 8;
    float max = exchange.max[0][head];
#pragma unroll
    for (int w = 1; w < kPartWarps; ++w) max = fmaxf(max, exchange.max[w][head]);
    const float finite = max == -INFINITY ? 0.0f : max;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kPartWarps; ++w) {
      weight[w][half] = hopper::Exp2(exchange.max[w][head] - finite);
      sum = __fmaf_rn(exchange.sum[w][head], weight[w][half], sum);
    }
    result.max[half] = max;
    result.sum[half] = sum;
  }
  constexpr int kTiles = PartResult<kVDim>::kTiles;
  const uint32_t p = hopper::SharedAddress(exchange.p);
  const uint32_t v = hopper::SharedAddress(values);
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) result.out[i][j] = 0.0f;
  }
#pragma unroll
  for (int w = 0; w < kPartWarps; ++w) {
    uint32_t a[4];
    LoadMatrices(a, p + ((lane & 15) * kPStride + w * 16 + (lane >> 4) * 8) * 2);
#pragma unroll
    for (int i = 0; i < kTiles; i += 2) {
      // Matrices: keys 0-7 and 8-15 of 8 columns, then of the next 8.
      uint32_t b[4];
      const int chunk = warp * kTiles + i + (lane >> 4);
      LoadMatricesTransposed(b, ChunkAddress<kVDim>(v, w * 16 + (lane & 15), chunk));
      float c[2][4] = {};
      Multiply(c[0], a, b[0], b[1]);
      Multiply(c[1], a, b[2], b[3]);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          result.out[i + n][j] = __fmaf_rn(c[n][j], weight[w][j >> 1], result.out[i + n][j]);
        }
      }
    }
  }
}

}  // namespace hyserve::kernels::cuda::window_sparse

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_DECODE_INL_H_
