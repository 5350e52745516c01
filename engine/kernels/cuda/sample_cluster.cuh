// One row of logits shared among the blocks of a thread block cluster: each has a slice, and they
// exchange what they find through distributed shared memory.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_CLUSTER_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_CLUSTER_CUH_

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "engine/kernels/cuda/sample_weights.cuh"

namespace hyserve::kernels::cuda {

inline constexpr int kSampleThreads = 512;
inline constexpr int kSampleWarps = kSampleThreads / 32;

// The blocks of the cluster. kRanks = 1: a block alone.
template <int kRanks>
struct Cluster {
  static constexpr int kWarps = kRanks * kSampleWarps;

  static __device__ __forceinline__ int Rank() {
    return kRanks == 1 ? 0 : static_cast<int>(blockIdx.x % kRanks);
  }
  // Orders the accesses of all threads to all memory.
  static __device__ __forceinline__ void Sync() {
    if constexpr (kRanks == 1) {
      __syncthreads();
    } else {
      cooperative_groups::this_cluster().sync();
    }
  }
  // The same variable of another block.
  template <typename T>
  static __device__ __forceinline__ T* Of(int rank, T* local) {
    if constexpr (kRanks == 1) {
      return local;
    } else {
      return cooperative_groups::this_cluster().map_shared_rank(local, rank);
    }
  }
  // Stores the warp's value at [warp of the cluster] of every block's `all`, in the order of ranks.
  template <typename T>
  static __device__ __forceinline__ void TellAll(T* all, T value) {
    const int lane = threadIdx.x % 32;
    if (lane < kRanks) *Of(lane, all + Rank() * kSampleWarps + threadIdx.x / 32) = value;
  }
};

template <typename T, typename Combine>
__device__ __forceinline__ T WarpReduce(T value, Combine combine) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, lanes));
  }
  return value;
}

__device__ __forceinline__ uint64_t Larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

template <typename T>
__device__ __forceinline__ T WarpSum(T value) {
  return WarpReduce(value, [](T a, T b) { return a + b; });
}

template <typename T>
__device__ __forceinline__ T WarpInclusiveSum(T value) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const T before = __shfl_up_sync(kAllLanes, value, lanes);
    if (lane >= lanes) value += before;
  }
  return value;
}

// A block's part of a row, in vectors of four logits that begin where 16-byte accesses may.
// kStaged: Load reads device memory and keeps what it read in shared memory for Get; else Get reads
// again. Places outside the row read as minus infinity.
template <bool kStaged>
class Slice {
 public:
  __device__ Slice(const float* row, int num_cols, int rank, int vectors_per_rank, float4* staged)
      : skew_(static_cast<int>(reinterpret_cast<uintptr_t>(row) / sizeof(float) % 4)),
        num_cols_(num_cols),
        first_(rank * vectors_per_rank),
        base_(row - skew_),
        staged_(staged) {
    const int all = (num_cols + skew_ + 3) / 4;
    size_ = max(0, min(vectors_per_rank, all - first_));
  }
  __device__ __forceinline__ int size() const { return size_; }
  // The token of element 0 of a vector.
  __device__ __forceinline__ int FirstId(int vector) const {
    return 4 * (first_ + vector) - skew_;
  }
  __device__ __forceinline__ float4 Load(int vector) const {
    const int id = FirstId(vector);
    const float* from = base_ + 4 * int64_t{first_ + vector};
    float4 x;
    if (id >= 0 && id + 4 <= num_cols_) {
      x = __ldcg(reinterpret_cast<const float4*>(from));
    } else {
      x.x = id >= 0 && id < num_cols_ ? __ldcg(from) : -INFINITY;
      x.y = id + 1 >= 0 && id + 1 < num_cols_ ? __ldcg(from + 1) : -INFINITY;
      x.z = id + 2 >= 0 && id + 2 < num_cols_ ? __ldcg(from + 2) : -INFINITY;
      x.w = id + 3 >= 0 && id + 3 < num_cols_ ? __ldcg(from + 3) : -INFINITY;
    }
    return {Sanitized(x.x), Sanitized(x.y), Sanitized(x.z), Sanitized(x.w)};
  }
  __device__ __forceinline__ void Keep(int vector, const float4& x) const {
    if constexpr (kStaged) staged_[vector] = x;
  }
  __device__ __forceinline__ float4 Get(int vector) const {
    if constexpr (kStaged) return staged_[vector];
    return Load(vector);
  }
  // Calls body(logit, id) for all places of the slice and, so that warps stay whole, for some
  // behind it, with minus infinity.
  template <typename Body>
  __device__ __forceinline__ void ForEach(const Body& body) const {
    for (int at = 0; at < size_; at += kSampleThreads) {
      const int vector = at + static_cast<int>(threadIdx.x);
      const float4 x = vector < size_ ? Get(vector) : Nothing();
      const int id = FirstId(vector);
      body(x.x, id);
      body(x.y, id + 1);
      body(x.z, id + 2);
      body(x.w, id + 3);
    }
  }
  static __device__ __forceinline__ float4 Nothing() {
    return {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  }

 private:
  int skew_;
  int num_cols_;
  int first_;
  int size_;
  const float* base_;
  float4* staged_;
};

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_CLUSTER_CUH_
