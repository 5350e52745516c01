// Where the running count, or sum of weights, of a row's tokens, best first, passes a number.
//
// The tokens are counted into bins by logit, and the bin in which the sum passes is found. If it has
// few tokens they are listed and sorted; else its range of keys is cut into bins again. All sums are
// of integers. All blocks of the cluster take part; block 0, the leader, decides and has the result.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_SEARCH_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_SEARCH_CUH_

#include <cstdint>

#include "engine/kernels/cuda/sample_cluster.cuh"
#include "engine/kernels/cuda/sample_weights.cuh"

namespace hyserve::kernels::cuda {

inline constexpr int kBins = 1024;
inline constexpr int kRefinedBins = 512;
inline constexpr int kListed = 1024;  // tokens that can be listed
inline constexpr int kBinWords = 4;   // three parts of the sum of weights, and the count

// Tokens with keys in [low, high] of bins in [first_bin, last_bin].
struct TokenFilter {
  uint64_t low;
  uint64_t high;
  int first_bin;
  int last_bin;
};

// What the leader has all blocks do next.
struct SearchOrder {
  enum class Step : int { kNothing, kList, kRefine };
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

struct alignas(16) SearchShared {
  union {
    uint32_t words[kBins * kBinWords];
    struct {
      uint32_t refined_words[kRefinedBins * kBinWords];
      uint64_t refined_weight[kRefinedBins];
      uint32_t refined_count[kRefinedBins];
    };
    struct {
      uint64_t listed[kListed];  // by this block; then, in the leader, running sums of weights
      uint64_t sorted[kListed];  // of all blocks
    };
  };
  // In the leader: running sums over the bins.
  uint64_t weight[kBins];
  uint32_t count[kBins];

  SearchOrder order;
  int num_listed;
  // The leader's.
  int crossing_bin;
  TokenCut cut;
  uint64_t warp_weight[kSampleWarps];
  uint32_t warp_count[kSampleWarps];
};

// A block's (weight, count) of all its threads up to this one and with it.
__device__ __forceinline__ void BlockInclusiveSums(uint64_t& weight, uint32_t& count,
                                                   SearchShared& shared) {
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
  weight += WarpSum(before ? shared.warp_weight[lane % kSampleWarps] : uint64_t{0});
  count += WarpSum(before ? shared.warp_count[lane % kSampleWarps] : 0u);
}

template <int kRanks, bool kStaged>
class Search {
 public:
  using Group = Cluster<kRanks>;

  // part_bits: so many bits of a weight go to a word of a bin.
  __device__ Search(const Slice<kStaged>& slice, int num_cols, int part_bits, SearchShared& shared)
      : slice_(slice),
        shared_(shared),
        last_id_(static_cast<uint32_t>(num_cols - 1)),
        part_bits_(part_bits),
        leader_(Group::Rank() == 0) {}

  __device__ __forceinline__ bool leader() const { return leader_; }

  // Counts the tokens of at least `lowest` into bins over the logits [max - range, max], those
  // below into the last; with kWeights sums their weights too, and gives this thread's sum of the
  // weights of at least `bound`.
  template <bool kWeights>
  __device__ uint64_t Count(float max, double range, float lowest, const Weights& weights,
                            uint64_t bound) {
    max_ = max;
    lowest_ = lowest;
    scale_ = range > 0 ? static_cast<float>(fmin(kBins / range, 3e38)) : 0.0f;
    num_listed_ = 0;
    ClearWords(kBins);
    uint64_t bounded = 0;
    slice_.ForEach([&](float logit, int id) {
      const uint64_t weight = kWeights ? weights.Of(logit) : 0;
      if (weight >= bound) bounded += weight;
      if (logit >= lowest_) Add<kWeights>(BinOf(logit), weight);
    });
    Group::Sync();
    Merge(kBins, shared_.words, shared_.weight, shared_.count);
    return bounded;
  }
  // After Count and a Sync. In the leader.
  __device__ void SumBins() { RunningSums<kBins>(shared_.weight, shared_.count); }
  __device__ uint64_t TotalWeight() const { return shared_.weight[kBins - 1]; }
  __device__ uint32_t TotalCount() const { return shared_.count[kBins - 1]; }

  // The first token with which the sum is more than target; target < the sum of all. The leader
  // gives the target and gets the token. With from_top all tokens up to it are listed after.
  template <bool kByWeight>
  __device__ TokenCut Find(uint64_t target, bool from_top, const Weights& weights) {
    uint64_t base_weight = 0;
    uint32_t base_count = 0;
    SearchOrder order = {};
    for (bool first = true;; first = false) {
      if (leader_) {
        if (Covers<kByWeight>(target)) {
          order.step = SearchOrder::Step::kNothing;
          if (from_top && !from_top_) {
            order = {SearchOrder::Step::kList, true,
                     {LookUp<kByWeight>(target).key, ~uint64_t{0}, 0, kBins - 1}, 0};
            base_weight = base_count = 0;
          }
        } else if (first) {
          order = Narrow<kByWeight, kBins>(target, shared_.weight, shared_.count, order,
                                           base_weight, base_count);
        } else {
          order = Narrow<kByWeight, kRefinedBins>(target, shared_.refined_weight,
                                                  shared_.refined_count, order, base_weight,
                                                  base_count);
        }
        __syncthreads();
        if (threadIdx.x < kRanks) {
          *Group::Of(static_cast<int>(threadIdx.x), &shared_.order) = order;
        }
      }
      Group::Sync();
      const SearchOrder now = shared_.order;
      if (now.step == SearchOrder::Step::kNothing) break;
      if (now.step == SearchOrder::Step::kList) {
        List(now, weights, base_weight, base_count);
        if (now.from_top || !from_top) break;
      } else {
        Refine(now, weights);
      }
    }
    return leader_ ? LookUp<kByWeight>(target) : TokenCut{};
  }

  // In the leader: of what is listed from the best on.
  template <bool kByWeight>
  __device__ TokenCut LookUp(uint64_t target) {
    const uint64_t* running = shared_.listed;
    if constexpr (kByWeight) {
      __syncthreads();
      for (int i = threadIdx.x; i < num_listed_; i += kSampleThreads) {
        const uint64_t before = i == 0 ? 0 : running[i - 1];
        const uint64_t wanted = target - base_weight_;
        if (before <= wanted && wanted < running[i]) {
          shared_.cut = {shared_.sorted[i], base_weight_ + running[i], base_count_ + i + 1};
        }
      }
      __syncthreads();
      return shared_.cut;
    } else {
      const auto i = static_cast<int>(target - base_count_);
      return {shared_.sorted[i], base_weight_ + running[i], target + 1};
    }
  }
  __device__ int num_listed() const { return num_listed_; }
  __device__ uint64_t Listed(int i) const { return shared_.sorted[i]; }

 private:
  __device__ __forceinline__ int BinOf(float logit) const {
    return static_cast<int>(fminf((max_ - logit) * scale_, kBins - 1.0f));
  }
  // Of 32 neighbouring bins the same word lies in 32 banks.
  static __device__ __forceinline__ int Word(int bin, int word) {
    return bin * kBinWords + ((word + bin / 8) % kBinWords);
  }
  __device__ __forceinline__ void ClearWords(int num_bins) {
    __syncthreads();
    for (int bin = threadIdx.x; bin < num_bins; bin += kSampleThreads) {
      reinterpret_cast<uint4*>(shared_.words)[bin] = {0, 0, 0, 0};
    }
    __syncthreads();
  }
  template <bool kWeights>
  __device__ __forceinline__ void Add(int bin, uint64_t weight) {
    atomicAdd(&shared_.words[Word(bin, 3)], 1u);
    if constexpr (kWeights) {
      const uint32_t mask = (1u << part_bits_) - 1;
      const auto low = static_cast<uint32_t>(weight) & mask;
      const auto middle = static_cast<uint32_t>(weight >> part_bits_) & mask;
      const auto high = static_cast<uint32_t>(weight >> (2 * part_bits_));
      if (low != 0) atomicAdd(&shared_.words[Word(bin, 0)], low);
      if (middle != 0) atomicAdd(&shared_.words[Word(bin, 1)], middle);
      if (high != 0) atomicAdd(&shared_.words[Word(bin, 2)], high);
    }
  }
  // Each block adds up a part of the bins and gives the leader the sums.
  __device__ void Merge(int num_bins, const uint32_t* words, uint64_t* weights, uint32_t* counts) {
    const int bins_per_rank = num_bins / kRanks;
    for (int i = threadIdx.x; i < bins_per_rank; i += kSampleThreads) {
      const int bin = Group::Rank() * bins_per_rank + i;
      uint64_t weight = 0;
      uint32_t count = 0;
#pragma unroll
      for (int rank = 0; rank < kRanks; ++rank) {
        const uint32_t* theirs = Group::Of(rank, words);
        const uint4 four = reinterpret_cast<const uint4*>(theirs)[bin];
        const uint32_t sums[kBinWords] = {four.x, four.y, four.z, four.w};
        const int turn = bin / 8;
        uint32_t in_order[kBinWords];
#pragma unroll
        for (int word = 0; word < kBinWords; ++word) {
          const int at = (word + turn) % kBinWords;
          in_order[word] = at == 0 ? sums[0] : at == 1 ? sums[1] : at == 2 ? sums[2] : sums[3];
        }
        weight += in_order[0] + (static_cast<uint64_t>(in_order[1]) << part_bits_) +
                  (static_cast<uint64_t>(in_order[2]) << (2 * part_bits_));
        count += in_order[3];
      }
      Group::Of(0, weights)[bin] = weight;
      Group::Of(0, counts)[bin] = count;
    }
  }
  template <int kNumBins>
  __device__ void RunningSums(uint64_t* weights, uint32_t* counts) {
    constexpr int kEach = kNumBins / kSampleThreads;
    const int first = static_cast<int>(threadIdx.x) * kEach;
    uint64_t weight = 0;
    uint32_t count = 0;
    uint64_t own_weight[kEach];
    uint32_t own_count[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      own_weight[i] = weight += weights[first + i];
      own_count[i] = count += counts[first + i];
    }
    uint64_t before_weight = weight;
    uint32_t before_count = count;
    BlockInclusiveSums(before_weight, before_count, shared_);
    before_weight -= weight;
    before_count -= count;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      weights[first + i] = before_weight + own_weight[i];
      counts[first + i] = before_count + own_count[i];
    }
    __syncthreads();
  }

  template <bool kByWeight>
  __device__ bool Covers(uint64_t target) const {
    if (num_listed_ == 0) return false;
    if constexpr (kByWeight) {
      return target >= base_weight_ && target - base_weight_ < shared_.listed[num_listed_ - 1];
    } else {
      return target >= base_count_ && target - base_count_ < num_listed_;
    }
  }

  // In the leader: from running sums over the bins, which begin at the base, the next step towards
  // the target. The base becomes that of the step. last: the order that led to these bins.
  template <bool kByWeight, int kNumBins>
  __device__ SearchOrder Narrow(uint64_t target, const uint64_t* weights, const uint32_t* counts,
                                const SearchOrder& last, uint64_t& base_weight,
                                uint32_t& base_count) {
    constexpr bool kFirst = kNumBins == kBins;
    for (int bin = threadIdx.x; bin < kNumBins; bin += kSampleThreads) {
      const uint64_t wanted = target - (kByWeight ? base_weight : uint64_t{base_count});
      const uint64_t before =
          bin == 0 ? 0 : kByWeight ? weights[bin - 1] : uint64_t{counts[bin - 1]};
      const uint64_t through = kByWeight ? weights[bin] : uint64_t{counts[bin]};
      if (before <= wanted && wanted < through) shared_.crossing_bin = bin;
    }
    __syncthreads();
    const int bin = shared_.crossing_bin;
    SearchOrder order = {};
    if (kFirst && counts[bin] <= kListed) {
      order.step = SearchOrder::Step::kList;
      order.from_top = true;
      order.filter = {LowKey(lowest_), ~uint64_t{0}, 0, bin};
      return order;
    }
    const uint32_t before_count = bin == 0 ? 0 : counts[bin - 1];
    base_weight += bin == 0 ? 0 : weights[bin - 1];
    base_count += before_count;
    if constexpr (kFirst) {
      order.filter = FilterOf(bin);
    } else {
      order.filter = last.filter;
      order.filter.high = last.filter.high - (static_cast<uint64_t>(bin) << last.shift);
      const uint64_t width = uint64_t{1} << last.shift;
      if (order.filter.high - last.filter.low >= width) {
        order.filter.low = order.filter.high - width + 1;
      }
    }
    if (counts[bin] - before_count <= kListed) {
      order.step = SearchOrder::Step::kList;
    } else {
      order.step = SearchOrder::Step::kRefine;
      constexpr int kRefinedBits = 9;
      const int bits = 64 - __clzll(static_cast<long long>(order.filter.high - order.filter.low));
      order.shift = max(0, bits - kRefinedBits);
    }
    return order;
  }

  __device__ uint64_t LowKey(float logit) const {
    return (static_cast<uint64_t>(OrderedKey(logit)) << 32) | ~last_id_;
  }
  // Keys that the tokens of the bin, and of others at its edges, have.
  __device__ TokenFilter FilterOf(int bin) const {
    constexpr double kRounding = 1e-6;
    TokenFilter filter = {LowKey(lowest_), ~uint64_t{0}, bin, bin};
    const double high = scale_ == 0 ? max_ : max_ - bin * (1 - kRounding) / scale_;
    const double low = scale_ == 0 ? max_ : max_ - (bin + 1) * (1 + kRounding) / scale_;
    filter.high =
        (static_cast<uint64_t>(OrderedKey(fminf(__double2float_ru(high), max_))) << 32) |
        0xffffffffu;
    if (bin < kBins - 1) filter.low = LowKey(fmaxf(__double2float_rd(low), lowest_));
    return filter;
  }

  __device__ __forceinline__ bool Passes(const TokenFilter& filter, uint64_t key,
                                         float logit) const {
    if (key < filter.low || key > filter.high) return false;
    const int bin = BinOf(logit);
    return bin >= filter.first_bin && bin <= filter.last_bin;
  }

  __device__ void Refine(const SearchOrder& order, const Weights& weights) {
    num_listed_ = 0;
    ClearWords(kRefinedBins);
    slice_.ForEach([&](float logit, int id) {
      const uint64_t weight = weights.Of(logit);
      const uint64_t key = TokenKey(logit, id);
      if (Passes(order.filter, key, logit)) {
        Add<true>(static_cast<int>((order.filter.high - key) >> order.shift), weight);
      }
    });
    Group::Sync();
    Merge(kRefinedBins, shared_.refined_words, shared_.refined_weight, shared_.refined_count);
    Group::Sync();
    if (leader_) RunningSums<kRefinedBins>(shared_.refined_weight, shared_.refined_count);
  }

  // Lists the tokens that pass, in the leader, sorted and with running sums of their weights.
  __device__ void List(const SearchOrder& order, const Weights& weights, uint64_t base_weight,
                       uint32_t base_count) {
    if (threadIdx.x == 0) shared_.num_listed = 0;
    __syncthreads();
    slice_.ForEach([&](float logit, int id) {
      const uint64_t key = TokenKey(logit, id);
      if (Passes(order.filter, key, logit)) {
        const int i = atomicAdd(&shared_.num_listed, 1);
        if (i < kListed) shared_.listed[i] = key;
      }
    });
    Group::Sync();
    int padded = 0;
    if (leader_) {
      padded = Collect();
      from_top_ = order.from_top;
      base_weight_ = base_weight;
      base_count_ = base_count;
    }
    Group::Sync();  // the others may go on
    if (!leader_) return;
    Sort(padded);
    SumListed(weights);
  }
  // Fetches what all blocks listed, with zeros up to a power of two, which it gives.
  __device__ int Collect() {
    int end[kRanks];
    int total = 0;
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) {
      end[rank] = total += *Group::Of(rank, &shared_.num_listed);
    }
    num_listed_ = min(total, kListed);
    int padded = 64;
    while (padded < num_listed_) padded *= 2;
    for (int i = threadIdx.x; i < padded; i += kSampleThreads) {
      uint64_t key = 0;
      if (i < num_listed_) {
        int rank = 0;
        int begin = 0;
#pragma unroll
        for (int other = 0; other < kRanks - 1; ++other) {
          if (i >= end[other]) {
            rank = other + 1;
            begin = end[other];
          }
        }
        key = Group::Of(rank, shared_.listed)[i - begin];
      }
      shared_.sorted[i] = key;
    }
    return padded;
  }
  // Bitonic, largest first: size a power of two in [64, kListed]. Up to a distance of 32 a warp
  // compares within 64 places of its own.
  __device__ void Sort(int size) {
    static_assert(kListed <= 2 * kSampleThreads);
    const int thread = threadIdx.x;
    __syncthreads();
    for (int run = 2; run <= size; run *= 2) {
      for (int distance = run / 2; distance > 0; distance /= 2) {
        if (thread < size / 2) {
          const int a = 2 * thread - (thread & (distance - 1));
          const int b = a + distance;
          const uint64_t first = shared_.sorted[a];
          const uint64_t second = shared_.sorted[b];
          if ((first < second) == ((a & run) == 0)) {
            shared_.sorted[a] = second;
            shared_.sorted[b] = first;
          }
        }
        if (distance > 32 || (distance == 1 && run >= 64)) {
          __syncthreads();
        } else {
          __syncwarp();
        }
      }
    }
  }
  __device__ void SumListed(const Weights& weights) {
    constexpr int kEach = kListed / kSampleThreads;
    const int first = static_cast<int>(threadIdx.x) * kEach;
    uint64_t running[kEach];
    uint64_t weight = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const bool is_listed = first + i < num_listed_;
      const uint64_t own = weights.Of(is_listed ? TokenLogit(shared_.sorted[first + i]) : -INFINITY);
      running[i] = weight += own;
    }
    uint64_t before = weight;
    uint32_t none = 0;
    BlockInclusiveSums(before, none, shared_);
    before -= weight;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (first + i < num_listed_) shared_.listed[first + i] = before + running[i];
    }
    __syncthreads();
  }

  const Slice<kStaged>& slice_;
  SearchShared& shared_;
  uint32_t last_id_;
  int part_bits_;
  bool leader_;
  float max_ = 0;
  float scale_ = 0;  // bins per unit of logit
  float lowest_ = 0;
  // The leader's, of its list.
  int num_listed_ = 0;
  bool from_top_ = false;
  uint64_t base_weight_ = 0;
  uint32_t base_count_ = 0;
};

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_SEARCH_CUH_
