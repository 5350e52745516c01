// Merges the partial results of the by-block kernel of WindowSparseAttention: one warpgroup of
// every thread block, part after part, beside the consumers that are a part ahead.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_MERGE_INL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_MERGE_INL_H_

#include "engine/kernels/cuda/window_sparse_attention_by_block-inl.h"

namespace hyserve::kernels::cuda::window_sparse {

inline constexpr int kMergeSlots = 16;  // partial results in flight in a thread

// Eight elements of one (row, head), from `chunk * 8` on: softmax over the row's blocks (bits of
// `slots`), sink, gate; adds to the window branch in `out`. lse, partial: of slot 0.
template <int kVDim>
__device__ __forceinline__ void MergeRow(const WindowSparseArgs& args, uint64_t slots, int64_t row,
                                         int head, int chunk, int heads, const float* lse,
                                         const uint16_t* partial) {
  auto* to = reinterpret_cast<uint32_t*>(args.out + row * args.out_stride +
                                         int64_t{head} * kVDim + chunk * 8);
  uint32_t window[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) window[w] = to[w];
  float max = -INFINITY;
  float sum = 0.0f;
  float out[8] = {};
#pragma unroll 1
  for (int begin = 0; (slots >> begin) != 0; begin += kMergeSlots) {
    float logit[kMergeSlots];
    uint4 value[kMergeSlots];
#pragma unroll
    for (int j = 0; j < kMergeSlots; ++j) {
      const int64_t place = int64_t{begin + j} * heads;
      const bool valid = ((slots >> (begin + j)) & 1) != 0;
      // Past the L1 cache, which may hold what lay there two parts ago.
      logit[j] = valid ? __ldcg(lse + place) : -INFINITY;
      value[j] = valid ? __ldcg(reinterpret_cast<const uint4*>(partial + place * kVDim))
                       : make_uint4(0, 0, 0, 0);
    }
    float top = max;
#pragma unroll
    for (int j = 0; j < kMergeSlots; ++j) top = fmaxf(top, logit[j]);
    if (top != -INFINITY) {
      const float shrink = hopper::Exp2(max - top);
      max = top;
      sum *= shrink;
#pragma unroll
      for (int e = 0; e < 8; ++e) out[e] *= shrink;
#pragma unroll
      for (int j = 0; j < kMergeSlots; ++j) {
        const float weight = hopper::Exp2(logit[j] - top);
        sum += weight;
        const uint32_t words[4] = {value[j].x, value[j].y, value[j].z, value[j].w};
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          out[e] =
              fmaf(weight, Bf16(static_cast<uint16_t>(words[e / 2] >> (e % 2 * 16))), out[e]);
        }
      }
    }
    if (begin + kMergeSlots >= 64) break;
  }
  float factor = SoftmaxFactor(max, sum, args.sparse_sink, head);
  const SparseGate& gate = args.sparse_gate;
  if (!gate.per_element) factor *= GateValue(gate, row, head, kVDim, 0);
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    float low = out[2 * w] * factor;
    float high = out[2 * w + 1] * factor;
    if (gate.per_element) {
      low *= GateValue(gate, row, head, kVDim, chunk * 8 + 2 * w);
      high *= GateValue(gate, row, head, kVDim, chunk * 8 + 2 * w + 1);
    }
    to[w] = PackBf16(low + Bf16(static_cast<uint16_t>(window[w])),
                     high + Bf16(static_cast<uint16_t>(window[w] >> 16)));
  }
}

// The whole warpgroup.
template <int kVDim>
__device__ __forceinline__ void MergeParts(const WindowSparseArgs& args, const ByBlockPlan& plan) {
  constexpr int kChunks = kVDim / 8;
  const int thread = threadIdx.x % hopper::kWarpgroupThreads;
  const int heads = args.num_heads / args.num_kv_heads;
  const int per_row = heads * kChunks;
  for (int part = 0; part < plan.num_parts; ++part) {
    if (threadIdx.x % 32 == 0) WaitForAll(plan.stored + part);
    __syncwarp();
    const int kv_head = part / plan.num_passes;
    const int first_row = (part - kv_head * plan.num_passes) * plan.pass_rows;
    const int total = min(plan.pass_rows, args.num_rows - first_row) * per_row;
    for (int i = blockIdx.x * hopper::kWarpgroupThreads + thread; i < total;
         i += gridDim.x * hopper::kWarpgroupThreads) {
      const int local_row = i / per_row;
      const int64_t row = first_row + local_row;
      const uint64_t slots = plan.by_block[row * args.num_kv_heads + kv_head];
      if (slots == 0) continue;
      const int head = (i - local_row * per_row) / kChunks;
      const int chunk = i % kChunks;
      const int64_t place =
          int64_t{part % 2 * plan.pass_rows + local_row} * args.selected_blocks * heads + head;
      MergeRow<kVDim>(args, slots, row, kv_head * heads + head, chunk, heads,
                      plan.partial_lse + place, plan.partial + place * kVDim + chunk * 8);
    }
    __syncwarp();
    hopper::NamedBarrierSync(2, hopper::kWarpgroupThreads);
    if (thread == 0) {
      __threadfence();
      atomicAdd(plan.merged + part, 1);
    }
  }
}

}  // namespace hyserve::kernels::cuda::window_sparse

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_MERGE_INL_H_
