// A row's tokens, counted or weighed in bins of logits, by all blocks of a cluster. Block 0, the
// leader, gets the sums.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_BINS_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_BINS_CUH_

#include <climits>
#include <cstdint>

#include "engine/kernels/cuda/sample_cluster.cuh"
#include "engine/kernels/cuda/sample_weights.cuh"

namespace hyserve::kernels::cuda {

inline constexpr int kBins = 1024;
inline constexpr int kRefinedBins = 256;
// The sum of a bin's weights is kept in parts, one after another for all bins: words are added to at
// once by hardware, longer numbers are not.
inline constexpr int kWeightWords = 3;

// Tokens with keys in [low, high] of bins in [first_bin, last_bin].
struct TokenFilter {
  uint64_t low;
  uint64_t high;
  int first_bin;
  int last_bin;
};

// What the leader has all blocks do next.
struct SearchOrder {
  enum class Step : int { kNothing, kList, kRefine, kCountAll };
  Step step;
  bool from_top;  // kList: no better token is left out
  TokenFilter filter;
  int shift;  // kRefine: bits of keys per bin
};

// A token, and the sums of the tokens up to it and with it.
struct TokenCut {
  uint64_t key;
  uint64_t weight;
  uint64_t count;
};

template <typename Group>
struct alignas(16) SearchShared {
  static constexpr int kListed = Group::kThreads;  // tokens that can be listed

  union {
    uint32_t words[kBins * kWeightWords];
    struct {
      uint32_t refined_words[kRefinedBins * (kWeightWords + 1)];  // then the count
      uint64_t refined_weight[kRefinedBins];
      uint32_t refined_count[kRefinedBins];
    };
  };
  union {
    uint64_t partial[Group::kThreads];
    struct {
      uint64_t listed[kListed];   // in the leader, of all blocks; then sorted, the best first
      uint64_t running[kListed];  // sums of their weights
    };
  };
  // In the leader: sums over the bins, then running sums.
  uint64_t weight[kBins];
  uint32_t count[kBins];

  SearchOrder orders[2];  // by turns: while one is read the next may be written
  int num_listed;
  // The leader's.
  int crossing_bin;
  TokenCut cut;
  uint64_t warp_weight[Group::kBlockWarps];
  uint32_t warp_count[Group::kBlockWarps];
};

// A block's (weight, count) of all its threads up to this one and with it.
template <typename Group>
__device__ __forceinline__ void BlockInclusiveSums(uint64_t& weight, uint32_t& count,
                                                   SearchShared<Group>& shared) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  weight = WarpInclusiveSum(weight);
  count = WarpInclusiveSum(count);
  __syncthreads();  // who still reads the last ones
  if (lane == 31) {
    shared.warp_weight[warp] = weight;
    shared.warp_count[warp] = count;
  }
  __syncthreads();
  const bool before = lane < warp;
  weight += WarpSum(before ? shared.warp_weight[lane % Group::kBlockWarps] : uint64_t{0});
  count += __reduce_add_sync(kAllLanes,
                             before ? shared.warp_count[lane % Group::kBlockWarps] : 0u);
}

template <typename Group, bool kStaged>
class Bins {
 public:
  // part_bits: so many bits of a weight go to a word.
  __device__ Bins(const Slice<Group, kStaged>& slice, int num_cols, int part_bits,
                  SearchShared<Group>& shared)
      : slice_(slice),
        shared_(shared),
        last_id_(static_cast<uint32_t>(num_cols - 1)),
        part_bits_(part_bits) {}

  // Bins over the logits [max - range, max]; logits below are in the last.
  __device__ void SetRange(float max, double range) {
    max_ = max;
    scale_ = range > 0 ? static_cast<float>(fmin(kBins / range, 3e38)) : 0.0f;
    width_ = range > 0 ? 1.0f / scale_ : 0.0f;
  }
  // Only tokens with `logit` or more count, and of equal ones those up to id.
  __device__ void SetLowest(float logit, int id) {
    lowest_ = logit;
    lowest_id_ = id;
  }
  __device__ __forceinline__ int BinOf(float logit) const {
    return static_cast<int>(fminf((max_ - logit) * scale_, kBins - 1.0f));
  }
  // All tokens' keys from the lowest on.
  __device__ uint64_t LowestKey() const {
    return KeyAt(lowest_, ~min(last_id_, static_cast<uint32_t>(lowest_id_)));
  }
  // Keys that the tokens of the bin, and of others at its edges, have.
  __device__ TokenFilter FilterOf(int bin) const {
    constexpr double kRounding = 1e-6;
    const double high = max_ - bin * (1 - kRounding) * width_;
    const double low = max_ - (bin + 1) * (1 + kRounding) * width_;
    TokenFilter filter = {LowestKey(), ~uint64_t{0}, bin, bin};
    filter.high = KeyAt(fminf(__double2float_ru(high), max_), ~0u);
    if (bin < kBins - 1) {
      filter.low = Larger(filter.low, KeyAt(fmaxf(__double2float_rd(low), -FLT_MAX), ~last_id_));
    }
    return filter;
  }

  // One token of each thread. The sums are there after a barrier of the cluster, as below.
  __device__ void CountOnes(float logit) {
    Clear(kBins);
    if (logit > -INFINITY) atomicAdd(&shared_.words[BinOf(logit)], 1u);
    Group::Sync();
    Merge<1>(shared_.words, kBins, nullptr, shared_.count);
  }
  __device__ void CountAll() {
    Clear(kBins);
    slice_.ForEach([&](float logit, int id) {
      if (IsCounted(logit, id)) atomicAdd(&shared_.words[BinOf(logit)], 1u);
    });
    Group::Sync();
    Merge<1>(shared_.words, kBins, nullptr, shared_.count);
  }
  // Gives this thread's sum of the weights of at least `bound`.
  __device__ uint64_t Weigh(const Weights& weights, uint64_t bound) {
    Clear(kBins * kWeightWords);
    uint64_t bounded = 0;
    slice_.ForEach([&](float logit, int id) {
      const uint64_t weight = weights.Of(logit);
      if (!IsCounted(logit, id)) return;
      if (weight >= bound) bounded += weight;
      AddWeight(shared_.words, kBins, BinOf(logit), weight);
    });
    Group::Sync();
    Merge<kWeightWords>(shared_.words, kBins, shared_.weight, nullptr);
    return bounded;
  }
  // The tokens that pass, into bins of 2^shift keys from the highest on.
  __device__ void Refine(const TokenFilter& filter, int shift, const Weights& weights) {
    Clear(kRefinedBins * (kWeightWords + 1));
    slice_.ForEach([&](float logit, int id) {
      const uint64_t weight = weights.Of(logit);
      const uint64_t key = TokenKey(logit, id);
      if (!Passes(filter, key, logit)) return;
      const int bin = static_cast<int>((filter.high - key) >> shift);
      AddWeight(shared_.refined_words, kRefinedBins, bin, weight);
      atomicAdd(&shared_.refined_words[kWeightWords * kRefinedBins + bin], 1u);
    });
    Group::Sync();
    Merge<kWeightWords + 1>(shared_.refined_words, kRefinedBins, shared_.refined_weight,
                            shared_.refined_count);
  }
  __device__ __forceinline__ bool Passes(const TokenFilter& filter, uint64_t key,
                                         float logit) const {
    if (key < filter.low || key > filter.high) return false;
    const int bin = BinOf(logit);
    return bin >= filter.first_bin && bin <= filter.last_bin;
  }

  // In the leader: running sums of what was counted, weighed or refined.
  __device__ void SumCounts() {
    constexpr int kEach = kBins / Group::kThreads;
    uint64_t weights[kEach] = {};
    uint32_t counts[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) counts[i] = shared_.count[threadIdx.x * kEach + i];
    RunningSums<kEach>(weights, counts, shared_.weight, shared_.count, true);
  }
  // The counts are estimates: a bin's weights differ little.
  __device__ void SumWeights(const Weights& of) {
    constexpr int kEach = kBins / Group::kThreads;
    uint64_t weights[kEach];
    uint32_t counts[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int bin = static_cast<int>(threadIdx.x) * kEach + i;
      weights[i] = shared_.weight[bin];
      const uint64_t one = of.Of(max_ - (static_cast<float>(bin) + 0.5f) * width_);
      const float count = static_cast<float>(weights[i]) / static_cast<float>(one == 0 ? 1 : one);
      counts[i] = static_cast<uint32_t>(fminf(ceilf(count * 1.02f), 1e6f));
    }
    RunningSums<kEach>(weights, counts, shared_.weight, shared_.count, true);
  }
  __device__ void SumRefined() {
    const int bin = threadIdx.x;
    const bool is_bin = bin < kRefinedBins;
    uint64_t weights[1] = {is_bin ? shared_.refined_weight[bin] : 0};
    uint32_t counts[1] = {is_bin ? shared_.refined_count[bin] : 0};
    RunningSums<1>(weights, counts, shared_.refined_weight, shared_.refined_count, is_bin);
  }

  static __device__ __forceinline__ uint64_t KeyAt(float logit, uint32_t low) {
    return (static_cast<uint64_t>(OrderedKey(logit)) << 32) | low;
  }
  __device__ const Slice<Group, kStaged>& slice() const { return slice_; }

 private:
  static_assert(kBins % Group::kThreads == 0 && kRefinedBins <= Group::kThreads);

  __device__ __forceinline__ bool IsCounted(float logit, int id) const {
    return logit > lowest_ || (logit == lowest_ && id <= lowest_id_);
  }
  __device__ __forceinline__ void Clear(int num_words) {
    __syncthreads();
    for (int i = 4 * threadIdx.x; i < num_words; i += 4 * Group::kThreads) {
      *reinterpret_cast<uint4*>(shared_.words + i) = {0, 0, 0, 0};
    }
    __syncthreads();
  }
  __device__ __forceinline__ void AddWeight(uint32_t* words, int num_bins, int bin,
                                            uint64_t weight) {
    const uint32_t mask = (1u << part_bits_) - 1;
    const auto low = static_cast<uint32_t>(weight) & mask;
    const auto middle = static_cast<uint32_t>(weight >> part_bits_) & mask;
    const auto high = static_cast<uint32_t>(weight >> (2 * part_bits_));
    if (low != 0) atomicAdd(&words[bin], low);
    if (middle != 0) atomicAdd(&words[num_bins + bin], middle);
    if (high != 0) atomicAdd(&words[2 * num_bins + bin], high);
  }

  // Each block adds up a part of the bins over all blocks, which it asks in an order of its own, and
  // gives the leader the sums. kWords: 1 a count, 3 a weight, 4 both.
  template <int kWords>
  __device__ void Merge(const uint32_t* words, int num_bins, uint64_t* weights, uint32_t* counts) {
    constexpr int kRanks = Group::kRanks;
    const int each = num_bins / kRanks;
    const int groups = kWords == 4 ? 1 : min(kRanks, max(1, Group::kThreads / each));
    const int group = threadIdx.x / each;
    for (int i = threadIdx.x; i < each * groups; i += Group::kThreads) {
      const int own = kRanks == 1 ? i : i - group * each;
      const int bin = Group::Rank() * each + own;
      uint64_t weight = 0;
      uint32_t count = 0;
      for (int rank = kRanks == 1 ? 0 : group; rank < kRanks; rank += groups) {
        const uint32_t* theirs = Group::Of((rank + Group::Rank()) % kRanks, words) + bin;
        if constexpr (kWords == 1) count += theirs[0];
        if constexpr (kWords == 4) count += theirs[kWeightWords * num_bins];
        if constexpr (kWords > 1) {
          weight += theirs[0] + (static_cast<uint64_t>(theirs[num_bins]) << part_bits_) +
                    (static_cast<uint64_t>(theirs[2 * num_bins]) << (2 * part_bits_));
        }
      }
      if (groups > 1) {
        shared_.partial[i] = kWords == 1 ? count : weight;
      } else {
        if constexpr (kWords > 1) Group::Of(0, weights)[bin] = weight;
        if constexpr (kWords != kWeightWords) Group::Of(0, counts)[bin] = count;
      }
    }
    if (groups == 1) return;
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < each) {
      uint64_t sum = 0;
      for (int i = 0; i < groups; ++i) sum += shared_.partial[i * each + threadIdx.x];
      const int bin = Group::Rank() * each + static_cast<int>(threadIdx.x);
      if constexpr (kWords == 1) {
        Group::Of(0, counts)[bin] = static_cast<uint32_t>(sum);
      } else {
        Group::Of(0, weights)[bin] = sum;
      }
    }
  }

  // Of the kEach bins of every thread.
  template <int kEach>
  __device__ void RunningSums(uint64_t (&own_weights)[kEach], uint32_t (&own_counts)[kEach],
                              uint64_t* weights, uint32_t* counts, bool write) {
#pragma unroll
    for (int i = 1; i < kEach; ++i) {
      own_weights[i] += own_weights[i - 1];
      own_counts[i] += own_counts[i - 1];
    }
    uint64_t weight = own_weights[kEach - 1];
    uint32_t count = own_counts[kEach - 1];
    BlockInclusiveSums(weight, count, shared_);
    weight -= own_weights[kEach - 1];
    count -= own_counts[kEach - 1];
#pragma unroll
    for (int i = 0; i < kEach && write; ++i) {
      weights[threadIdx.x * kEach + i] = weight + own_weights[i];
      counts[threadIdx.x * kEach + i] = count + own_counts[i];
    }
    __syncthreads();
  }

  const Slice<Group, kStaged>& slice_;
  SearchShared<Group>& shared_;
  uint32_t last_id_;
  int part_bits_;
  float max_ = 0;
  float width_ = 0;  // of a bin
  float scale_ = 0;  // bins per unit of logit
  float lowest_ = -FLT_MAX;
  int lowest_id_ = INT_MAX;
};

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_BINS_CUH_
