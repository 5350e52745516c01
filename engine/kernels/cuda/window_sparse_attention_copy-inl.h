// Copies of a block's keys and values into shared memory, as slabs of 64 columns with the copy
// engine's 128-byte swizzle: by the copy engine, or with ordinary loads where a block does not lie
// in memory as 64 whole rows.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_COPY_INL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_COPY_INL_H_

#include "engine/kernels/cuda/hopper/tma.h"
#include "engine/kernels/cuda/window_sparse_attention-inl.h"

namespace hyserve::kernels::cuda::window_sparse {

inline constexpr int kSlabBytes = kSparseBlock * 128;  // 64 rows of 64 bf16

// By one lane: starts the copies of a whole page (EncodePageMap), of which `full` is to expect the
// bytes.
template <int kDim, int kVDim>
__device__ __forceinline__ void StartPageCopy(const CUtensorMap& page_k, const CUtensorMap& page_v,
                                              unsigned char (&k)[kDim / 64][kSlabBytes],
                                              unsigned char (&v)[kVDim / 64][kSlabBytes],
                                              uint64_t* full, int kv_head, int page) {
#pragma unroll
  for (int i = 0; i < kDim / 64; ++i) {
    hopper::LoadTile4d(&page_k, k[i], full, i * 64, 0, kv_head, page);
  }
#pragma unroll
  for (int i = 0; i < kVDim / 64; ++i) {
    hopper::LoadTile4d(&page_v, v[i], full, i * 64, 0, kv_head, page);
  }
}

// low, high: this lane's rows `lane` and `lane + 32`; null: zeros.
template <int kCols>
__device__ void CopyMatrixByHand(uint32_t to, const uint16_t* low, const uint16_t* high) {
  constexpr int kChunks = kCols / 8;
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int row = 0; row < kSparseBlock; ++row) {
    const uint16_t* mine = row < 32 ? low : high;
    const uint16_t* from = reinterpret_cast<const uint16_t*>(
        __shfl_sync(~0u, reinterpret_cast<unsigned long long>(mine), row % 32));
    if (lane < kChunks) {
      const uint32_t address = to + (lane / 8) * kSlabBytes + row * 128 +
                               (((lane % 8) ^ (row & 7)) << 4);
      const void* source = from == nullptr ? nullptr : from + lane * 8;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(source),
                   "r"(from == nullptr ? 0 : 16)
                   : "memory");
    }
  }
}

// The whole warp. find(slot): the KeyRows of a slot, null where there is no key (zeros). Arrives
// once at `full` when all is in place.
template <int kDim, int kVDim, typename FindKey>
__device__ void CopyBlockByHand(void* k, void* v, uint64_t* full, const FindKey& find) {
  const int lane = threadIdx.x % 32;
  const KeyRows low = find(lane);
  const KeyRows high = find(lane + 32);
  CopyMatrixByHand<kDim>(hopper::SharedAddress(k), low.k, high.k);
  CopyMatrixByHand<kVDim>(hopper::SharedAddress(v), low.v, high.v);
  asm volatile("cp.async.wait_all;\n" ::: "memory");
  hopper::FenceSharedForAsync();
  __syncwarp();
  if (lane == 0) hopper::BarrierArrive(full);
}

}  // namespace hyserve::kernels::cuda::window_sparse

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_COPY_INL_H_
