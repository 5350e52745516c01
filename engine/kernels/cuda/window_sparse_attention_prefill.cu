// WindowSparseAttention of sequences with many rows in the step: a persistent kernel; a thread
// block is a planner warp, a producer warp and two consumer warpgroups. Where neighbours select too
// differently it does the window branch alone (window_sparse_attention_by_block.h).
//
// Neighbouring tokens select much the same blocks, so a tile of tokens streams the union of their
// blocks once through shared memory, and masks decide which rows attend to a block. A consumer none
// of whose tokens wants a block skips it. A block that a row does not attend to changes nothing in
// the row, not even a bit, so a row's result depends on its position and its selection alone.
#include "engine/kernels/cuda/hopper/tensor_map.h"
#include "engine/kernels/cuda/hopper/warpgroup.h"
#include "engine/kernels/cuda/window_sparse_attention_by_block.h"
#include "engine/kernels/cuda/window_sparse_attention_consumer-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_launch.h"
#include "engine/kernels/cuda/window_sparse_attention_page_map-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_planner-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_prefill-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_producer-inl.h"

namespace hyserve::kernels::cuda {
namespace {

using namespace window_sparse;  // NOLINT: this file is that kernel's

constexpr int kThreads = (1 + kConsumers) * hopper::kWarpgroupThreads;

template <int kDim, int kVDim, int kStages>
__global__ void __launch_bounds__(kThreads, 1)
    PrefillKernel(const __grid_constant__ WindowSparseArgs args,
                  const __grid_constant__ PrefillPlan plan,
                  const __grid_constant__ PrefillMaps maps) {
  using Shared = PrefillShared<kDim, kVDim, kStages>;
  extern __shared__ unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared*>(
      memory + (1024 - hopper::SharedAddress(memory) % 1024) % 1024);
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = kConsumers * 4;
    for (int i = 0; i < kStages; ++i) {
      hopper::BarrierInit(&shared.full[i], 1);
      hopper::BarrierInit(&shared.empty[i], kConsumerWarps);
    }
    for (int i = 0; i < kPlanDepth; ++i) {
      hopper::BarrierInit(&shared.plan_full[i], 1);
      hopper::BarrierInit(&shared.plan_empty[i], 1);
    }
    hopper::BarrierInit(&shared.q_full, 1);
    hopper::BarrierInit(&shared.q_empty, kConsumerWarps);
    hopper::FenceBarrierInit();
  }
  __syncthreads();
  const int warpgroup = threadIdx.x / hopper::kWarpgroupThreads;
  if (warpgroup == 0) {
    hopper::ReduceRegisters<56>();
    const int warp = threadIdx.x / 32;
    if (warp == 0) Producer<kDim, kVDim, kStages>(args, maps, shared).Run();
    if (warp == 1) Planner<Shared>(args, plan, shared).Run();
  } else {
    hopper::IncreaseRegisters<224>();
    Consumer<kDim, kVDim, kStages>(args, shared, warpgroup - 1).Run();
  }
}

cudaError_t EncodeStep(const SparseMatrix& matrix, const WindowSparseArgs& args, int dim,
                       CUtensorMap* map) {
  hopper::TensorMapShape shape;
  shape.data = matrix.data;
  shape.rank = 2;
  shape.extents[0] = static_cast<uint64_t>(dim) * args.num_kv_heads;
  shape.extents[1] = static_cast<uint64_t>(args.num_rows);
  shape.strides_bytes[0] = static_cast<uint64_t>(matrix.stride) * 2;
  shape.box[0] = 64;
  shape.box[1] = kSparseBlock;
  return hopper::EncodeTensorMap(shape, map);
}

cudaError_t EncodeQueries(const WindowSparseArgs& args, CUtensorMap* map) {
  const int group = args.num_heads / args.num_kv_heads;
  hopper::TensorMapShape shape;
  shape.data = args.q.data;
  shape.rank = 3;
  shape.extents[0] = static_cast<uint64_t>(args.head_dim);
  shape.extents[1] = static_cast<uint64_t>(args.num_heads);
  shape.extents[2] = static_cast<uint64_t>(args.num_rows);
  shape.strides_bytes[0] = static_cast<uint64_t>(args.head_dim) * 2;
  shape.strides_bytes[1] = static_cast<uint64_t>(args.q.stride) * 2;
  shape.box[0] = 64;
  shape.box[1] = static_cast<uint32_t>(group);
  shape.box[2] = static_cast<uint32_t>(ConsumerTokens(group));
  return hopper::EncodeTensorMap(shape, map);
}

cudaError_t EncodeMaps(const WindowSparseArgs& args, PrefillMaps* maps) {
  cudaError_t error = EncodeQueries(args, &maps->q);
  if (error == cudaSuccess) error = EncodeStep(args.step_k, args, args.head_dim, &maps->step_k);
  if (error == cudaSuccess) error = EncodeStep(args.step_v, args, args.v_head_dim, &maps->step_v);
  if (args.selection == nullptr) {
    maps->page_k = maps->step_k;  // not used
    maps->page_v = maps->step_v;
    return error;
  }
  const int64_t k_slice = int64_t{args.num_kv_heads} * kSparseBlock * args.head_dim;
  if (error == cudaSuccess) {
    error = EncodePageMap(args, args.pages, args.head_dim, &maps->page_k);
  }
  if (error == cudaSuccess) {
    error = EncodePageMap(args, args.pages + k_slice, args.v_head_dim, &maps->page_v);
  }
  return error;
}

template <int kDim, int kVDim, int kStages>
cudaError_t Launch(const WindowSparseArgs& args, const PrefillPlan& plan, int num_sms,
                   cudaStream_t stream) {
  constexpr int kBytes = sizeof(PrefillShared<kDim, kVDim, kStages>) + 1024;
  static_assert(kBytes <= 227 * 1024);
  static const cudaError_t attribute =
      cudaFuncSetAttribute(PrefillKernel<kDim, kVDim, kStages>,
                           cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (attribute != cudaSuccess) return attribute;
  PrefillMaps maps;
  const cudaError_t error = EncodeMaps(args, &maps);
  if (error != cudaSuccess) return error;
  const int64_t work = int64_t{plan.num_tiles} * args.num_kv_heads;
  const int blocks = static_cast<int>(work < num_sms ? work : num_sms);
  PrefillKernel<kDim, kVDim, kStages><<<blocks, kThreads, kBytes, stream>>>(args, plan, maps);
  return cudaGetLastError();
}

bool Aligned(const void* pointer, int64_t stride) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride % 8 == 0;
}

bool SupportsHeads(const WindowSparseArgs& args) {
  const int d = args.head_dim;
  const int v = args.v_head_dim;
  const bool dims = (d == 64 && v == 64) || (d == 128 && v == 128) || (d == 192 && v == 128);
  return dims && args.num_heads / args.num_kv_heads <= kTileRows;
}

}  // namespace

bool WindowSparsePrefillSupports(const WindowSparseArgs& args) {
  return SupportsHeads(args) && args.scale > 0.0f &&
         Aligned(args.q.data, args.q.stride) && Aligned(args.step_k.data, args.step_k.stride) &&
         Aligned(args.step_v.data, args.step_v.stride) && Aligned(args.ring, 0) &&
         reinterpret_cast<uintptr_t>(args.out) % 4 == 0 && args.out_stride % 2 == 0 &&
         args.ring_k_offset_bytes % 16 == 0 && args.ring_v_offset_bytes % 16 == 0 &&
         args.slab_stride_bytes % 16 == 0 &&
         (args.selection == nullptr || Aligned(args.pages, 0));
}

int WindowSparsePrefillTileTokens(const WindowSparseArgs& args) {
  return kConsumers * ConsumerTokens(args.num_heads / args.num_kv_heads);
}

size_t WindowSparsePrefillWorkspaceBytes(const WindowSparseArgs& args,
                                         const SparsePrefillWork& work) {
  size_t bytes = 0;
  MakeByBlockPlan(args, work, nullptr, &bytes);
  return bytes;
}

size_t WindowSparsePrefillMostWorkspaceBytes(const WindowSparseArgs& args, int max_blocks) {
  return SupportsHeads(args) ? MostByBlockBytes(args, max_blocks) : 0;
}

cudaError_t LaunchWindowSparsePrefill(const WindowSparseArgs& args, const SparsePrefillWork& work,
                                      char* workspace, int num_sms, cudaStream_t stream) {
  if (work.num_tiles == 0) return cudaSuccess;
  size_t bytes = 0;
  ByBlockPlan by_block;
  if (workspace != nullptr) by_block = MakeByBlockPlan(args, work, workspace, &bytes);
  cudaError_t error = cudaSuccess;
  if (bytes > 0) error = LaunchByBlockPlan(args, by_block, stream);
  if (error != cudaSuccess) return error;
  const PrefillPlan plan = {work.min_rows, work.num_tiles, by_block.by_block};
  if (args.head_dim == 64) {
    error = Launch<64, 64, 8>(args, plan, num_sms, stream);
  } else if (args.head_dim == 128) {
    error = Launch<128, 128, 5>(args, plan, num_sms, stream);
  } else {
    error = Launch<192, 128, 4>(args, plan, num_sms, stream);
  }
  if (error != cudaSuccess || bytes == 0) return error;
  return LaunchByBlock(args, by_block, num_sms, stream);
}

}  // namespace hyserve::kernels::cuda
