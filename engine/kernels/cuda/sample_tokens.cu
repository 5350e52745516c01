// A cluster of blocks chooses the token of a row. Each block reads its slice of the row once and
// keeps it in shared memory where it fits; every further pass is over what was kept.
#include "engine/kernels/cuda/sample_tokens.h"

#include <algorithm>

#include "engine/kernels/cuda/overlap.cuh"
#include "engine/kernels/cuda/sample_bins.cuh"
#include "engine/kernels/cuda/sample_cluster.cuh"
#include "engine/kernels/cuda/sample_search.cuh"
#include "engine/kernels/cuda/sample_weights.cuh"

namespace hyserve::kernels::cuda {
namespace {

struct KernelArguments {
  SampleTokensLaunch launch;
  int vectors_per_rank;  // of four logits
  int weight_bits;       // of Weights
  int part_bits;         // of Bins
};

template <typename Group>
struct alignas(16) RowShared {
  SampleRow row;
  uint64_t limit;  // the key of the last token that top_k leaves
  // One value a warp of the cluster.
  uint64_t best[Group::kWarps];
  float least[Group::kWarps];
  uint64_t unit_weights[Group::kWarps];
  uint64_t weights[Group::kWarps];
  uint64_t bounded_weights[Group::kWarps];
  SearchShared<Group> search;
};

// By all blocks of the cluster together.
template <typename Group>
__device__ void ApplyEdits(const LogitEdit* edits, int num_edits, float* logits) {
  for (int i = Group::Rank() * Group::kThreads + static_cast<int>(threadIdx.x); i < num_edits;
       i += Group::kRanks * Group::kThreads) {
    const LogitEdit edit = edits[i];
    float logit = __fadd_rn(Sanitized(__ldcg(logits + edit.token_id)), edit.bias);
    logit = logit > 0 ? __fdiv_rn(logit, edit.repetition) : __fmul_rn(logit, edit.repetition);
    logits[edit.token_id] = __fsub_rn(fminf(logit, FLT_MAX), edit.penalty);
  }
}

template <typename Group, bool kStaged>
class RowSampler {
 public:
  __device__ RowSampler(const KernelArguments& arguments, const Slice<Group, kStaged>& slice,
                        RowShared<Group>& shared)
      : arguments_(arguments),
        slice_(slice),
        shared_(shared),
        row_(shared.row),
        roots_(arguments.weight_bits),
        index_(blockIdx.x / Group::kRanks) {}

  __device__ void Sample() {
    ReadSlice();
    if (best_ == 0) {
      WriteTop(0);
      if (IsFirstThread()) WriteToken(-1, 0);
      return;
    }
    max_ = TokenLogit(best_);
    if (row_.num_logprobs >= 0) SumUnitWeights();
    const bool draws = row_.given_token < 0 && row_.temperature > 0;
    if (!draws && row_.num_logprobs <= 0) {
      WriteTop(0);
      if (IsFirstThread()) WriteGreedyOrGiven();
      return;
    }
    const bool limits = draws && row_.top_k > 0 && row_.top_k < NumCols();
    const Weights weights(max_, draws ? row_.temperature : 1.0f, roots_);
    if (draws && !limits && row_.top_p >= 1 && row_.min_p <= 0 && row_.num_logprobs <= 0) {
      WriteTop(0);
      DrawInOrderOfIds(weights);
      return;
    }
    Bins<Group, kStaged> bins(slice_, NumCols(), arguments_.part_bits, shared_.search);
    RowSearch search(bins, weights, shared_.search);
    const bool lists = limits && row_.top_k <= RowSearch::kListed;
    const int num_listed = max(lists ? row_.top_k : 0, min(row_.num_logprobs, kMaxTopLogprobs));
    if (num_listed > 0) {
      ListBest(bins, search, num_listed);
    } else {
      WriteTop(0);
    }
    if (!draws) {
      if (IsFirstThread()) WriteGreedyOrGiven();
    } else if (lists) {
      if (search.leader()) DrawListed(search, weights);
    } else if (limits || row_.top_p < 1 || row_.min_p > 0) {
      DrawBestFirst(bins, search, weights, limits);
    } else {
      search.Settle();
      DrawInOrderOfIds(weights);
    }
    search.Settle();
  }

 private:
  using RowSearch = Search<Group, kStaged>;

  static __device__ bool IsFirstThread() { return Group::Rank() == 0 && threadIdx.x == 0; }
  __device__ int NumCols() const { return static_cast<int>(arguments_.launch.num_cols); }

  // Waits for the slice, and gives every thread the row's best token and its least finite logit.
  __device__ void ReadSlice() {
    float best = -INFINITY;
    float least = INFINITY;
    int best_id = 0;
    slice_.ForEachLoaded([&](float logit, int id) {
      if (logit > best) {
        best = logit;
        best_id = id;
      }
      least = fminf(least, logit > -INFINITY ? logit : INFINITY);
    });
    thread_best_ = best;
    const auto smaller = [](float a, float b) { return fminf(a, b); };
    best_ = WarpLargest(TokenKey(best, best_id));
    least = WarpReduce(least, smaller);
    Group::Wait();  // all blocks have begun: their memory may be written
    Group::TellAll(shared_.best, best_);
    Group::TellAll(shared_.least, least);
    Group::Sync();
    const int lane = threadIdx.x % 32;
    best_ = 0;
    least_ = INFINITY;
#pragma unroll
    for (int i = 0; i < Group::kWarps; i += 32) {
      if (i + lane >= Group::kWarps) break;
      best_ = Larger(best_, shared_.best[i + lane]);
      least_ = fminf(least_, shared_.least[i + lane]);
    }
    best_ = WarpLargest(best_);
    least_ = WarpReduce(least_, smaller);
  }

  // The vectors of this warp: warps have neighbouring runs of them, in the order of ids.
  __device__ __forceinline__ int WarpBegin(int warp) const {
    const int each = (slice_.size() + Group::kBlockWarps - 1) / Group::kBlockWarps;
    return min(slice_.size(), warp * each);
  }
  __device__ uint64_t WarpWeight(const Weights& weights) const {
    const int end = WarpBegin(threadIdx.x / 32 + 1);
    uint64_t sum = 0;
    for (int at = WarpBegin(threadIdx.x / 32); at < end; at += 32) {
      const float4 x = slice_.GetBefore(at + static_cast<int>(threadIdx.x) % 32, end);
      sum += weights.Of(x.x) + weights.Of(x.y) + weights.Of(x.z) + weights.Of(x.w);
    }
    return WarpSum(sum);
  }
  __device__ void SumUnitWeights() {
    const Weights unit(max_, 1.0f, roots_);
    Group::TellAll(shared_.unit_weights, WarpWeight(unit));
    Group::Sync();
    const auto sum = static_cast<double>(Group::Sum(shared_.unit_weights));
    log_sum_exp_ = max_ + log(ldexp(sum, -arguments_.weight_bits));
  }

  __device__ void DrawInOrderOfIds(const Weights& weights) {
    Group::TellAll(shared_.weights, WarpWeight(weights));
    Group::Sync();
    const int lane = threadIdx.x % 32;
    const int self = Group::Rank() * Group::kBlockWarps + static_cast<int>(threadIdx.x) / 32;
    uint64_t before = 0;
    for (int i = lane; i < self; i += 32) before += shared_.weights[i];
    before = WarpSum(before);
    uint64_t target = Share(row_.uniform, Group::Sum(shared_.weights));
    if (target < before || target - before >= shared_.weights[self]) return;
    target -= before;
    // This warp has it.
    const int end = WarpBegin(threadIdx.x / 32 + 1);
    for (int at = WarpBegin(threadIdx.x / 32); at < end; at += 32) {
      const float4 x = slice_.GetBefore(at + lane, end);
      const uint64_t of[4] = {weights.Of(x.x), weights.Of(x.y), weights.Of(x.z), weights.Of(x.w)};
      const uint64_t own = of[0] + of[1] + of[2] + of[3];
      const uint64_t through = WarpInclusiveSum(own);
      const uint64_t all = __shfl_sync(kAllLanes, through, 31);
      if (target >= all) {
        target -= all;
        continue;
      }
      const uint64_t front = through - own;
      if (front <= target && target < through) {
        const float logits[4] = {x.x, x.y, x.z, x.w};
        uint64_t sum = front;
        bool found = false;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum += of[i];
          if (!found && target < sum) {
            found = true;
            WriteToken(slice_.FirstId(at + lane) + i, logits[i]);
          }
        }
      }
      return;
    }
  }

  // Leaves the best `count` tokens listed, all where there are fewer, and writes the first.
  __device__ void ListBest(Bins<Group, kStaged>& bins, RowSearch& search, int count) {
    bins.SetRange(max_, fmin(max_ - static_cast<double>(least_),
                             32.0 * fmaxf(1.0f, row_.temperature)));
    bins.CountOnes(thread_best_);
    search.SetCounted(RowSearch::Counted::kOnes);
    search.template Find<false>(count - 1, true);
    if (!search.leader()) return;
    const int num_top = max(0, min(row_.num_logprobs, search.num_listed()));
    WriteTop(num_top, &search);
  }

  // Of the listed tokens. In the leader.
  __device__ void DrawListed(RowSearch& search, const Weights& weights) {
    uint64_t total = search.template LookUp<false>(row_.top_k - 1).weight;
    if (row_.top_p < 1) total = search.template LookUp<true>(TopPTarget(total)).weight;
    if (row_.min_p > 0) {
      const int i = threadIdx.x;
      const uint64_t weight =
          weights.Of(i < search.num_listed() ? TokenLogit(search.Listed(i)) : -INFINITY);
      uint64_t bounded = weight >= MinPBound() ? weight : 0;
      uint32_t none = 0;
      BlockInclusiveSums(bounded, none, shared_.search);
      if (threadIdx.x == Group::kThreads - 1) shared_.bounded_weights[0] = bounded;
      __syncthreads();
      total = min(total, shared_.bounded_weights[0]);
    }
    WriteCut(search.template LookUp<true>(Share(row_.uniform, total)));
  }

  __device__ void DrawBestFirst(Bins<Group, kStaged>& bins, RowSearch& search,
                                const Weights& weights, bool limits) {
    float lowest = fmaxf(least_, weights.cutoff());
    int lowest_id = NumCols() - 1;
    search.Settle();
    if (limits) {
      bins.SetRange(max_, max_ - static_cast<double>(lowest));
      bins.SetLowest(lowest, lowest_id);
      bins.CountAll();
      search.SetCounted(RowSearch::Counted::kAll);
      const TokenCut limit = search.template Find<false>(row_.top_k - 1, false);
      if (search.leader() && threadIdx.x < Group::kRanks) {
        *Group::Of(static_cast<int>(threadIdx.x), &shared_.limit) = limit.key;
      }
      search.Sync();
      lowest = TokenLogit(shared_.limit);
      lowest_id = TokenId(shared_.limit);
    }
    bins.SetRange(max_, max_ - static_cast<double>(lowest));
    bins.SetLowest(lowest, lowest_id);
    const uint64_t bounded = bins.Weigh(weights, row_.min_p > 0 ? MinPBound() : ~uint64_t{0});
    if (row_.min_p > 0) Group::TellAll(shared_.bounded_weights, WarpSum(bounded));
    search.SetCounted(RowSearch::Counted::kWeights);
    uint64_t total = search.leader() ? search.TotalWeight() : 0;
    if (row_.top_p < 1) total = search.template Find<true>(TopPTarget(total), false).weight;
    if (row_.min_p > 0) total = min(total, Group::Sum(shared_.bounded_weights));
    const TokenCut cut = search.template Find<true>(Share(row_.uniform, total), false);
    if (search.leader()) WriteCut(cut);
  }

  // The best token's weight is never below it.
  __device__ uint64_t MinPBound() const {
    const double bound = ldexp(static_cast<double>(row_.min_p), arguments_.weight_bits);
    return min(uint64_t{1} << arguments_.weight_bits, uint64_t{__double2ull_ru(bound)});
  }
  // The first running sum that is more than it is the first to reach top_p of the total.
  __device__ uint64_t TopPTarget(uint64_t total) const {
    const uint64_t wanted = __double2ull_ru(row_.top_p * static_cast<double>(total));
    return total == 0 ? 0 : min(max(wanted, uint64_t{1}), total) - 1;
  }
  static __device__ uint64_t Share(double uniform, uint64_t total) {
    const uint64_t share = __double2ull_rd(uniform * static_cast<double>(total));
    return total == 0 ? 0 : min(share, total - 1);
  }

  __device__ void WriteGreedyOrGiven() const {
    if (row_.given_token < 0) {
      WriteToken(TokenId(best_), max_);
      return;
    }
    const SampleTokensLaunch& launch = arguments_.launch;
    const float* logit = launch.logits + index_ * launch.row_stride + row_.given_token;
    WriteToken(row_.given_token, Sanitized(__ldcg(logit)));
  }
  // By one thread of the leader.
  __device__ void WriteCut(const TokenCut& cut) const {
    if (threadIdx.x == 0) WriteToken(TokenId(cut.key), TokenLogit(cut.key));
  }
  __device__ SampledRow& Out() const { return arguments_.launch.out[index_]; }
  __device__ void WriteToken(int id, float logit) const {
    SampledRow& out = Out();
    out.token_id = id;
    out.logprob =
        row_.num_logprobs >= 0 && id >= 0 ? static_cast<float>(logit - log_sum_exp_) : 0.0f;
  }
  // The first tokens of the list. By the leader.
  __device__ void WriteTop(int count, const RowSearch* search = nullptr) const {
    const int i = threadIdx.x;
    if (Group::Rank() != 0 || i >= kMaxTopLogprobs) return;
    SampledRow& out = Out();
    if (i == 0) out.num_top = count;
    const uint64_t key = i < count ? search->Listed(i) : 0;
    out.top_ids[i] = i < count ? TokenId(key) : 0;
    out.top_logprobs[i] = i < count ? static_cast<float>(TokenLogit(key) - log_sum_exp_) : 0.0f;
  }

  const KernelArguments& arguments_;
  const Slice<Group, kStaged>& slice_;
  RowShared<Group>& shared_;
  const SampleRow& row_;
  WeightRoots roots_;
  int64_t index_;
  uint64_t best_ = 0;
  float thread_best_ = 0;  // of what this thread loaded
  float least_ = 0;
  float max_ = 0;
  double log_sum_exp_ = 0;
};

template <typename Group, bool kStaged>
__global__ void __cluster_dims__(Group::kRanks, 1, 1)
    __launch_bounds__(Group::kThreads, 1024 / Group::kThreads)
        SampleTokensKernel(const KernelArguments arguments) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<RowShared<Group>*>(memory);
  auto* staged = reinterpret_cast<float4*>(memory + sizeof(RowShared<Group>));
  static_assert(sizeof(RowShared<Group>) % sizeof(float4) == 0);
  Group::Arrive();
  const SampleTokensLaunch& launch = arguments.launch;
  const int64_t index = blockIdx.x / Group::kRanks;
  float* logits = launch.logits + index * launch.row_stride;
  const Slice<Group, kStaged> slice(logits, static_cast<int>(launch.num_cols),
                                    arguments.vectors_per_rank, staged);
  LetNextKernelStart();
  WaitForPriorKernels();
  slice.BeginLoad();
  const SampleRow& row = launch.rows[index];
  if (threadIdx.x == 0) shared.row = row;
  RowSampler<Group, kStaged> sampler(arguments, slice, shared);
  if (row.num_edits > 0) {
    ApplyEdits<Group>(launch.edits + row.first_edit, row.num_edits, logits);
    WaitForCopies();
    Group::Wait();
    Group::Sync();  // the edits are made
    slice.BeginLoad();
    Group::Arrive();  // what ReadSlice waits for
  }
  sampler.Sample();
}

constexpr size_t kMostSharedBytes = 227 * 1024;

template <typename Group, bool kStaged>
cudaError_t LaunchKernel(const KernelArguments& arguments, size_t shared_bytes,
                         cudaStream_t stream) {
  const auto kernel = SampleTokensKernel<Group, kStaged>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  return LaunchOverlapped(kernel,
                          dim3(static_cast<unsigned>(Group::kRanks * arguments.launch.num_rows)),
                          Group::kThreads, shared_bytes, stream, arguments);
}

// The sum of so many parts of weights stays within 32 bits.
int PartBits(int64_t num_parts) {
  int bits = 17;
  while (num_parts >> (32 - bits) > 0) --bits;
  return bits;
}

template <typename Group>
cudaError_t LaunchGroup(const SampleTokensLaunch& launch, cudaStream_t stream) {
  // Of a row that begins at the last place of a vector.
  const int64_t vectors = (launch.num_cols + 3 + 3) / 4;
  const int64_t vectors_per_rank = (vectors + Group::kRanks - 1) / Group::kRanks;
  const KernelArguments arguments = {launch, static_cast<int>(vectors_per_rank),
                                     WeightBits(launch.num_cols), PartBits(4 * vectors_per_rank)};
  const size_t staged = sizeof(RowShared<Group>) + vectors_per_rank * sizeof(float4);
  if (staged <= kMostSharedBytes) return LaunchKernel<Group, true>(arguments, staged, stream);
  if constexpr (Group::kRanks == 1) {
    return cudaErrorInvalidValue;  // not with so few columns
  } else {
    return LaunchKernel<Group, false>(arguments, sizeof(RowShared<Group>), stream);
  }
}

}  // namespace

cudaError_t LaunchSampleTokens(const SampleTokensLaunch& launch, cudaStream_t stream) {
  if (launch.num_rows == 0) return cudaSuccess;
  constexpr int64_t kFewCols = 8192;  // that one block takes
  // Of which all blocks find a multiprocessor of their own; else two share one.
  constexpr int64_t kFewRows = 16;
  if (launch.num_cols <= kFewCols) return LaunchGroup<Cluster<1, 512>>(launch, stream);
  return launch.num_rows <= kFewRows ? LaunchGroup<Cluster<8, 1024>>(launch, stream)
                                     : LaunchGroup<Cluster<8, 512>>(launch, stream);
}

}  // namespace hyserve::kernels::cuda
