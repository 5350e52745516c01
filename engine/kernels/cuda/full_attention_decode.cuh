// The kernel of full_attention_decode.h.
//
// In a block one warpgroup computes and one warp starts copies; blocks stay on their SM and walk
// over work items, so the copies of the next item run while this one is finished. Per page (64
// tokens): S = Q K^T as one 64 x 64 product (query rows beyond the tile's are zero), block maxima
// from the row maxima, softmax, O += P V. The product with a page's values runs under the softmax
// of the next page. Barriers per stage of K and of V.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_DECODE_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_DECODE_CUH_

#include <cuda.h>
#include <cuda_bf16.h>

#include <cmath>

#include "engine/kernels/cuda/full_attention_decode.h"
#include "engine/kernels/cuda/full_attention_decode_query.cuh"
#include "engine/kernels/cuda/hopper/mbarrier.h"
#include "engine/kernels/cuda/hopper/tma.h"
#include "engine/kernels/cuda/hopper/warpgroup.h"
#include "engine/kernels/cuda/hopper/wgmma.h"
#include "engine/kernels/cuda/merge_splits.cuh"
#include "engine/kernels/cuda/overlap.cuh"
#include "engine/kernels/cuda/split_attention_work.cuh"

namespace hyserve::kernels::cuda {

// A warpgroup that computes; one whose first warp starts copies.
inline constexpr int kDecodeThreads = 2 * hopper::kWarpgroupThreads;

// kSharedQ: Q in shared memory, where registers do not suffice.
template <int kDim_, int kVDim_, int kKStages_, int kVStages_, int kBlocksPerSm_, bool kSharedQ_>
struct DecodeShape {
  static constexpr int kDim = kDim_;
  static constexpr int kVDim = kVDim_;
  static constexpr int kKStages = kKStages_;
  static constexpr int kVStages = kVStages_;
  static constexpr int kBlocksPerSm = kBlocksPerSm_;
  static constexpr bool kSharedQ = kSharedQ_;
  static constexpr int kKBytes = kDim / 64 * kSlabBytes;
  static constexpr int kVBytes = kVDim / 64 * kSlabBytes;
  static constexpr int kQBytes = kSharedQ ? kKBytes : 0;
};

template <typename Shape>
struct DecodeShared {
  alignas(1024) char k[Shape::kKStages][Shape::kKBytes];
  alignas(1024) char v[Shape::kVStages][Shape::kVBytes];
  alignas(1024) char q[Shape::kQBytes == 0 ? 16 : Shape::kQBytes];
  uint64_t k_full[Shape::kKStages];
  uint64_t k_empty[Shape::kKStages];
  uint64_t v_full[Shape::kVStages];
  uint64_t v_empty[Shape::kVStages];
  SplitWork work;
};

// One page of K or V: slabs of 64 dims.
template <int kDim>
__device__ __forceinline__ void CopyPage(const CUtensorMap* map, char* shared, uint64_t* barrier,
                                         int kv_head, int block) {
#pragma unroll
  for (int slab = 0; slab < kDim / 64; ++slab) {
    hopper::LoadTile4d(map, shared + slab * kSlabBytes, barrier, slab * 64, 0, kv_head, block,
                       hopper::kEvictFirst);
  }
}

// The copying warp.
template <typename Shape>
__device__ void CopyPages(const SplitAttentionArgs& args, const CUtensorMap* k_map,
                          const CUtensorMap* v_map, DecodeShared<Shape>& shared) {
  const int lane = threadIdx.x % 32;
  WorkWalker<kDecodeTileRows> walker(args, shared.work);
  hopper::RingPosition<Shape::kKStages> k_ring;
  hopper::RingPosition<Shape::kVStages> v_ring;
  WorkItem next;
  bool more = walker.Next(next);
  int next_page = next.page_begin;
  // Page ids are read 32 at a time, one group ahead.
  const auto read_ids = [&]() {
    const int page = next_page + lane;
    if (!more || page >= next.page_end) return 0;
    const int64_t row = args.first_sequence + next.sequence;
    return args.page_table[row * args.page_table_stride + page];
  };
  int next_ids = read_ids();
  while (more) {
    const int kv_head = next.kv_head;
    const int count = min(32, next.page_end - next_page);
    const int ids = next_ids;
    next_page += count;
    if (next_page == next.page_end) {
      more = walker.Next(next);
      next_page = next.page_begin;
    }
    next_ids = read_ids();
    for (int i = 0; i < count; ++i) {
      const int block = __shfl_sync(0xffffffff, ids, i);
      if (lane == 0) {
        hopper::BarrierWait(&shared.k_empty[k_ring.stage], k_ring.parity ^ 1);
        hopper::BarrierArriveExpect(&shared.k_full[k_ring.stage], Shape::kKBytes);
        CopyPage<Shape::kDim>(k_map, shared.k[k_ring.stage], &shared.k_full[k_ring.stage], kv_head,
                              block);
        hopper::BarrierWait(&shared.v_empty[v_ring.stage], v_ring.parity ^ 1);
        hopper::BarrierArriveExpect(&shared.v_full[v_ring.stage], Shape::kVBytes);
        CopyPage<Shape::kVDim>(v_map, shared.v[v_ring.stage], &shared.v_full[v_ring.stage],
                               kv_head, block);
      }
      k_ring.Advance();
      v_ring.Advance();
    }
    __syncwarp();
  }
}

// What a thread knows of its two query rows (rows row and row + 8 of the tile).
struct SoftmaxRows {
  float m[2];
  float l[2];
};

// S of one page to exp(scale (s - m)) in place; updates m and l. factor: what O must be multiplied
// with; exactly 1 where m stays.
__device__ inline void SoftmaxPage(float (&s)[32], SoftmaxRows& rows, float scale_log2,
                                   const float (&page_max)[2], float (&factor)[2]) {
  float base[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float m = fmaxf(rows.m[half], page_max[half]);
    base[half] = m == -INFINITY ? 0.0f : __fmul_rn(m, scale_log2);
    factor[half] = hopper::Exp2(__fmul_rn(rows.m[half], scale_log2) - base[half]);
    rows.m[half] = m;
    rows.l[half] *= factor[half];
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int half = i / 2 % 2;
    s[i] = hopper::Exp2(fmaf(s[i], scale_log2, -base[half]));
    rows.l[half] += s[i];
  }
}

template <int kOut>
__device__ __forceinline__ void RescaleOutput(float (&o)[kOut], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < kOut; ++i) o[i] *= factor[i / 2 % 2];
}

// The softmax of one page to A fragments.
__device__ __forceinline__ void PackProbabilities(const float (&s)[32], uint32_t (&p)[4][4]) {
#pragma unroll
  for (int i = 0; i < 32; i += 2) {
    p[i / 8][i / 4 % 2 * 2 + i / 2 % 2] = hopper::PackBf16(s[i], s[i + 1]);
  }
}

// Values beyond the context may be anything; P is zero there but 0 * NaN is not.
template <int kVDim>
__device__ void ClearValues(char* v, int first_token) {
  const int rows = kPageTokens - first_token;
  for (int i = threadIdx.x; i < rows * (kVDim / 8); i += hopper::kWarpgroupThreads) {
    const int row = first_token + i / (kVDim / 8);
    const int chunk = i % (kVDim / 8);
    *reinterpret_cast<uint4*>(v + chunk / 8 * kSlabBytes + row * 128 + chunk % 8 * 16) = {0, 0, 0,
                                                                                          0};
  }
  hopper::FenceSharedForAsync();
  hopper::NamedBarrierSync(1, hopper::kWarpgroupThreads);
}

// Starts S = Q K^T of the page in a stage, as one group.
template <typename Shape, int kQSteps>
__device__ __forceinline__ void StartQueryKeys(const DecodeShared<Shape>& shared, int stage,
                                  const uint32_t (&q)[kQSteps][4], float (&s)[32]) {
  const uint64_t k = hopper::DescriptorKMajor(hopper::SharedAddress(shared.k[stage]));
  hopper::WgmmaFence();
#pragma unroll
  for (int step = 0; step < Shape::kDim / 16; ++step) {
    const int bytes = step / 4 * kSlabBytes + step % 4 * 32;
    const uint64_t b = hopper::AdvanceDescriptor(k, bytes);
    if constexpr (Shape::kSharedQ) {
      const uint64_t a = hopper::DescriptorKMajor(hopper::SharedAddress(shared.q));
      hopper::WgmmaShared<64, false>::Issue(s, hopper::AdvanceDescriptor(a, bytes), b, step > 0);
    } else {
      hopper::WgmmaRegister<64, false>::Issue(s, q[step], b, step > 0);
    }
  }
  hopper::WgmmaCommit();
}

// Starts O += P V of the page in a stage, as one group.
template <typename Shape>
__device__ __forceinline__ void StartValues(const DecodeShared<Shape>& shared, int stage,
                                            uint32_t (&p)[4][4],
                                            float (&o)[Shape::kVDim / 2]) {
  const uint64_t v =
      hopper::DescriptorMnMajor(hopper::SharedAddress(shared.v[stage]), kSlabBytes);
  hopper::FenceRegisters(o);
  hopper::FenceRegisters(p);
  hopper::WgmmaFence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    hopper::WgmmaRegister<Shape::kVDim, true>::Issue(o, p[step],
                                                     hopper::AdvanceDescriptor(v, step * 2048), 1);
  }
  hopper::WgmmaCommit();
}

// Masks S of the page that begins at `key` and finds the largest of each of the thread's two rows,
// which see keys up to limits[.]. Rows all of whose keys are visible need no mask.
__device__ inline void MaskAndReduce(float (&s)[32], int key, bool mask, const int (&limits)[2],
                                     float (&page_max)[2]) {
  if (mask) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int column = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
      if (key + column > limits[i / 2 % 2]) s[i] = -INFINITY;
    }
  }
  page_max[0] = page_max[1] = -INFINITY;
#pragma unroll
  for (int i = 0; i < 32; ++i) page_max[i / 2 % 2] = fmaxf(page_max[i / 2 % 2], s[i]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    page_max[half] = fmaxf(page_max[half], __shfl_xor_sync(0xffffffff, page_max[half], 1));
    page_max[half] = fmaxf(page_max[half], __shfl_xor_sync(0xffffffff, page_max[half], 2));
  }
}

// Stores m and l of the thread's two rows, and O or, of a sequence with one split, the output.
// first: partial row of the sequence's query row 0 in this split.
template <int kVDim>
__device__ void StoreResults(const SplitAttentionArgs& args, const SequenceWork& work,
                             const WorkItem& item, int64_t first, int row,
                             const SoftmaxRows& rows, const float (&o)[kVDim / 2]) {
  const int lane = threadIdx.x % 32;
  const int group_heads = args.num_heads / args.num_kv_heads;
  const bool whole = work.split_pages >= work.pages;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float l = rows.l[half];
    l += __shfl_xor_sync(0xffffffff, l, 1);
    l += __shfl_xor_sync(0xffffffff, l, 2);
    const int own = row + 8 * half;
    if (own >= work.rows * group_heads) continue;
    if (lane % 4 == 0) {
      *reinterpret_cast<float2*>(args.partial_state + 2 * (first + own)) = {rows.m[half], l};
    }
    if (whole) {
      const int64_t head = static_cast<int64_t>(item.kv_head) * group_heads + own % group_heads;
      __nv_bfloat16* out = static_cast<__nv_bfloat16*>(args.out) +
                           (work.first_row + own / group_heads) * args.out_stride + head * kVDim +
                           lane % 4 * 2;
      const float inverse = 1.0f / l;
      const bool aligned = (reinterpret_cast<uintptr_t>(out) % 4) == 0;
#pragma unroll
      for (int i = 0; i < kVDim / 8; ++i) {
        const uint32_t pair = hopper::PackBf16(o[4 * i + 2 * half] * inverse,
                                               o[4 * i + 2 * half + 1] * inverse);
        if (aligned) {
          *reinterpret_cast<uint32_t*>(out + i * 8) = pair;
        } else {
          out[i * 8] = __ushort_as_bfloat16(static_cast<uint16_t>(pair));
          out[i * 8 + 1] = __ushort_as_bfloat16(static_cast<uint16_t>(pair >> 16));
        }
      }
    } else {
      float* out = args.partial_out + (first + own) * kVDim + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < kVDim / 8; ++i) {
        *reinterpret_cast<float2*>(out + i * 8) = {o[4 * i + 2 * half], o[4 * i + 2 * half + 1]};
      }
    }
  }
}

// The same value, which all lanes have, where the compiler can see that they have: products may be
// in flight across branches only where whole warpgroups take them.
__device__ __forceinline__ int Uniform(int value) { return __shfl_sync(0xffffffff, value, 0); }

// The computing warpgroup.
template <typename Shape>
__device__ void AttendPages(const SplitAttentionArgs& args, DecodeShared<Shape>& shared) {
  constexpr int kDim = Shape::kDim;
  constexpr int kVDim = Shape::kVDim;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int group_heads = args.num_heads / args.num_kv_heads;
  const float scale_log2 = args.scale * kLog2E;
  WorkWalker<kDecodeTileRows> walker(args, shared.work);
  hopper::RingPosition<Shape::kKStages> k_ring;
  hopper::RingPosition<Shape::kVStages> v_ring;
  uint32_t q[Shape::kSharedQ ? 1 : kDim / 16][4];
  // Q of the next item is on its way while this one is finished.
  const auto start_queries = [&](const WorkItem& item) {
    const SequenceWork& work = shared.work.sequences[item.sequence];
    const QueryTile tile = {static_cast<const __nv_bfloat16*>(args.q) +
                                work.first_row * args.q_stride +
                                static_cast<int64_t>(item.kv_head) * group_heads * kDim,
                            args.q_stride, group_heads, work.rows * group_heads,
                            item.tile * kDecodeTileRows};
    if constexpr (Shape::kSharedQ) {
      StartQueryCopy<kDim>(tile, shared.q);
    } else {
      LoadQueryRegisters<kDim>(tile, q);
    }
  };
  WorkItem next;
  bool more = Uniform(walker.Next(next));
  if (more) start_queries(next);
  while (more) {
    WorkItem item = next;
    item.page_begin = Uniform(item.page_begin);
    item.page_end = Uniform(item.page_end);
    more = Uniform(walker.Next(next));
    const SequenceWork work = shared.work.sequences[item.sequence];
    const int num_rows = work.rows * group_heads;
    const int row = item.tile * kDecodeTileRows + warp * 16 + lane / 4;
    const bool active = row - lane / 4 < num_rows;  // of the warp
    const int limits[2] = {work.position + row / group_heads,
                           work.position + (row + 8) / group_heads};
    float* maxima = args.block_maxima;
    if (maxima != nullptr) {
      maxima += work.maxima_begin + static_cast<int64_t>(item.kv_head) * work.pages * num_rows;
    }
    SoftmaxRows rows = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    float o[kVDim / 2];
#pragma unroll
    for (int i = 0; i < kVDim / 2; ++i) o[i] = 0.0f;
    if constexpr (Shape::kSharedQ) FinishQueryCopy();

    float s[32];
    uint32_t p[4][4];
    float factor[2];
    // S of `page` is complete; leaves the exponentials in s.
    const auto softmax = [&](int page) {
      const int key = page * kPageTokens;
      float page_max[2];
      MaskAndReduce(s, key, key + kPageTokens - 1 > work.position, limits, page_max);
      if (maxima != nullptr && lane % 4 == 0) {
        float* to = maxima + static_cast<int64_t>(page) * num_rows + row;
        if (row < num_rows) to[0] = page_max[0];
        if (row + 8 < num_rows) to[8] = page_max[1];
      }
      SoftmaxPage(s, rows, scale_log2, page_max, factor);
    };
    const auto start_keys = [&]() {
      hopper::BarrierWait(&shared.k_full[k_ring.stage], k_ring.parity);
      StartQueryKeys<Shape>(shared, k_ring.stage, q, s);
    };
    const auto release_keys = [&]() {
      hopper::FenceRegisters(s);
      if (lane == 0) hopper::BarrierArrive(&shared.k_empty[k_ring.stage]);
      k_ring.Advance();
    };
    const auto finish_values = [&]() {
      hopper::WgmmaWait<0>();
      hopper::FenceRegisters(o);
      if (lane == 0) hopper::BarrierArrive(&shared.v_empty[v_ring.stage]);
      v_ring.Advance();
    };
    start_keys();
    hopper::WgmmaWait<0>();
    release_keys();
    softmax(item.page_begin);
    PackProbabilities(s, p);
    for (int page = item.page_begin; page + 1 < item.page_end; ++page) {
      start_keys();  // of the next page
      hopper::BarrierWait(&shared.v_full[v_ring.stage], v_ring.parity);
      StartValues<Shape>(shared, v_ring.stage, p, o);
      hopper::WgmmaWait<1>();
      release_keys();
      softmax(page + 1);
      finish_values();
      RescaleOutput(o, factor);
      PackProbabilities(s, p);
    }
    if (more) {  // Q has done its work
      if constexpr (Shape::kSharedQ) hopper::NamedBarrierSync(1, hopper::kWarpgroupThreads);
      start_queries(next);
    }
    hopper::BarrierWait(&shared.v_full[v_ring.stage], v_ring.parity);
    const int context = work.position + work.rows - (item.page_end - 1) * kPageTokens;
    if (context < kPageTokens) ClearValues<kVDim>(shared.v[v_ring.stage], context);
    StartValues<Shape>(shared, v_ring.stage, p, o);
    finish_values();

    const int64_t first =
        work.partial_begin +
        (static_cast<int64_t>(item.kv_head) * work.splits() + item.split) * num_rows;
    if (active) StoreResults<kVDim>(args, work, item, first, row, rows, o);
  }
}

template <typename Shape>
__global__ void __launch_bounds__(kDecodeThreads, Shape::kBlocksPerSm)
    DecodeAttentionKernel(const __grid_constant__ SplitAttentionArgs args,
                          const __grid_constant__ CUtensorMap k_map,
                          const __grid_constant__ CUtensorMap v_map) {
  extern __shared__ __align__(1024) char memory[];
  DecodeShared<Shape>& shared = *reinterpret_cast<DecodeShared<Shape>*>(memory);
  LetNextKernelStart();
  if (threadIdx.x == 0) {
    hopper::PrefetchTensorMap(&k_map);
    hopper::PrefetchTensorMap(&v_map);
    for (int i = 0; i < Shape::kKStages; ++i) {
      hopper::BarrierInit(&shared.k_full[i], 1);
      hopper::BarrierInit(&shared.k_empty[i], 4);
    }
    for (int i = 0; i < Shape::kVStages; ++i) {
      hopper::BarrierInit(&shared.v_full[i], 1);
      hopper::BarrierInit(&shared.v_empty[i], 4);
    }
    hopper::FenceBarrierInit();
  }
  WaitForPriorKernels();
  BuildSplitWork<kDecodeTileRows>(args, shared.work);  // ends with a block-wide barrier
  if (Uniform(threadIdx.x / hopper::kWarpgroupThreads) == 0) {
    if constexpr (Shape::kBlocksPerSm > 1) hopper::IncreaseRegisters<224>();
    AttendPages<Shape>(args, shared);
  } else {
    if constexpr (Shape::kBlocksPerSm > 1) hopper::ReduceRegisters<32>();
    if (threadIdx.x < hopper::kWarpgroupThreads + 32) {
      CopyPages<Shape>(args, &k_map, &v_map, shared);
    }
  }
}

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_DECODE_CUH_
