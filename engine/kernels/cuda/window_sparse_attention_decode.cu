// WindowSparseAttention of sequences with few rows in the step. The keys of a row and kv head are
// cut into parts of 64: the selected blocks, then the window. Two kernels:
//   cluster: the parts lie over a cluster of thread blocks, one part to four warps; results go
//            through distributed shared memory to the blocks that own the outputs. Small steps.
//   stream:  one thread block walks over all parts, one chain of them to four warps. Larger steps,
//            few parts, and more parts than a cluster takes.
// They give the same bits, so which of them runs may depend on the step.
#include "engine/kernels/cuda/overlap.cuh"
#include "engine/kernels/cuda/window_sparse_attention_decode-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_launch.h"

namespace hyserve::kernels::cuda {
namespace {

using namespace window_sparse;  // NOLINT: this file is those kernels'

constexpr int kMaxParts = 128;     // of the stream kernel
constexpr int kClusterParts = 18;  // 16 blocks and a window of 128
constexpr int kRanks = kClusterParts / kChains;
constexpr int kThreads = kChains * kPartThreads;
// Rows times kv heads up to which, and parts from which on, the cluster kernel is the faster one.
constexpr int kClusterWork = 32;
constexpr int kClusterLeastParts = 6;

__device__ __forceinline__ uint16_t RoundBf16(float value) {
  const __nv_bfloat16 rounded = __float2bfloat16_rn(value);
  return *reinterpret_cast<const uint16_t*>(&rounded);
}

// Both kernels' last operations on an output.
struct OutputFactors {
  float window;  // softmax factors
  float sparse;
  float window_gate;
  float sparse_gate;
};
__device__ __forceinline__ uint16_t Output(const WindowSparseArgs& args,
                                           const OutputFactors& factors, float window,
                                           float sparse) {
  float value = __fmul_rn(__fmul_rn(window, factors.window), factors.window_gate);
  if (args.selection != nullptr) {
    value = __fmaf_rn(__fmul_rn(sparse, factors.sparse), factors.sparse_gate, value);
  }
  return RoundBf16(value);
}

// ---- Stream
// --------------------------------------------------------------------------------------

template <int kDim, int kVDim>
struct StreamShared {
  struct Chain {
    PartResult<kVDim> sparse[kPartThreads];
    PartResult<kVDim> window[kPartThreads];
  };
  union Memory {
    PartKeys<kDim, kVDim> keys[kChains];
    Chain chain;  // of the chains but the first, once the keys have been used
  };
  static_assert(kChains == 2);
  Memory memory;
  alignas(128) uint16_t q[kHeads * kDim];
  PartExchange exchange[kChains];
  PartPlace places[kMaxParts];
};

template <int kDim, int kVDim>
__global__ void __launch_bounds__(kThreads, 2)
    StreamKernel(const __grid_constant__ WindowSparseArgs args, int rows_per_seq) {
  using Shared = StreamShared<kDim, kVDim>;
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  DecodeRow at;
  const bool has_row = FindRow(args, rows_per_seq, blockIdx.x, blockIdx.y, at);
  WaitForPriorKernels();
  if (!has_row) return;
  const int parts = NumParts(args);
  const int sparse_parts = NumSparseParts(args);
  for (int i = threadIdx.x; i < parts; i += kThreads) shared.places[i] = FindPart(args, at, i);
  CopyQueries<kDim>(args, at, args.num_heads / args.num_kv_heads, shared.q, threadIdx.x, kThreads);
  __syncthreads();

  const int chain = threadIdx.x / kPartThreads;
  const int thread = threadIdx.x % kPartThreads;
  const int barrier = 1 + chain;
  PartKeys<kDim, kVDim>& keys = shared.memory.keys[chain];
  PartExchange& exchange = shared.exchange[chain];
  const float factor = args.scale * kLog2e;
  // The next part of the chain with a visible key.
  const auto skip = [&](int part) {
    while (part < parts && shared.places[part].lo >= shared.places[part].hi) part += kChains;
    return part;
  };
  PartResult<kVDim> sparse;
  PartResult<kVDim> window;
  int part = skip(chain);
  if (part < parts) {
    CopyRows<kDim, true>(args, at, part, shared.places[part], keys.k, thread);
  }
  CommitCopies();
  if (part < parts) {
    CopyRows<kVDim, false>(args, at, part, shared.places[part], keys.v, thread);
  }
  CommitCopies();
  WaitCopies<1>();
  __syncthreads();  // the queries, copied by all, have arrived
  while (part < parts) {
    WaitCopies<1>();
    hopper::NamedBarrierSync(barrier, kPartThreads);  // K has arrived
    PartLogits<kDim>(keys.k, shared.q, shared.places[part], factor, exchange);
    WaitCopies<0>();
    hopper::NamedBarrierSync(barrier, kPartThreads);  // V has arrived, K has been used
    const int next = skip(part + kChains);
    if (next < parts) {
      CopyRows<kDim, true>(args, at, next, shared.places[next], keys.k, thread);
    }
    CommitCopies();
    PartResult<kVDim> result;
    PartValues<kVDim>(keys.v, exchange, result);
    hopper::NamedBarrierSync(barrier, kPartThreads);  // V has been used
    if (next < parts) {
      CopyRows<kVDim, false>(args, at, next, shared.places[next], keys.v, thread);
    }
    CommitCopies();
    if (part < sparse_parts) {
      MergePart(sparse, result);
    } else {
      MergePart(window, result);
    }
    part = next;
  }

  __syncthreads();
  if (chain == 1) {
    shared.memory.chain.sparse[thread] = sparse;
    shared.memory.chain.window[thread] = window;
  }
  __syncthreads();
  if (chain != 0) return;
  MergePart(sparse, shared.memory.chain.sparse[thread]);
  MergePart(window, shared.memory.chain.window[thread]);
  const int group = args.num_heads / args.num_kv_heads;
  const int warp = thread / 32;
  const int lane = thread % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int local = lane / 4 + half * 8;
    if (local >= group) continue;
    const int head = at.kv_head * group + local;
    OutputFactors factors;
    factors.window = SoftmaxFactor(window.max[half], window.sum[half], args.window_sink, head);
    factors.sparse = SoftmaxFactor(sparse.max[half], sparse.sum[half], args.sparse_sink, head);
    uint16_t* out = args.out + at.row * args.out_stride + int64_t{head} * kVDim;
#pragma unroll
    for (int i = 0; i < PartResult<kVDim>::kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int col = warp * (kVDim / kPartWarps) + i * 8 + (lane & 3) * 2 + j;
        if ((i == 0 && j == 0) || args.window_gate.per_element) {
          factors.window_gate = GateValue(args.window_gate, at.row, head, kVDim, col);
        }
        if ((i == 0 && j == 0) || args.sparse_gate.per_element) {
          factors.sparse_gate = GateValue(args.sparse_gate, at.row, head, kVDim, col);
        }
        out[col] =
            Output(args, factors, window.out[i][2 * half + j], sparse.out[i][2 * half + j]);
      }
    }
  }
}

// ---- Cluster
// -------------------------------------------------------------------------------------

// Rank r computes parts kChains * r and on, and sends each result to the ranks that own its
// outputs: rank r owns outputs [r * share, (r + 1) * share) of the group's heads * kVDim.
struct ClusterPlan {
  int group = 0;
  int share = 0;
  uint32_t inverse = 0;  // index * inverse >> 20 is index / share
};

// Stores a pair into the same place of another rank's shared memory; its bytes count on the barrier
// there, and no fence is needed.
__device__ __forceinline__ void SendPair(const void* place, uint64_t* barrier, int rank, float x,
                                         float y) {
  asm volatile(
      "{\n.reg .b32 to, at;\n"
      "mapa.shared::cluster.u32 to, %0, %2;\n"
      "mapa.shared::cluster.u32 at, %1, %2;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [to], {%3, %4}, [at];\n}\n" ::
          "r"(hopper::SharedAddress(place)),
      "r"(hopper::SharedAddress(barrier)), "r"(rank), "f"(x), "f"(y)
      : "memory");
}

template <int kVDim>
constexpr int kMaxShare = (kHeads * kVDim + kRanks - 1) / kRanks / 2 * 2 + 2;

template <int kDim, int kVDim>
struct ClusterShared {
  PartKeys<kDim, kVDim> keys[kChains];
  alignas(128) uint16_t q[kHeads * kDim];
  PartExchange exchange[kChains];
  // Written by all ranks; `arrived` counts the bytes.
  float2 softmax[kClusterParts][kHeads];  // maximum, sum
  float out[kClusterParts][kMaxShare<kVDim>];
  uint64_t arrived;
  // What the merges multiply with: what was there, the part.
  float2 steps[kClusterParts][kHeads];
  float2 chains[2][kHeads];  // by branch (window, sparse)
  float factors[2][kHeads];  // of the softmaxes
};

// The weights of every merge of one head and branch, and its softmax factor. A part of the other
// branch counts as one without keys: that changes no bit.
template <typename Shared>
__device__ __forceinline__ void PlanMerges(const WindowSparseArgs& args, Shared& shared, int local,
                                           int head, int branch) {
  const int sparse = NumSparseParts(args);
  const float* sinks = branch == 0 ? args.window_sink : args.sparse_sink;
  const float sink = sinks == nullptr ? -INFINITY : sinks[head] * kLog2e;
  float max[kChains], sum[kChains];
#pragma unroll
  for (int chain = 0; chain < kChains; ++chain) {
    max[chain] = -INFINITY;
    sum[chain] = 0.0f;
  }
#pragma unroll
  for (int part = 0; part < kClusterParts; ++part) {
    const bool mine = (part < sparse) == (branch == 1);
    const MergeWeights weights =
        Merge(max[part % kChains], mine ? shared.softmax[part][local].x : -INFINITY);
    max[part % kChains] = weights.max;
    sum[part % kChains] =
        Merged(weights, sum[part % kChains], mine ? shared.softmax[part][local].y : 0.0f);
    if (mine) shared.steps[part][local] = make_float2(weights.before, weights.part);
  }
  const MergeWeights weights = Merge(max[0], max[1]);
  shared.chains[branch][local] = make_float2(weights.before, weights.part);
  shared.factors[branch][local] =
      SoftmaxFactor(weights.max, Merged(weights, sum[0], sum[1]), sink);
}

__device__ __forceinline__ float MergedBy(float2 step, float before, float part) {
  return __fmaf_rn(part, step.y, __fmul_rn(before, step.x));
}

// Window and sparse output of one element.
template <typename Shared>
__device__ __forceinline__ float2 MergeOutputs(const WindowSparseArgs& args, const Shared& shared,
                                               int local, int index) {
  const int sparse = NumSparseParts(args);
  float out[2][kChains] = {};
#pragma unroll
  for (int part = 0; part < kClusterParts; ++part) {
    const float2 step = shared.steps[part][local];
    const float value = shared.out[part][index];
    const int chain = part % kChains;
    const float window = MergedBy(step, out[0][chain], value);
    const float selected = MergedBy(step, out[1][chain], value);
    out[0][chain] = part < sparse ? out[0][chain] : window;
    out[1][chain] = part < sparse ? selected : out[1][chain];
  }
  return make_float2(MergedBy(shared.chains[0][local], out[0][0], out[0][1]),
                     MergedBy(shared.chains[1][local], out[1][0], out[1][1]));
}

template <int kDim, int kVDim>
__global__ void __cluster_dims__(kRanks, 1, 1) __launch_bounds__(kThreads)
    ClusterKernel(const __grid_constant__ WindowSparseArgs args,
                  const __grid_constant__ ClusterPlan plan, int rows_per_seq) {
  using Shared = ClusterShared<kDim, kVDim>;
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  DecodeRow at;
  if (!FindRow(args, rows_per_seq, blockIdx.y, blockIdx.z, at)) {  // the whole cluster
    WaitForPriorKernels();
    return;
  }
  const int rank = static_cast<int>(blockIdx.x);
  const int group = plan.group;
  const int outputs = group * kVDim;
  if (threadIdx.x == 0) {
    const int owned = max(0, min(plan.share, outputs - rank * plan.share));
    hopper::BarrierInit(&shared.arrived, 1);
    hopper::FenceBarrierInit();
    hopper::BarrierArriveExpect(&shared.arrived,
                                kClusterParts * (group * sizeof(float2) + owned * sizeof(float)));
  }
  __syncwarp();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n" ::: "memory");
  WaitForPriorKernels();
  const int chain = threadIdx.x / kPartThreads;
  const int thread = threadIdx.x % kPartThreads;
  const int part = rank * kChains + chain;
  PartPlace place;
  if (part < NumParts(args)) place = FindPart(args, at, part);
  const bool visible = place.lo < place.hi;
  CopyQueries<kDim>(args, at, group, shared.q, threadIdx.x, kThreads);
  if (visible) CopyRows<kDim, true>(args, at, part, place, shared.keys[chain].k, thread);
  CommitCopies();
  if (visible) CopyRows<kVDim, false>(args, at, part, place, shared.keys[chain].v, thread);
  CommitCopies();

  // While they come: what the outputs of this thread will need.
  const int output = rank * plan.share + static_cast<int>(threadIdx.x);
  const bool owner = static_cast<int>(threadIdx.x) < plan.share && output < outputs;
  const int output_local = owner ? output / kVDim : 0;
  const int output_col = output % kVDim;
  const int output_head = at.kv_head * group + output_local;
  float window_gate = 1.0f;
  float sparse_gate = 1.0f;
  if (owner) {
    window_gate = GateValue(args.window_gate, at.row, output_head, kVDim, output_col);
    sparse_gate = GateValue(args.sparse_gate, at.row, output_head, kVDim, output_col);
  }

  WaitCopies<1>();
  __syncthreads();
  if (visible) {
    PartLogits<kDim>(shared.keys[chain].k, shared.q, place, args.scale * kLog2e,
                     shared.exchange[chain]);
  }
  WaitCopies<0>();
  hopper::NamedBarrierSync(1 + chain, kPartThreads);
  PartResult<kVDim> result;
  if (visible) PartValues<kVDim>(shared.keys[chain].v, shared.exchange[chain], result);

  // The others' barriers are there.
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
  const int warp = thread / 32;
  const int lane = thread % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int local = lane / 4 + half * 8;
    if (local >= group) continue;
    // Maximum and sum go to everybody: lane l of warp w sends to rank 4 w + l % 4.
    const int to = warp * 4 + (lane & 3);
    if (to < kRanks) {
      SendPair(&shared.softmax[part][local], &shared.arrived, to, result.max[half],
               result.sum[half]);
    }
#pragma unroll
    for (int i = 0; i < PartResult<kVDim>::kTiles; ++i) {
      const int index = local * kVDim + warp * (kVDim / kPartWarps) + i * 8 + (lane & 3) * 2;
      const int owning = static_cast<int>(index * plan.inverse >> 20);
      SendPair(&shared.out[part][index - owning * plan.share], &shared.arrived, owning,
               result.out[i][2 * half], result.out[i][2 * half + 1]);
    }
  }
  hopper::BarrierWait(&shared.arrived, 0);
  if (threadIdx.x < 2 * group) {
    const int local = threadIdx.x / 2;
    PlanMerges(args, shared, local, at.kv_head * group + local, threadIdx.x % 2);
  }
  __syncthreads();
  if (!owner) return;
  const float2 merged = MergeOutputs(args, shared, output_local, threadIdx.x);
  const OutputFactors factors = {shared.factors[0][output_local], shared.factors[1][output_local],
                                 window_gate, sparse_gate};
  args.out[at.row * args.out_stride + int64_t{output_head} * kVDim + output_col] =
      Output(args, factors, merged.x, merged.y);
}

// ---- Launch
// --------------------------------------------------------------------------------------

template <int kDim, int kVDim>
cudaError_t LaunchStream(const WindowSparseArgs& args, int rows_per_seq, cudaStream_t stream) {
  constexpr int kBytes = sizeof(StreamShared<kDim, kVDim>);
  static const cudaError_t attribute = cudaFuncSetAttribute(
      StreamKernel<kDim, kVDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (attribute != cudaSuccess) return attribute;
  const dim3 grid(args.num_kv_heads, args.num_seqs * rows_per_seq);
  return LaunchOverlapped(StreamKernel<kDim, kVDim>, grid, kThreads, kBytes, stream, args,
                          rows_per_seq);
}

template <int kDim, int kVDim>
cudaError_t LaunchCluster(const WindowSparseArgs& args, int rows_per_seq, cudaStream_t stream) {
  constexpr int kBytes = sizeof(ClusterShared<kDim, kVDim>);
  static const cudaError_t attribute = cudaFuncSetAttribute(
      ClusterKernel<kDim, kVDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (attribute != cudaSuccess) return attribute;
  ClusterPlan plan;
  plan.group = args.num_heads / args.num_kv_heads;
  plan.share = ((plan.group * kVDim + kRanks - 1) / kRanks + 1) / 2 * 2;
  plan.inverse = ((1u << 20) + plan.share - 1) / plan.share;  // exact: index < 2048, share <= 256
  // Nine blocks are more than every GPU must be able to place, but not more than this one does.
  static const cudaError_t large = cudaFuncSetAttribute(
      ClusterKernel<kDim, kVDim>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (large != cudaSuccess) return large;
  const dim3 grid(kRanks, args.num_kv_heads, args.num_seqs * rows_per_seq);
  return LaunchOverlapped(ClusterKernel<kDim, kVDim>, grid, kThreads, kBytes, stream, args, plan,
                          rows_per_seq);
}

bool Aligned(const void* pointer, int64_t stride) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride % 8 == 0;
}

}  // namespace

bool WindowSparseDecodeSupports(const WindowSparseArgs& args) {
  const int d = args.head_dim;
  const int v = args.v_head_dim;
  const bool dims = (d == 64 && v == 64) || (d == 128 && v == 128) || (d == 192 && v == 128);
  return dims && args.num_heads / args.num_kv_heads <= kHeads && NumParts(args) <= kMaxParts &&
         Aligned(args.q.data, args.q.stride) && Aligned(args.step_k.data, args.step_k.stride) &&
         Aligned(args.step_v.data, args.step_v.stride) && Aligned(args.ring, 0) &&
         args.ring_k_offset_bytes % 16 == 0 && args.ring_v_offset_bytes % 16 == 0 &&
         args.slab_stride_bytes % 16 == 0 &&
         (args.selection == nullptr || Aligned(args.pages, 0)) && args.num_kv_heads <= 65535 &&
         int64_t{args.num_seqs} * kSparseDecodeRows <= 65535;
}

cudaError_t LaunchWindowSparseDecode(const WindowSparseArgs& args, int rows_per_seq,
                                     DecodeKernel kernel, cudaStream_t stream) {
  if (args.num_seqs == 0 || rows_per_seq == 0) return cudaSuccess;
  const int64_t work = int64_t{args.num_seqs} * rows_per_seq * args.num_kv_heads;
  const bool cluster_fits = NumParts(args) <= kClusterParts;
  if (kernel == DecodeKernel::kAuto) {
    const bool cluster =
        cluster_fits && work <= kClusterWork && NumParts(args) >= kClusterLeastParts;
    kernel = cluster ? DecodeKernel::kCluster : DecodeKernel::kStream;
  }
  if (kernel == DecodeKernel::kCluster) {
    if (!cluster_fits) return cudaErrorInvalidValue;
    if (args.head_dim == 64) return LaunchCluster<64, 64>(args, rows_per_seq, stream);
    if (args.head_dim == 128) return LaunchCluster<128, 128>(args, rows_per_seq, stream);
    return LaunchCluster<192, 128>(args, rows_per_seq, stream);
  }
  if (args.head_dim == 64) return LaunchStream<64, 64>(args, rows_per_seq, stream);
  if (args.head_dim == 128) return LaunchStream<128, 128>(args, rows_per_seq, stream);
  return LaunchStream<192, 128>(args, rows_per_seq, stream);
}

}  // namespace hyserve::kernels::cuda
