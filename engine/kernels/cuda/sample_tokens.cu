// A cluster of blocks chooses the token of a row. Each block reads its slice of the row once and
// keeps it in shared memory where it fits; every further pass is over what was kept.
#include "engine/kernels/cuda/sample_tokens.h"

#include <algorithm>

#include "engine/kernels/cuda/overlap.cuh"
#include "engine/kernels/cuda/sample_cluster.cuh"
#include "engine/kernels/cuda/sample_search.cuh"
#include "engine/kernels/cuda/sample_weights.cuh"

namespace hyserve::kernels::cuda {
namespace {

struct KernelArguments {
  SampleTokensLaunch launch;
  int vectors_per_rank;  // of four logits
  int weight_bits;       // of Weights
  int part_bits;         // of Search
};

template <int kRanks>
struct alignas(16) RowShared {
  SampleRow row;
  // One value a warp of the cluster.
  uint64_t best[Cluster<kRanks>::kWarps];
  float least[Cluster<kRanks>::kWarps];
  uint64_t unit_weights[Cluster<kRanks>::kWarps];
  uint64_t weights[Cluster<kRanks>::kWarps];
  uint64_t bounded_weights[Cluster<kRanks>::kWarps];
  SearchShared search;
};

template <int kRanks, bool kStaged>
class RowSampler {
 public:
  using Group = Cluster<kRanks>;

  __device__ RowSampler(const KernelArguments& arguments, const Slice<kStaged>& slice,
                        SampledRow& out, RowShared<kRanks>& shared)
      : arguments_(arguments), row_(shared.row), slice_(slice), out_(out), shared_(shared) {}

  __device__ void Sample() {
    const bool draws = row_.given_token < 0 && row_.temperature > 0;
    const bool scores = row_.num_logprobs >= 0;
    ReadSlice(draws || scores);
    if (best_ == 0) {
      WriteTop(0, nullptr);
      if (IsFirstThread()) WriteToken(-1, 0);
      return;
    }
    max_ = TokenLogit(best_);
    if (scores) {
      const Weights unit(max_, 1.0f, arguments_.weight_bits);
      Group::TellAll(shared_.unit_weights, WarpWeight(unit));
      Group::Sync();
      log_sum_exp_ = max_ + log(ldexp(static_cast<double>(ClusterSum(shared_.unit_weights)),
                                      -arguments_.weight_bits));
    }
    const int num_cols = static_cast<int>(arguments_.launch.num_cols);
    const bool limits = draws && row_.top_k > 0 && row_.top_k < num_cols;
    const bool lists = limits && row_.top_k <= kListed;
    Search<kRanks, kStaged> search(slice_, num_cols, arguments_.part_bits, shared_.search);
    const Weights weights(max_, draws ? row_.temperature : 1.0f, arguments_.weight_bits);
    if (lists || row_.num_logprobs > 0) {
      ListBest(search, weights, max(lists ? row_.top_k : 0, min(row_.num_logprobs, kMaxTopLogprobs)));
    } else {
      WriteTop(0, nullptr);
    }
    if (!draws) {
      if (IsFirstThread()) WriteGreedyOrGiven();
    } else if (lists) {
      if (search.leader()) DrawListed(search, weights);
    } else if (limits || row_.top_p < 1 || row_.min_p > 0) {
      DrawBestFirst(search, weights, limits);
    } else {
      DrawInOrderOfIds(weights);
    }
  }

 private:
  static __device__ bool IsFirstThread() { return Group::Rank() == 0 && threadIdx.x == 0; }

  // Reads the slice, and gives every thread the row's best token and its least finite logit.
  __device__ void ReadSlice(bool keep) {
    float best = -INFINITY;
    float least = INFINITY;
    int id = 0;
    const auto take = [&](float logit, int of) {
      if (logit > best) {
        best = logit;
        id = of;
      }
      least = fminf(least, logit > -INFINITY ? logit : INFINITY);
    };
#pragma unroll 4
    for (int vector = threadIdx.x; vector < slice_.size(); vector += kSampleThreads) {
      const float4 x = slice_.Load(vector);
      const int first = slice_.FirstId(vector);
      take(x.x, first);
      take(x.y, first + 1);
      take(x.z, first + 2);
      take(x.w, first + 3);
      if (keep) slice_.Keep(vector, x);
    }
    Group::TellAll(shared_.best, WarpReduce(TokenKey(best, id), Larger));
    Group::TellAll(shared_.least, WarpReduce(least, [](float a, float b) { return fminf(a, b); }));
    Group::Sync();
    best_ = 0;
    least_ = INFINITY;
    for (int i = threadIdx.x % 32; i < Group::kWarps; i += 32) {
      best_ = Larger(best_, shared_.best[i]);
      least_ = fminf(least_, shared_.least[i]);
    }
    best_ = WarpReduce(best_, Larger);
    least_ = WarpReduce(least_, [](float a, float b) { return fminf(a, b); });
  }

  // The vectors of this warp: warps have neighbouring runs of them, in the order of ids.
  __device__ __forceinline__ int WarpBegin(int warp) const {
    const int each = (slice_.size() + kSampleWarps - 1) / kSampleWarps;
    return min(slice_.size(), warp * each);
  }
  __device__ __forceinline__ float4 GetBefore(int vector, int end) const {
    return vector < end ? slice_.Get(vector) : slice_.Nothing();
  }
  __device__ uint64_t WarpWeight(const Weights& weights) const {
    const int end = WarpBegin(threadIdx.x / 32 + 1);
    uint64_t sum = 0;
    for (int at = WarpBegin(threadIdx.x / 32); at < end; at += 32) {
      const float4 x = GetBefore(at + static_cast<int>(threadIdx.x) % 32, end);
      sum += weights.Of(x.x) + weights.Of(x.y) + weights.Of(x.z) + weights.Of(x.w);
    }
    return WarpSum(sum);
  }
  static __device__ uint64_t ClusterSum(const uint64_t* of_warps) {
    uint64_t sum = 0;
    for (int i = threadIdx.x % 32; i < Group::kWarps; i += 32) sum += of_warps[i];
    return WarpSum(sum);
  }

  __device__ void DrawInOrderOfIds(const Weights& weights) {
    Group::TellAll(shared_.weights, WarpWeight(weights));
    Group::Sync();
    const int self = Group::Rank() * kSampleWarps + static_cast<int>(threadIdx.x) / 32;
    uint64_t before = 0;
    for (int i = threadIdx.x % 32; i < self; i += 32) before += shared_.weights[i];
    before = WarpSum(before);
    uint64_t target = Share(row_.uniform, ClusterSum(shared_.weights));
    if (target < before || target - before >= shared_.weights[self]) return;
    target -= before;
    // This warp has it.
    const int lane = threadIdx.x % 32;
    const int end = WarpBegin(threadIdx.x / 32 + 1);
    for (int at = WarpBegin(threadIdx.x / 32); at < end; at += 32) {
      const float4 x = GetBefore(at + lane, end);
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
  __device__ void ListBest(Search<kRanks, kStaged>& search, const Weights& weights, int count) {
    const double spread = 32.0 * fmaxf(1.0f, row_.temperature);
    search.template Count<false>(max_, fmin(max_ - static_cast<double>(least_), spread), -FLT_MAX,
                                 weights, ~uint64_t{0});
    Group::Sync();
    uint64_t target = 0;
    if (search.leader()) {
      search.SumBins();
      target = min(static_cast<uint32_t>(count), search.TotalCount()) - 1;
    }
    search.template Find<false>(target, true, weights);
    if (!search.leader()) return;
    WriteTop(max(0, min(row_.num_logprobs, search.num_listed())), &search);
  }

  // Of the listed tokens. In the leader.
  __device__ void DrawListed(Search<kRanks, kStaged>& search, const Weights& weights) {
    const uint64_t kept = min(row_.top_k, search.num_listed());
    uint64_t total = search.template LookUp<false>(kept - 1).weight;
    if (row_.top_p < 1) {
      total = search.template LookUp<true>(TopPTarget(total)).weight;
    }
    if (row_.min_p > 0) {
      uint64_t bounded = 0;
      for (int i = threadIdx.x; i < kListed; i += kSampleThreads) {
        const uint64_t weight =
            weights.Of(i < search.num_listed() ? TokenLogit(search.Listed(i)) : -INFINITY);
        if (weight >= MinPBound()) bounded += weight;
      }
      uint32_t none = 0;
      BlockInclusiveSums(bounded, none, shared_.search);
      if (threadIdx.x == kSampleThreads - 1) shared_.bounded_weights[0] = bounded;
      __syncthreads();
      total = min(total, shared_.bounded_weights[0]);
    }
    WriteCut(search.template LookUp<true>(Share(row_.uniform, total)));
  }

  __device__ void DrawBestFirst(Search<kRanks, kStaged>& search, const Weights& weights,
                                bool limits) {
    const float lowest = fmaxf(least_, weights.cutoff());
    const uint64_t bounded = search.template Count<true>(
        max_, max_ - static_cast<double>(lowest), lowest, weights,
        row_.min_p > 0 ? MinPBound() : ~uint64_t{0});
    if (row_.min_p > 0) Group::TellAll(shared_.bounded_weights, WarpSum(bounded));
    Group::Sync();
    uint64_t total = 0;
    uint64_t target = 0;
    if (search.leader()) {
      search.SumBins();
      total = search.TotalWeight();
      target = min(static_cast<uint32_t>(row_.top_k), search.TotalCount()) - 1;
    }
    if (limits) total = search.template Find<false>(target, false, weights).weight;
    if (row_.top_p < 1) {
      total = search.template Find<true>(TopPTarget(total), false, weights).weight;
    }
    if (row_.min_p > 0) total = min(total, ClusterSum(shared_.bounded_weights));
    const TokenCut cut = search.template Find<true>(Share(row_.uniform, total), false, weights);
    if (search.leader()) WriteCut(cut);
  }

  // The best token's weight is never below it.
  __device__ uint64_t MinPBound() const {
    const uint64_t one = uint64_t{1} << arguments_.weight_bits;
    return min(one, static_cast<uint64_t>(
                        __double2ull_ru(ldexp(static_cast<double>(row_.min_p),
                                              arguments_.weight_bits))));
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

  __device__ void WriteGreedyOrGiven() {
    if (row_.given_token < 0) {
      WriteToken(TokenId(best_), max_);
      return;
    }
    const float* logit = arguments_.launch.logits + RowIndex() * arguments_.launch.row_stride +
                         row_.given_token;
    WriteToken(row_.given_token, Sanitized(__ldcg(logit)));
  }
  static __device__ int64_t RowIndex() { return blockIdx.x / kRanks; }
  // By one thread of the leader.
  __device__ void WriteCut(const TokenCut& cut) {
    if (threadIdx.x == 0) WriteToken(TokenId(cut.key), TokenLogit(cut.key));
  }
  __device__ void WriteToken(int id, float logit) {
    out_.token_id = id;
    out_.logprob =
        row_.num_logprobs >= 0 && id >= 0 ? static_cast<float>(logit - log_sum_exp_) : 0.0f;
  }
  // The best tokens of the list. By the leader.
  __device__ void WriteTop(int count, const Search<kRanks, kStaged>* search) {
    const int i = threadIdx.x;
    if (Group::Rank() != 0 || i >= kMaxTopLogprobs) return;
    if (i == 0) out_.num_top = count;
    const uint64_t key = i < count ? search->Listed(i) : 0;
    out_.top_ids[i] = i < count ? TokenId(key) : 0;
    out_.top_logprobs[i] = i < count ? static_cast<float>(TokenLogit(key) - log_sum_exp_) : 0.0f;
  }

  const KernelArguments& arguments_;
  const SampleRow& row_;
  const Slice<kStaged>& slice_;
  SampledRow& out_;
  RowShared<kRanks>& shared_;
  uint64_t best_ = 0;
  float least_ = 0;
  float max_ = 0;
  double log_sum_exp_ = 0;
};

// By all blocks of the cluster together.
template <int kRanks>
__device__ void ApplyEdits(const LogitEdit* edits, int num_edits, float* logits) {
  for (int i = Cluster<kRanks>::Rank() * kSampleThreads + threadIdx.x; i < num_edits;
       i += kRanks * kSampleThreads) {
    const LogitEdit edit = edits[i];
    float logit = __fadd_rn(Sanitized(__ldcg(logits + edit.token_id)), edit.bias);
    logit = logit > 0 ? __fdiv_rn(logit, edit.repetition) : __fmul_rn(logit, edit.repetition);
    logits[edit.token_id] = __fsub_rn(fminf(logit, FLT_MAX), edit.penalty);
  }
}

template <int kRanks, bool kStaged>
__global__ void __cluster_dims__(kRanks, 1, 1) __launch_bounds__(kSampleThreads, 2)
    SampleTokensKernel(const KernelArguments arguments) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<RowShared<kRanks>*>(memory);
  auto* staged = reinterpret_cast<float4*>(memory + sizeof(RowShared<kRanks>));
  static_assert(sizeof(RowShared<kRanks>) % sizeof(float4) == 0);
  const SampleTokensLaunch& launch = arguments.launch;
  LetNextKernelStart();
  WaitForPriorKernels();
  const int64_t index = blockIdx.x / kRanks;
  const SampleRow& row = launch.rows[index];
  float* logits = launch.logits + index * launch.row_stride;
  if (threadIdx.x == 0) shared.row = row;
  if (row.num_edits > 0) {
    ApplyEdits<kRanks>(launch.edits + row.first_edit, row.num_edits, logits);
  }
  // The edits are made, and all blocks have begun: their memory may be written.
  Cluster<kRanks>::Sync();
  const Slice<kStaged> slice(logits, static_cast<int>(launch.num_cols), Cluster<kRanks>::Rank(),
                             arguments.vectors_per_rank, staged);
  RowSampler<kRanks, kStaged>(arguments, slice, launch.out[index], shared).Sample();
}

constexpr size_t kMostSharedBytes = 227 * 1024;

template <int kRanks, bool kStaged>
cudaError_t LaunchKernel(const KernelArguments& arguments, size_t shared_bytes,
                         cudaStream_t stream) {
  const auto kernel = SampleTokensKernel<kRanks, kStaged>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  return LaunchOverlapped(kernel,
                          dim3(static_cast<unsigned>(kRanks * arguments.launch.num_rows)),
                          kSampleThreads, shared_bytes, stream, arguments);
}

// The sum of so many parts of weights stays within 32 bits.
int PartBits(int64_t num_parts) {
  int bits = 17;
  while (num_parts >> (32 - bits) > 0) --bits;
  return bits;
}

template <int kRanks>
cudaError_t LaunchRanks(const SampleTokensLaunch& launch, cudaStream_t stream) {
  // Of a row that begins at the last place of a vector.
  const int64_t vectors = (launch.num_cols + 3 + 3) / 4;
  const int64_t vectors_per_rank = (vectors + kRanks - 1) / kRanks;
  const KernelArguments arguments = {launch, static_cast<int>(vectors_per_rank),
                                     WeightBits(launch.num_cols), PartBits(4 * vectors_per_rank)};
  const size_t staged = sizeof(RowShared<kRanks>) + vectors_per_rank * sizeof(float4);
  if (staged <= kMostSharedBytes) return LaunchKernel<kRanks, true>(arguments, staged, stream);
  if constexpr (kRanks == 1) {
    return cudaErrorInvalidValue;  // not with so few columns
  } else {
    return LaunchKernel<kRanks, false>(arguments, sizeof(RowShared<kRanks>), stream);
  }
}

}  // namespace

cudaError_t LaunchSampleTokens(const SampleTokensLaunch& launch, cudaStream_t stream) {
  if (launch.num_rows == 0) return cudaSuccess;
  // From here on a row is worth more than one block.
  constexpr int64_t kFewCols = 8192;
  return launch.num_cols <= kFewCols ? LaunchRanks<1>(launch, stream)
                                     : LaunchRanks<8>(launch, stream);
}

}  // namespace hyserve::kernels::cuda
