// The k largest of a row of scores by one block: by (score descending, index ascending), written in
// ascending order of the index.
//
// The k-th largest key is found by its bits, one count of the block per bit; counts are integers,
// so the result does not depend on the order of threads.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_BLOCK_TOP_K_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_BLOCK_TOP_K_CUH_

#include <cstdint>

namespace hyserve::kernels::cuda {

inline constexpr int kMostSelected = 64;

// Order of floats as order of integers; every float's key is larger than 0, which pads. -0 equals
// +0.
__device__ __forceinline__ uint32_t OrderedKey(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return (bits & 0x80000000) != 0 ? ~bits : bits | 0x80000000;
}

struct TopKShared {
  static constexpr int kIndexBits = 26;
  int counts[32 + 1 + kIndexBits];
  int num_listed;
  uint32_t all_ones;  // bits that every key has
  uint32_t any_ones;  // bits that some key has
  int list[kMostSelected];
};

// The barrier of the threads that select: the whole block.
struct BlockBarrier {
  static __device__ void Sync() { __syncthreads(); }
};

// kKeys > 0: a thread's keys are in registers and key(j) is called with constants after unrolling;
// 0: key(j) is called for j < ceil(count / kThreads). key(j) is the key of index
// j * kThreads + threadIdx.x, 0 from `count` on. Called by all kThreads threads; 1 <= k <=
// kMostSelected. out: [k]. shared may be in use until the next barrier after the call.
template <int kThreads, int kKeys, typename Barrier, typename KeyOf>
__device__ void BlockTopK(const KeyOf& key, int count, int k, int32_t* out, TopKShared& shared) {
  const int thread = threadIdx.x;
  if (count <= k) {
    for (int i = thread; i < k; i += kThreads) out[i] = i < count ? i : -1;
    return;
  }
  const auto for_each = [&](const auto& body) {
    if constexpr (kKeys > 0) {
#pragma unroll
      for (int j = 0; j < kKeys; ++j) body(j * kThreads + thread, key(j));
    } else {
      for (int j = 0; j * kThreads < count; ++j) body(j * kThreads + thread, key(j));
    }
  };
  constexpr int kCounts = sizeof(shared.counts) / sizeof(int);
  for (int i = thread; i < kCounts; i += kThreads) shared.counts[i] = 0;
  if (thread == 0) {
    shared.num_listed = 0;
    shared.all_ones = 0xffffffff;
    shared.any_ones = 0;
  }
  Barrier::Sync();
  uint32_t all_ones = 0xffffffff;
  uint32_t any_ones = 0;
  for_each([&](int index, uint32_t value) {
    if (index < count) {
      all_ones &= value;
      any_ones |= value;
    }
  });
  all_ones = __reduce_and_sync(0xffffffff, all_ones);
  any_ones = __reduce_or_sync(0xffffffff, any_ones);
  if (thread % 32 == 0) {
    atomicAnd(&shared.all_ones, all_ones);
    atomicOr(&shared.any_ones, any_ones);
  }
  Barrier::Sync();
  all_ones = shared.all_ones;
  const uint32_t different = all_ones ^ shared.any_ones;
  // Of the whole block, each slot used once.
  const auto count_if = [&](int slot, const auto& predicate) {
    int own = 0;
    for_each([&](int index, uint32_t value) { own += predicate(index, value) ? 1 : 0; });
    own = __reduce_add_sync(0xffffffff, own);
    if (thread % 32 == 0 && own != 0) atomicAdd(&shared.counts[slot], own);
    Barrier::Sync();
    return shared.counts[slot];
  };

  // The largest threshold that at least k keys reach. Above the first bit that differs it is what
  // all keys have.
  const int first_bit = 31 - __clz(different);  // -1: all keys are equal
  uint32_t threshold = first_bit == 31 ? 0 : all_ones >> (first_bit + 1) << (first_bit + 1);
  int reached = count;
  for (int bit = first_bit; bit >= 0 && reached != k; --bit) {
    const uint32_t candidate = threshold | (uint32_t{1} << bit);
    const int above = count_if(bit, [&](int, uint32_t value) { return value >= candidate; });
    if (above >= k) {
      threshold = candidate;
      reached = above;
    }
  }
  // Of the keys that equal the threshold, only those before index_end.
  int index_end = INT32_MAX;
  if (reached != k) {
    const int above = count_if(32, [&](int, uint32_t value) { return value > threshold; });
    const int wanted = k - above;
    index_end = 0;
    for (int bit = TopKShared::kIndexBits - 1; bit >= 0; --bit) {
      const int candidate = index_end | (1 << bit);
      const int equal = count_if(33 + bit, [&](int index, uint32_t value) {
        return value == threshold && index < candidate;
      });
      if (equal <= wanted) index_end = candidate;
    }
  }
  for_each([&](int index, uint32_t value) {
    if (value > threshold || (value == threshold && index < index_end && index < count)) {
      shared.list[atomicAdd(&shared.num_listed, 1)] = index;
    }
  });
  Barrier::Sync();
  for (int i = thread; i < k; i += kThreads) {
    const int index = shared.list[i];
    int rank = 0;
    for (int other = 0; other < k; ++other) rank += shared.list[other] < index ? 1 : 0;
    out[rank] = index;
  }
}

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_BLOCK_TOP_K_CUH_
