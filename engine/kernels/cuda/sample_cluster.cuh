// One row of logits shared among the blocks of a thread block cluster: each has a slice, and they
// exchange what they find through distributed shared memory.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_CLUSTER_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_CLUSTER_CUH_

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "engine/kernels/cuda/sample_copy.cuh"
#include "engine/kernels/cuda/sample_weights.cuh"

namespace hyserve::kernels::cuda {

template <typename T, typename Combine>
__device__ __forceinline__ T WarpReduce(T value, Combine combine) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, lanes));
  }
  return value;
}

__device__ __forceinline__ uint64_t Larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

// The largest of a warp.
__device__ __forceinline__ uint64_t WarpLargest(uint64_t value) {
  const auto high = static_cast<uint32_t>(value >> 32);
  const uint32_t best = __reduce_max_sync(kAllLanes, high);
  const uint32_t low = high == best ? static_cast<uint32_t>(value) : 0;
  return (static_cast<uint64_t>(best) << 32) | __reduce_max_sync(kAllLanes, low);
}

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

// The kRanks blocks of the cluster, of kNumThreads each. kRanks = 1: a block alone.
template <int kNumRanks, int kNumThreads>
struct Cluster {
  static constexpr int kRanks = kNumRanks;
  static constexpr int kThreads = kNumThreads;
  static constexpr int kBlockWarps = kThreads / 32;
  static constexpr int kWarps = kRanks * kBlockWarps;

  static __device__ __forceinline__ int Rank() {
    return kRanks == 1 ? 0 : static_cast<int>(blockIdx.x % kRanks);
  }
  // A barrier of all threads that orders their accesses to all memory, in two halves.
  static __device__ __forceinline__ void Arrive() {
    if constexpr (kRanks > 1) cooperative_groups::this_cluster().barrier_arrive();
  }
  static __device__ __forceinline__ void Wait() {
    if constexpr (kRanks > 1) {
      cooperative_groups::this_cluster().barrier_wait();
    } else {
      __syncthreads();
    }
  }
  static __device__ __forceinline__ void Sync() {
    Arrive();
    Wait();
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
    if (lane < kRanks) *Of(lane, all + Rank() * kBlockWarps + threadIdx.x / 32) = value;
  }
  // Of one value a warp of the cluster.
  static __device__ uint64_t Sum(const uint64_t* all) {
    uint64_t sum = 0;
#pragma unroll
    for (int i = 0; i < kWarps; i += 32) {
      if (i + threadIdx.x % 32 < kWarps) sum += all[i + threadIdx.x % 32];
    }
    return WarpSum(sum);
  }
};

// A block's part of a row, in vectors of four logits that begin where 16-byte accesses may.
// kStaged: kept in shared memory; else every Get reads device memory. Places outside the row read
// as minus infinity.
template <typename Group, bool kStaged>
class Slice {
 public:
  __device__ Slice(const float* row, int num_cols, int vectors_per_rank, float4* staged)
      : skew_(static_cast<int>(reinterpret_cast<uintptr_t>(row) / sizeof(float) % 4)),
        num_cols_(num_cols),
        first_(Group::Rank() * vectors_per_rank),
        base_(row - skew_),
        staged_(staged) {
    size_ = max(0, min(vectors_per_rank, (num_cols + skew_ + 3) / 4 - first_));
  }
  __device__ __forceinline__ int size() const { return size_; }
  // The token of element 0 of a vector.
  __device__ __forceinline__ int FirstId(int vector) const {
    return 4 * (first_ + vector) - skew_;
  }
  // Begins to bring the slice to where Get finds it.
  __device__ void BeginLoad() const {
    if constexpr (kStaged) {
      for (int vector = threadIdx.x; vector < size_; vector += Group::kThreads) {
        if (IsWhole(vector)) {
          CopyVectorAsync(staged_ + vector, Address(vector));
        } else {
          staged_[vector] = LoadParts(vector);
        }
      }
    }
  }
  // Calls body(logit, id) for the places that this thread's BeginLoad took, in order.
  template <typename Body>
  __device__ __forceinline__ void ForEachLoaded(const Body& body) const {
    if constexpr (kStaged) WaitForCopies();
#pragma unroll 4
    for (int vector = threadIdx.x; vector < size_; vector += Group::kThreads) {
      const float4 raw = kStaged ? staged_[vector] : Load(vector);
      const float4 x = SanitizedVector(raw);
      // Written back where it was not a number that counts.
      if constexpr (kStaged) {
        if (x.x != raw.x || x.y != raw.y || x.z != raw.z || x.w != raw.w) staged_[vector] = x;
      }
      Visit(x, FirstId(vector), body);
    }
  }
  __device__ __forceinline__ float4 Get(int vector) const {
    if constexpr (kStaged) return staged_[vector];
    return SanitizedVector(Load(vector));
  }
  // Get, or minus infinity from `end` on.
  __device__ __forceinline__ float4 GetBefore(int vector, int end) const {
    return vector < end ? Get(vector) : float4{-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  }
  // Calls body(logit, id) for all places of the slice and, so that warps stay whole, for some
  // behind it, with minus infinity.
  template <typename Body>
  __device__ __forceinline__ void ForEach(const Body& body) const {
#pragma unroll 2
    for (int at = 0; at < size_; at += Group::kThreads) {
      const int vector = at + static_cast<int>(threadIdx.x);
      Visit(GetBefore(vector, size_), FirstId(vector), body);
    }
  }

 private:
  __device__ __forceinline__ const float* Address(int vector) const {
    return base_ + 4 * int64_t{first_ + vector};
  }
  __device__ __forceinline__ bool IsWhole(int vector) const {
    const int id = FirstId(vector);
    return id >= 0 && id + 4 <= num_cols_;
  }
  __device__ float4 LoadParts(int vector) const {
    float x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int id = FirstId(vector) + i;
      x[i] = id >= 0 && id < num_cols_ ? __ldcg(Address(vector) + i) : -INFINITY;
    }
    return {x[0], x[1], x[2], x[3]};
  }
  __device__ __forceinline__ float4 Load(int vector) const {
    if (!IsWhole(vector)) return LoadParts(vector);
    return __ldcg(reinterpret_cast<const float4*>(Address(vector)));
  }
  static __device__ __forceinline__ float4 SanitizedVector(const float4& x) {
    return {Sanitized(x.x), Sanitized(x.y), Sanitized(x.z), Sanitized(x.w)};
  }
  template <typename Body>
  static __device__ __forceinline__ void Visit(const float4& x, int id, const Body& body) {
    body(x.x, id);
    body(x.y, id + 1);
    body(x.z, id + 2);
    body(x.w, id + 3);
  }

  int skew_;
  int num_cols_;
  int first_;
  int size_;
  const float* base_;
  float4* staged_;
};

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_CLUSTER_CUH_
