// WindowSparseAttention for any shape: one thread block per row and head, CUDA cores, f32 softmax.
//
// Keys are walked in blocks of 64 positions on a grid from position 0 in both branches (the order
// of the other kernels and of the CPU), so a row's arithmetic depends on its position and its
// selection alone.
#include "engine/kernels/cuda/window_sparse_attention-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_launch.h"

namespace hyserve::kernels::cuda {
namespace {

using window_sparse::Bf16;
using window_sparse::KeyRows;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kValuesPerThread = kSparseMaxDim / kThreads;

struct Shared {
  float q[kSparseMaxDim];
  float logits[kSparseBlock];
  KeyRows keys[kSparseBlock];
};

// One softmax: its running maximum (log2 domain), sum and this thread's output columns.
struct Branch {
  float max = -INFINITY;
  float sum = 0.0f;
  float out[kValuesPerThread] = {};
};

// Attends to slots [lo, hi) of shared.keys, which the caller's threads have filled (not yet
// synced).
__device__ void AttendBlock(const WindowSparseArgs& args, Shared& shared, int lo, int hi,
                            Branch& branch) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  __syncthreads();
  for (int slot = lo + warp; slot < hi; slot += kWarps) {
    const uint16_t* k = shared.keys[slot].k;
    float dot = 0.0f;
    for (int d = lane; d < args.head_dim; d += 32) dot = fmaf(shared.q[d], Bf16(k[d]), dot);
    for (int offset = 16; offset > 0; offset /= 2) dot += __shfl_xor_sync(~0u, dot, offset);
    if (lane == 0) shared.logits[slot] = dot;
  }
  __syncthreads();
  float max = branch.max;
  for (int slot = lo; slot < hi; ++slot) max = fmaxf(max, shared.logits[slot]);
  const float shrink = exp2f(branch.max - max);
  branch.max = max;
  branch.sum *= shrink;
  for (float& value : branch.out) value *= shrink;
  for (int slot = lo; slot < hi; ++slot) {
    const float p = exp2f(shared.logits[slot] - max);
    branch.sum += p;
    const uint16_t* v = shared.keys[slot].v;
#pragma unroll
    for (int i = 0; i < kValuesPerThread; ++i) {
      const int d = threadIdx.x + i * kThreads;
      if (d < args.v_head_dim) branch.out[i] = fmaf(p, Bf16(v[d]), branch.out[i]);
    }
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads) GenericKernel(const WindowSparseArgs args) {
  __shared__ Shared shared;
  const int64_t row = blockIdx.x / args.num_heads;
  const int head = blockIdx.x % args.num_heads;
  const int kv_head = head / (args.num_heads / args.num_kv_heads);
  const int seq = args.row_seq[row];
  const int position = args.positions[row];
  for (int d = threadIdx.x; d < args.head_dim; d += kThreads) {
    shared.q[d] = Bf16(args.q.data[row * args.q.stride + int64_t{head} * args.head_dim + d]) *
                  args.scale * window_sparse::kLog2e;
  }

  Branch window;
  const int first_key = max(0, position - args.window + 1);
  for (int begin = first_key / kSparseBlock * kSparseBlock; begin <= position;
       begin += kSparseBlock) {
    const int lo = max(0, first_key - begin);
    const int hi = min(kSparseBlock, position + 1 - begin);
    const int slot = threadIdx.x;
    if (slot >= lo && slot < hi) {
      shared.keys[slot] = window_sparse::WindowKey(args, seq, kv_head, begin + slot);
    }
    AttendBlock(args, shared, lo, hi, window);
  }

  Branch sparse;
  if (args.selection != nullptr) {
    const int32_t* selection =
        args.selection + (row * args.num_kv_heads + kv_head) * args.selected_blocks;
    for (int i = 0; i < args.selected_blocks; ++i) {
      const int block = selection[i];
      if (block < 0 || block > position / kSparseBlock) continue;
      const int page = args.page_table[int64_t{seq} * args.page_table_stride + block];
      const int hi = min(kSparseBlock, position + 1 - block * kSparseBlock);
      const int slot = threadIdx.x;
      if (slot < hi) shared.keys[slot] = window_sparse::PageKey(args, page, kv_head, slot);
      AttendBlock(args, shared, 0, hi, sparse);
    }
  }

  const float window_factor =
      window_sparse::SoftmaxFactor(window.max, window.sum, args.window_sink, head);
  const float sparse_factor =
      window_sparse::SoftmaxFactor(sparse.max, sparse.sum, args.sparse_sink, head);
#pragma unroll
  for (int i = 0; i < kValuesPerThread; ++i) {
    const int d = threadIdx.x + i * kThreads;
    if (d >= args.v_head_dim) continue;
    float value =
        window.out[i] * window_factor *
        window_sparse::GateValue(args.window_gate, row, head, args.v_head_dim, d);
    if (args.selection != nullptr) {
      value += sparse.out[i] * sparse_factor *
               window_sparse::GateValue(args.sparse_gate, row, head, args.v_head_dim, d);
    }
    const __nv_bfloat16 rounded = __float2bfloat16_rn(value);
    args.out[row * args.out_stride + int64_t{head} * args.v_head_dim + d] =
        *reinterpret_cast<const uint16_t*>(&rounded);
  }
}

}  // namespace

cudaError_t LaunchWindowSparseGeneric(const WindowSparseArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return cudaSuccess;
  GenericKernel<<<static_cast<unsigned>(args.num_rows) * args.num_heads, kThreads, 0, stream>>>(
      args);
  return cudaGetLastError();
}

}  // namespace hyserve::kernels::cuda
