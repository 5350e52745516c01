// The kernels of WindowSparseAttention that go by block, and the one that merges what they leave.
#include "engine/kernels/cuda/window_sparse_attention_by_block.h"

#include <algorithm>

#include "engine/kernels/cuda/window_sparse_attention_by_block-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_page_map-inl.h"

namespace hyserve::kernels::cuda::window_sparse {
namespace {

constexpr int kThreads = (1 + kByBlockConsumers) * hopper::kWarpgroupThreads;

template <int kDim, int kVDim, int kQueryStages>
__global__ void __launch_bounds__(kThreads, 1)
    ByBlockKernel(const __grid_constant__ WindowSparseArgs args,
                  const __grid_constant__ ByBlockPlan plan,
                  const __grid_constant__ ByBlockPart part,
                  const __grid_constant__ ByBlockMaps maps) {
  using Shared = ByBlockShared<kDim, kVDim, kQueryStages>;
  extern __shared__ unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared*>(
      memory + (1024 - hopper::SharedAddress(memory) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kQueryStages; ++i) {
      hopper::BarrierInit(&shared.q_full[i], 1);
      hopper::BarrierInit(&shared.q_empty[i], 4);
    }
    for (int i = 0; i < kBlockStages; ++i) {
      hopper::BarrierInit(&shared.block_full[i], 1);
      hopper::BarrierInit(&shared.block_empty[i], 4 * kMaxItemTiles);
    }
    hopper::FenceBarrierInit();
  }
  __syncthreads();
  const int warpgroup = threadIdx.x / hopper::kWarpgroupThreads;
  if (warpgroup == 0) {
    hopper::ReduceRegisters<56>();
    if (threadIdx.x < 32) {
      ByBlockProducer<kDim, kVDim, Shared>(args, plan, part, maps, shared).Run();
    }
  } else {
    hopper::IncreaseRegisters<152>();
    ByBlockConsumer<kDim, kVDim, Shared>(args, plan, part, shared, warpgroup - 1).Run();
  }
}

constexpr int kMergeThreads = 256;
constexpr int kMergeSlots = 8;  // partial results in flight

// A thread for 8 elements of one (row, head).
__global__ void __launch_bounds__(kMergeThreads)
    MergeKernel(const __grid_constant__ WindowSparseArgs args,
                const __grid_constant__ ByBlockPlan plan, const ByBlockPart part) {
  bool any = false;
  for (int g = 0; g < part.num_groups; ++g) {
    any = any ||
          plan.num_items[part.pass * args.num_kv_heads + part.first_group + g] > 0;
  }
  if (!any) return;
  const int heads = args.num_heads / args.num_kv_heads;
  const int slots = args.selected_blocks;
  const int chunks = args.v_head_dim / 8;
  const int per_pair = heads * chunks;
  const int first_row = part.pass * plan.pass_rows;
  const int rows = min(plan.pass_rows, args.num_rows - first_row);
  const int total = rows * part.num_groups * per_pair;
  for (int i = blockIdx.x * kMergeThreads + threadIdx.x; i < total;
       i += gridDim.x * kMergeThreads) {
    const int pair = i / per_pair;
    const int local = i - pair * per_pair;
    const int local_row = pair / part.num_groups;
    const int group = pair - local_row * part.num_groups;
    const int row = first_row + local_row;
    const int kv_head = part.first_group + group;
    if (plan.by_block[int64_t{row} * args.num_kv_heads + kv_head] == 0) continue;
    const int head = local / chunks;
    const int chunk = local - head * chunks;
    const int32_t* selection =
        args.selection + (int64_t{row} * args.num_kv_heads + kv_head) * slots;
    const int newest = args.positions[row] / kSparseBlock;
    const int64_t place = (int64_t{local_row} * plan.pass_groups + group) * slots * heads + head;
    const float* lse = plan.partial_lse + place;
    const uint16_t* partial = plan.partial + place * args.v_head_dim + chunk * 8;
    float max = -INFINITY;
    float sum = 0.0f;
    float out[8] = {};
    for (int begin = 0; begin < slots; begin += kMergeSlots) {
      float logit[kMergeSlots];
      uint4 value[kMergeSlots];
      float top = max;
#pragma unroll
      for (int j = 0; j < kMergeSlots; ++j) {
        const int slot = begin + j;
        const int block = slot < slots ? selection[slot] : -1;
        const bool valid = block >= 0 && block <= newest;
        logit[j] = valid ? lse[slot * heads] : -INFINITY;
        value[j] = valid ? __ldcs(reinterpret_cast<const uint4*>(
                               partial + int64_t{slot} * heads * args.v_head_dim))
                         : make_uint4(0, 0, 0, 0);
        top = fmaxf(top, logit[j]);
      }
      if (top == -INFINITY) continue;
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
          out[e] = fmaf(weight, Bf16(static_cast<uint16_t>(words[e / 2] >> (e % 2 * 16))), out[e]);
        }
      }
    }
    const int h = kv_head * heads + head;
    float factor = SoftmaxFactor(max, sum, args.sparse_sink, h);
    const SparseGate& gate = args.sparse_gate;
    if (!gate.per_element) factor *= GateValue(gate, row, h, args.v_head_dim, 0);
    auto* to = reinterpret_cast<uint32_t*>(args.out + row * args.out_stride +
                                           int64_t{h} * args.v_head_dim + chunk * 8);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const uint32_t window = to[w];
      float low = out[2 * w] * factor;
      float high = out[2 * w + 1] * factor;
      if (gate.per_element) {
        low *= GateValue(gate, row, h, args.v_head_dim, chunk * 8 + 2 * w);
        high *= GateValue(gate, row, h, args.v_head_dim, chunk * 8 + 2 * w + 1);
      }
      to[w] = PackBf16(low + Bf16(static_cast<uint16_t>(window)),
                       high + Bf16(static_cast<uint16_t>(window >> 16)));
    }
  }
}

cudaError_t EncodeMaps(const WindowSparseArgs& args, ByBlockMaps* maps) {
  const int slabs = args.head_dim / 64;
  hopper::TensorMapShape shape;
  shape.data = args.q.data;
  shape.rank = 3;
  shape.extents[0] = 64;
  shape.extents[1] = static_cast<uint64_t>(args.num_heads) * slabs;
  shape.extents[2] = static_cast<uint64_t>(args.num_rows);
  shape.strides_bytes[0] = 128;
  shape.strides_bytes[1] = static_cast<uint64_t>(args.q.stride) * 2;
  shape.box[0] = 64;
  shape.box[1] = static_cast<uint32_t>(args.num_heads / args.num_kv_heads * slabs);
  shape.box[2] = 1;
  cudaError_t error = hopper::EncodeTensorMap(shape, &maps->q);
  if (error == cudaSuccess) {
    error = EncodePageMap(args, args.pages, args.head_dim, &maps->page_k);
  }
  if (error == cudaSuccess) {
    const int64_t k_slice = int64_t{args.num_kv_heads} * kSparseBlock * args.head_dim;
    error = EncodePageMap(args, args.pages + k_slice, args.v_head_dim, &maps->page_v);
  }
  return error;
}

template <int kDim, int kVDim, int kQueryStages>
cudaError_t Launch(const WindowSparseArgs& args, const ByBlockPlan& plan, int num_sms,
                   cudaStream_t stream) {
  static_assert(kVDim <= kDim);  // results are staged in the queries' place
  constexpr int kBytes = sizeof(ByBlockShared<kDim, kVDim, kQueryStages>) + 1024;
  static_assert(kBytes <= 227 * 1024);
  static const cudaError_t attribute =
      cudaFuncSetAttribute(ByBlockKernel<kDim, kVDim, kQueryStages>,
                           cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (attribute != cudaSuccess) return attribute;
  ByBlockMaps maps;
  cudaError_t error = EncodeMaps(args, &maps);
  if (error != cudaSuccess) return error;
  ByBlockPart part;
  for (part.pass = 0; part.pass < plan.num_passes; ++part.pass) {
    for (part.first_group = 0; part.first_group < args.num_kv_heads;
         part.first_group += plan.pass_groups) {
      part.num_groups = std::min(plan.pass_groups, args.num_kv_heads - part.first_group);
      ByBlockKernel<kDim, kVDim, kQueryStages>
          <<<num_sms, kThreads, kBytes, stream>>>(args, plan, part, maps);
      MergeKernel<<<num_sms * 8, kMergeThreads, 0, stream>>>(args, plan, part);
    }
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchByBlock(const WindowSparseArgs& args, const ByBlockPlan& plan, int num_sms,
                          cudaStream_t stream) {
  if (args.head_dim == 64) return Launch<64, 64, 8>(args, plan, num_sms, stream);
  if (args.head_dim == 128) return Launch<128, 128, 7>(args, plan, num_sms, stream);
  return Launch<192, 128, 5>(args, plan, num_sms, stream);
}

}  // namespace hyserve::kernels::cuda::window_sparse
