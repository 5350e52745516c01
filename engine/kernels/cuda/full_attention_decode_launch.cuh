// Launching one shape of the decode kernel.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_DECODE_LAUNCH_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_DECODE_LAUNCH_CUH_

#include "engine/kernels/cuda/full_attention_decode.cuh"
#include "engine/kernels/cuda/hopper/tensor_map.h"
#include "engine/kernels/cuda/overlap.cuh"

namespace hyserve::kernels::cuda {

// K or V of every page: [block][kv head][64 tokens][dim], read one page and 64 dims at a time.
inline cudaError_t EncodePages(const SplitAttentionArgs& args, int dim, int64_t offset_elements,
                               CUtensorMap* map) {
  const uint64_t token_bytes = 2 * static_cast<uint64_t>(dim);
  const uint64_t slice_bytes = 2 * static_cast<uint64_t>(args.num_kv_heads) * kPageTokens *
                               (args.head_dim + args.v_head_dim);
  hopper::TensorMapShape shape;
  shape.data = static_cast<const char*>(args.pages) + 2 * offset_elements;
  shape.rank = 4;
  shape.extents[0] = dim;
  shape.extents[1] = kPageTokens;
  shape.extents[2] = args.num_kv_heads;
  shape.extents[3] = args.num_blocks;
  shape.strides_bytes[0] = token_bytes;
  shape.strides_bytes[1] = token_bytes * kPageTokens;
  shape.strides_bytes[2] = slice_bytes;
  shape.box[0] = 64;
  shape.box[1] = kPageTokens;
  shape.box[2] = 1;
  shape.box[3] = 1;
  shape.promote_256_bytes = false;  // 4 % of the bandwidth of pages
  return hopper::EncodeTensorMap(shape, map);
}

template <typename Shape>
cudaError_t LaunchDecodeShape(const SplitAttentionArgs& args, int num_sms, cudaStream_t stream) {
  CUtensorMap k_map;
  CUtensorMap v_map;
  const int64_t k_elements =
      static_cast<int64_t>(args.num_kv_heads) * kPageTokens * args.head_dim;
  cudaError_t error = EncodePages(args, args.head_dim, 0, &k_map);
  if (error == cudaSuccess) error = EncodePages(args, args.v_head_dim, k_elements, &v_map);
  if (error != cudaSuccess) return error;
  constexpr int kShared = sizeof(DecodeShared<Shape>);
  error = cudaFuncSetAttribute(DecodeAttentionKernel<Shape>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (error != cudaSuccess) return error;
  return LaunchOverlapped(DecodeAttentionKernel<Shape>, dim3(num_sms * Shape::kBlocksPerSm),
                          kDecodeThreads, kShared, stream, args, k_map, v_map);
}

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_DECODE_LAUNCH_CUH_
