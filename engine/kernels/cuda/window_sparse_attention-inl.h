// Device code that the kernels of WindowSparseAttention share: where a key lies, gates and sinks.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_INL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_INL_H_

#include <cuda_bf16.h>

#include <cstdint>

#include "engine/kernels/cuda/window_sparse_attention_launch.h"

namespace hyserve::kernels::cuda::window_sparse {

inline constexpr float kLog2e = 1.4426950408889634f;

__device__ __forceinline__ float Bf16(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// K and V rows of one key.
struct KeyRows {
  const uint16_t* k;
  const uint16_t* v;
};

// Key of a page of the selected blocks; `slot` is the position within the block.
__device__ __forceinline__ KeyRows PageKey(const WindowSparseArgs& args, int page, int kv_head,
                                           int slot) {
  const int64_t k_slice = int64_t{args.num_kv_heads} * kSparseBlock * args.head_dim;
  const int64_t v_slice = int64_t{args.num_kv_heads} * kSparseBlock * args.v_head_dim;
  const uint16_t* slice = args.pages + page * (k_slice + v_slice);
  const int64_t row = int64_t{kv_head} * kSparseBlock + slot;
  return {slice + row * args.head_dim, slice + k_slice + row * args.v_head_dim};
}

// Key of the window branch at `position` >= 0 of sequence `seq`: of this step, else of the ring.
__device__ __forceinline__ KeyRows WindowKey(const WindowSparseArgs& args, int seq, int kv_head,
                                             int position) {
  const int first = args.first_position[seq];
  if (position >= first) {
    const int64_t row = args.row_begin[seq] + (position - first);
    return {args.step_k.data + row * args.step_k.stride + int64_t{kv_head} * args.head_dim,
            args.step_v.data + row * args.step_v.stride + int64_t{kv_head} * args.v_head_dim};
  }
  const char* slab = args.ring + args.slab_index[seq] * args.slab_stride_bytes;
  const int64_t row = int64_t{kv_head} * args.window + position % args.window;
  return {reinterpret_cast<const uint16_t*>(slab + args.ring_k_offset_bytes) + row * args.head_dim,
          reinterpret_cast<const uint16_t*>(slab + args.ring_v_offset_bytes) +
              row * args.v_head_dim};
}

__device__ __forceinline__ float Sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// Sigmoid of the gate of output element `element` of `head`.
__device__ __forceinline__ float GateValue(const SparseGate& gate, int64_t row, int head,
                                           int v_head_dim, int element) {
  if (gate.data == nullptr) return 1.0f;
  const int64_t column = gate.per_element ? int64_t{head} * v_head_dim + element : head;
  return Sigmoid(Bf16(gate.data[row * gate.stride + column]));
}

// What the unnormalised output must be multiplied with. In the log2 domain: max, the running
// maximum (-inf: no key), and sink (-inf: none); sum: the sum of exp2(logit - max).
__device__ __forceinline__ float SoftmaxFactor(float max, float sum, float sink) {
  const float top = fmaxf(max, sink);
  if (top == -INFINITY) return 0.0f;
  const float shrink = exp2f(max - top);
  return __fdividef(shrink, sum * shrink + exp2f(sink - top));
}
__device__ __forceinline__ float SoftmaxFactor(float max, float sum, const float* sink, int head) {
  return SoftmaxFactor(max, sum, sink == nullptr ? -INFINITY : sink[head] * kLog2e);
}

}  // namespace hyserve::kernels::cuda::window_sparse

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_INL_H_
