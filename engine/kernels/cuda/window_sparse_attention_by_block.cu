// The kernel of WindowSparseAttention that goes by block: persistent; a thread block is a producer
// warp, two consumer warpgroups and one that merges.
#include "engine/kernels/cuda/window_sparse_attention_by_block.h"

#include "engine/kernels/cuda/window_sparse_attention_by_block-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_merge-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_page_map-inl.h"

namespace hyserve::kernels::cuda::window_sparse {
namespace {

constexpr int kThreads = (2 + kByBlockConsumers) * hopper::kWarpgroupThreads;

template <int kDim, int kVDim, int kQueryStages>
__global__ void __launch_bounds__(kThreads, 1)
    ByBlockKernel(const __grid_constant__ WindowSparseArgs args,
                  const __grid_constant__ ByBlockPlan plan,
                  const __grid_constant__ ByBlockMaps maps) {
  using Shared = ByBlockShared<kDim, kVDim, kQueryStages>;
  if (*plan.any == 0) return;
  extern __shared__ unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared*>(
      memory + (1024 - hopper::SharedAddress(memory) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kQueryStages; ++i) {
      hopper::BarrierInit(&shared.q_full[i], 32);
      hopper::BarrierInit(&shared.q_empty[i], hopper::kWarpgroupThreads);
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
      ByBlockProducer<kDim, kVDim, Shared>(args, plan, maps, shared).Run();
    }
  } else {
    hopper::IncreaseRegisters<152>();
    if (warpgroup <= kByBlockConsumers) {
      ByBlockConsumer<kDim, kVDim, Shared>(args, plan, shared, warpgroup - 1).Run();
    } else {
      MergeParts<kVDim>(args, plan);
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
  // Thread blocks wait for each other, so all must run at once.
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(num_sms));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, ByBlockKernel<kDim, kVDim, kQueryStages>, args, plan, maps);
}

}  // namespace

cudaError_t LaunchByBlock(const WindowSparseArgs& args, const ByBlockPlan& plan, int num_sms,
                          cudaStream_t stream) {
  if (args.head_dim == 64) return Launch<64, 64, 8>(args, plan, num_sms, stream);
  if (args.head_dim == 128) return Launch<128, 128, 7>(args, plan, num_sms, stream);
  return Launch<192, 128, 5>(args, plan, num_sms, stream);
}

}  // namespace hyserve::kernels::cuda::window_sparse
