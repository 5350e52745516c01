// How the copy engine sees the pages of the selected blocks. Host code.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PAGE_MAP_INL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PAGE_MAP_INL_H_

#include "engine/kernels/cuda/hopper/tensor_map.h"
#include "engine/kernels/cuda/window_sparse_attention_launch.h"

namespace hyserve::kernels::cuda::window_sparse {

// Keys (data: args.pages, dim: head_dim) or values (data: behind a slice's keys, dim: v_head_dim):
// [block][kv head][64][dim], read as 64 x 64 boxes.
inline cudaError_t EncodePageMap(const WindowSparseArgs& args, const uint16_t* data, int dim,
                                 CUtensorMap* map) {
  const uint64_t row = uint64_t{2} * dim;
  const uint64_t slice = uint64_t{2} * args.num_kv_heads * kSparseBlock *
                         (args.head_dim + args.v_head_dim);
  hopper::TensorMapShape shape;
  shape.data = data;
  shape.rank = 4;
  const uint64_t extents[] = {static_cast<uint64_t>(dim), kSparseBlock,
                              static_cast<uint64_t>(args.num_kv_heads),
                              static_cast<uint64_t>(args.num_blocks)};
  const uint64_t strides[] = {row, row * kSparseBlock, slice};
  const uint32_t box[] = {64, kSparseBlock, 1, 1};
  for (int i = 0; i < 4; ++i) shape.extents[i] = extents[i];
  for (int i = 0; i < 3; ++i) shape.strides_bytes[i] = strides[i];
  for (int i = 0; i < 4; ++i) shape.box[i] = box[i];
  return hopper::EncodeTensorMap(shape, map);
}

}  // namespace hyserve::kernels::cuda::window_sparse

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PAGE_MAP_INL_H_
