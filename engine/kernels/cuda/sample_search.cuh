// Where the running count, or sum of weights, of a row's tokens, best first, passes a number.
//
// The bin is found in which it passes. If that has few tokens, they are listed in the leader and
// sorted; else its range of keys is cut into bins again. All sums are of integers. All blocks of the
// cluster take part: the leader decides, tells the others by orders, and has the result.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_SEARCH_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_SEARCH_CUH_

#include <cstdint>

#include "engine/kernels/cuda/sample_bins.cuh"
#include "engine/kernels/cuda/sample_cluster.cuh"
#include "engine/kernels/cuda/sample_weights.cuh"

namespace hyserve::kernels::cuda {

template <typename Group, bool kStaged>
class Search {
 public:
  static constexpr int kListed = SearchShared<Group>::kListed;

  __device__ Search(Bins<Group, kStaged>& bins, const Weights& weights,
                    SearchShared<Group>& shared)
      : bins_(bins), weights_(weights), shared_(shared), leader_(Group::Rank() == 0) {}

  __device__ __forceinline__ bool leader() const { return leader_; }

  // What Find looks into: the bins as they were counted, with a barrier after.
  enum class Counted { kOnes, kAll, kWeights };
  __device__ void SetCounted(Counted counted) {
    Sync();
    counted_ = counted;
    num_listed_ = 0;
    if (!leader_) return;
    if (counted == Counted::kWeights) {
      bins_.SumWeights(weights_);
    } else {
      bins_.SumCounts();
    }
  }
  // In the leader.
  __device__ uint64_t TotalWeight() const { return shared_.weight[kBins - 1]; }

  // The first token with which the sum is more than target. By weight the target is less than the
  // sum of all; by count it may be more: then the last token. With from_top all tokens up to it are
  // listed after. The leader gives the target and gets the token.
  //
  // Counted::kOnes is for counts from the top: among one token of every thread, `target` are as good
  // as the bin where their count passes it, so that the token is in that bin or a better one.
  template <bool kByWeight>
  __device__ TokenCut Find(uint64_t target, bool from_top) {
    at_ = {};
    for (;;) {
      SearchOrder order;
      if (leader_) {
        order = Next<kByWeight>(target, from_top);
        Settle();
        if (threadIdx.x < Group::kRanks) {
          *Group::Of(static_cast<int>(threadIdx.x), &shared_.orders[turn_]) = order;
        }
        if (threadIdx.x == 0) shared_.num_listed = 0;
        Group::Arrive();
        if (order.step == SearchOrder::Step::kNothing) {
          pending_ = true;
          turn_ ^= 1;
          return LookUp<kByWeight>(target);
        }
        Group::Wait();
      } else {
        Group::Sync();
        order = shared_.orders[turn_];
      }
      turn_ ^= 1;
      switch (order.step) {
        case SearchOrder::Step::kNothing:
          return {};
        case SearchOrder::Step::kList:
          List(order);
          break;
        case SearchOrder::Step::kRefine:
          bins_.Refine(order.filter, order.shift, weights_);
          Group::Sync();
          if (leader_) bins_.SumRefined();
          break;
        case SearchOrder::Step::kCountAll:
          bins_.CountAll();
          Group::Sync();
          if (leader_) bins_.SumCounts();
          break;
      }
    }
  }

  // In the leader: of what is listed.
  template <bool kByWeight>
  __device__ TokenCut LookUp(uint64_t target) {
    const int thread = threadIdx.x;
    if constexpr (kByWeight) {
      const uint64_t wanted = target - list_weight_;
      __syncthreads();
      if (thread < num_listed_) {
        const uint64_t before = thread == 0 ? 0 : shared_.running[thread - 1];
        const uint64_t through = shared_.running[thread];
        if (before <= wanted && wanted < through) {
          shared_.cut = {shared_.listed[thread], list_weight_ + through,
                         list_count_ + static_cast<uint64_t>(thread) + 1};
        }
      }
      __syncthreads();
      return shared_.cut;
    } else {
      const int i = min(static_cast<int>(target - list_count_), num_listed_ - 1);
      return {shared_.listed[i], list_weight_ + shared_.running[i],
              list_count_ + static_cast<uint64_t>(i) + 1};
    }
  }
  __device__ int num_listed() const { return num_listed_; }
  __device__ uint64_t Listed(int i) const { return shared_.listed[i]; }

  // A barrier of the cluster.
  __device__ void Sync() {
    Settle();
    Group::Sync();
  }
  // Once after the last use: the leader may still owe half a barrier.
  __device__ void Settle() {
    if (pending_) Group::Wait();
    pending_ = false;
  }

 private:
  // Where the search is, in the leader: at the bin, or what was cut from it, in which the sum
  // passes the target.
  struct Place {
    bool refined = false;     // the refined bins are those of the filter
    bool overflowed = false;  // too many to list
    TokenFilter filter = {};
    uint64_t weight = 0;  // sums in front
    uint64_t count = 0;
    int shift = 0;
  };

  // What to do next; kNothing when the token is listed. In the leader.
  template <bool kByWeight>
  __device__ SearchOrder Next(uint64_t& target, bool from_top) {
    using Step = SearchOrder::Step;
    if (Covers<kByWeight>(target)) {
      if (!from_top || list_from_top_) return {};
      const TokenFilter filter = {LookUp<kByWeight>(target).key, ~uint64_t{0}, 0, kBins - 1};
      at_.weight = at_.count = 0;
      return {Step::kList, true, filter, 0};
    }
    if (at_.overflowed && counted_ != Counted::kOnes) return RefineOrder();
    if (!kByWeight && !at_.refined) {
      const uint32_t total = shared_.count[kBins - 1];
      if (counted_ == Counted::kOnes && (at_.overflowed || total <= target)) {
        counted_ = Counted::kAll;
        at_ = {};
        return {Step::kCountAll, false, {}, 0};
      }
      if (target >= total) target = total - 1;
    }
    return at_.refined
               ? Narrow<kByWeight, kRefinedBins>(target, shared_.refined_weight,
                                                 shared_.refined_count)
               : Narrow<kByWeight, kBins>(target, shared_.weight, shared_.count);
  }

  template <bool kByWeight>
  __device__ bool Covers(uint64_t target) const {
    if (num_listed_ == 0) return false;
    if constexpr (kByWeight) {
      return target >= list_weight_ && target - list_weight_ < shared_.running[num_listed_ - 1];
    } else {
      if (counted_ == Counted::kOnes) return true;
      return target >= list_count_ && target - list_count_ < num_listed_;
    }
  }

  template <bool kByWeight, int kNumBins>
  __device__ SearchOrder Narrow(uint64_t target, const uint64_t* weights, const uint32_t* counts) {
    constexpr bool kFirst = kNumBins == kBins;
    const uint64_t wanted = target - (kByWeight ? at_.weight : at_.count);
    for (int bin = threadIdx.x; bin < kNumBins; bin += Group::kThreads) {
      const int last = max(0, bin - 1);
      uint64_t before = kByWeight ? weights[last] : uint64_t{counts[last]};
      if (bin == 0) before = 0;
      const uint64_t through = kByWeight ? weights[bin] : uint64_t{counts[bin]};
      if (before <= wanted && wanted < through) shared_.crossing_bin = bin;
    }
    __syncthreads();
    const int bin = shared_.crossing_bin;
    const uint32_t through_count = counts[bin];
    const uint32_t before_count = bin == 0 ? 0 : counts[bin - 1];
    at_.weight += bin == 0 ? 0 : weights[bin - 1];
    at_.count += before_count;
    if constexpr (kFirst) {
      at_.filter = bins_.FilterOf(bin);
      if (through_count <= kListed || counted_ == Counted::kOnes) {
        return {SearchOrder::Step::kList, true, {bins_.LowestKey(), ~uint64_t{0}, 0, bin}, 0};
      }
    } else {
      const uint64_t lowest = at_.filter.low;
      at_.filter.high -= static_cast<uint64_t>(bin) << at_.shift;
      const uint64_t width = uint64_t{1} << at_.shift;
      if (at_.filter.high - lowest >= width) at_.filter.low = at_.filter.high - width + 1;
    }
    if (through_count - before_count <= kListed) {
      return {SearchOrder::Step::kList, false, at_.filter, 0};
    }
    return RefineOrder();
  }
  __device__ SearchOrder RefineOrder() {
    constexpr int kRefinedBits = 8;
    static_assert(kRefinedBins == 1 << kRefinedBits);
    const int bits = 64 - __clzll(static_cast<long long>(at_.filter.high - at_.filter.low));
    at_.shift = max(0, bits - kRefinedBits);
    at_.refined = true;
    at_.overflowed = false;
    num_listed_ = 0;
    return {SearchOrder::Step::kRefine, false, at_.filter, at_.shift};
  }

  // Lists the tokens that pass, in the leader, sorted and with running sums of their weights.
  __device__ void List(const SearchOrder& order) {
    Collect(order.filter);
    Group::Sync();
    if (!leader_) return;
    num_listed_ = shared_.num_listed;
    __syncthreads();
    if (num_listed_ > kListed) {
      num_listed_ = 0;
      at_.overflowed = true;
      return;
    }
    list_from_top_ = order.from_top;
    list_weight_ = order.from_top ? 0 : at_.weight;
    list_count_ = order.from_top ? 0 : at_.count;
    SortListed();
  }
  // Stores the keys of this block's tokens in the leader.
  __device__ void Collect(const TokenFilter& filter) {
    constexpr int kVectors = 8;  // of a thread at a time: a bit for each logit
    const Slice<Group, kStaged>& slice = bins_.slice();
    const float lowest = TokenLogit(filter.low);
    const int lane = threadIdx.x % 32;
    for (int begin = 0; begin < slice.size(); begin += kVectors * Group::kThreads) {
      uint32_t passing = 0;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const int vector = begin + i * Group::kThreads + static_cast<int>(threadIdx.x);
        const float4 x = slice.GetBefore(vector, slice.size());
        const float logits[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (logits[j] >= lowest &&
              bins_.Passes(filter, TokenKey(logits[j], slice.FirstId(vector) + j), logits[j])) {
            passing |= 1u << (4 * i + j);
          }
        }
      }
      const uint32_t own = static_cast<uint32_t>(__popc(passing));
      const uint32_t through = WarpInclusiveSum(own);
      const uint32_t all = __shfl_sync(kAllLanes, through, 31);
      if (all == 0) continue;
      int place = 0;
      if (lane == 0) place = atomicAdd(Group::Of(0, &shared_.num_listed), static_cast<int>(all));
      place = __shfl_sync(kAllLanes, place, 0) + static_cast<int>(through - own);
      uint64_t* listed = Group::Of(0, shared_.listed);
      while (passing != 0) {
        const int bit = __ffs(static_cast<int>(passing)) - 1;
        passing &= passing - 1;
        const int vector = begin + bit / 4 * Group::kThreads + static_cast<int>(threadIdx.x);
        const float4 x = slice.Get(vector);
        const float logit = bit % 4 == 0 ? x.x : bit % 4 == 1 ? x.y : bit % 4 == 2 ? x.z : x.w;
        if (place < kListed) listed[place] = TokenKey(logit, slice.FirstId(vector) + bit % 4);
        ++place;
      }
    }
  }
  // Bitonic, the best first: a thread has the key of its place. Then the running sums.
  __device__ void SortListed() {
    const int thread = threadIdx.x;
    int size = 32;
    while (size < num_listed_) size *= 2;
    uint64_t key = thread < num_listed_ ? shared_.listed[thread] : 0;
    uint64_t* place = shared_.running;  // other than what is read, by turns
    __syncthreads();
    for (int run = 2; run <= size; run *= 2) {
      for (int distance = run / 2; distance > 0; distance /= 2) {
        uint64_t other;
        if (distance < 32) {
          other = __shfl_xor_sync(kAllLanes, key, distance);
        } else {
          place[thread] = key;
          __syncthreads();
          other = place[thread ^ distance];
          place = place == shared_.running ? shared_.listed : shared_.running;
        }
        const bool larger = ((thread & run) == 0) == ((thread & distance) == 0);
        key = larger == (key < other) ? other : key;
      }
    }
    uint64_t weight =
        weights_.Of(thread < num_listed_ ? TokenLogit(key) : -INFINITY);
    uint32_t none = 0;
    BlockInclusiveSums(weight, none, shared_);
    shared_.listed[thread] = key;
    shared_.running[thread] = weight;
    __syncthreads();
  }

  Bins<Group, kStaged>& bins_;
  const Weights& weights_;
  SearchShared<Group>& shared_;
  bool leader_;
  bool pending_ = false;
  int turn_ = 0;
  // The leader's.
  Counted counted_ = Counted::kAll;
  Place at_;
  int num_listed_ = 0;
  bool list_from_top_ = false;
  uint64_t list_weight_ = 0;  // sums in front of the list
  uint64_t list_count_ = 0;
};

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_SEARCH_CUH_
