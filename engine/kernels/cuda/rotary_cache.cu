#include "engine/kernels/cuda/rotary_cache.h"

#include <algorithm>
#include <type_traits>

#include "engine/kernels/cuda/overlap.cuh"
#include "engine/kernels/cuda/vector_io.cuh"

namespace hyserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxRowsPerBlock = 16;

// Rows of a block so that each thread has about items_per_thread items, as long as the rows fill the
// GPU. Measured on an H200: several for cache writes, whose rows are short, one for rotating queries.
int RowsPerBlock(int64_t items_per_row, int64_t num_rows, int items_per_thread) {
  constexpr int64_t kEnoughBlocks = 132 * 7;
  const int64_t by_work = items_per_thread * kThreads / std::max<int64_t>(1, items_per_row);
  const int64_t by_rows = num_rows / kEnoughBlocks;
  return static_cast<int>(
      std::clamp<int64_t>(std::min(by_work, by_rows), 1, kMaxRowsPerBlock));
}

bool Aligned16(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % kVector == 0;
}

// cos and sin of position * inv_freq[pair] for rows [first_row, first_row + num_rows) into shared
// memory, [num_rows][pairs] each. The angle is exact to double precision, then reduced to half a
// turn around 0.
__device__ void ComputeAngles(const RotaryAngles& angles, int64_t first_row, int num_rows,
                              float* cos, float* sin) {
  constexpr double kInverseTurn = 0.15915494309189533577;  // 1 / (2 pi)
  const int pairs = angles.rotary_dim / 2;
  for (int i = threadIdx.x; i < num_rows * pairs; i += blockDim.x) {
    const int row = i / pairs;
    const double turns = static_cast<double>(angles.positions[first_row + row]) *
                         angles.inv_freq[i - row * pairs] * kInverseTurn;
    sincospif(2.0f * static_cast<float>(turns - rint(turns)), &sin[i], &cos[i]);
  }
}

// (a, b) becomes (a cos - b sin, a sin + b cos).
template <int kWidth>
__device__ void RotatePair(Floats8& a, Floats8& b, const float* cos, const float* sin) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float x = a.v[i];
    const float y = b.v[i];
    a.v[i] = __fsub_rn(__fmul_rn(x, cos[i]), __fmul_rn(y, sin[i]));
    b.v[i] = fmaf(x, sin[i], __fmul_rn(y, cos[i]));
  }
}

// kWidth elements, 8 with 16-byte accesses or 1.
template <int kWidth>
__device__ Floats8 Load(const __nv_bfloat16* p) {
  return Load8<kWidth == kVector>(p, kWidth);
}
template <int kWidth>
__device__ void Store(__nv_bfloat16* p, const Floats8& x) {
  Store8<kWidth == kVector>(p, x, kWidth);
}

// Shared memory: cos, then sin, of the block's rows.
template <int kWidth>
__global__ void RotaryKernel(RotaryLaunch p, int rows_per_block, FastDivide items_per_row,
                             FastDivide items_per_head) {
  extern __shared__ float shared[];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * rows_per_block;
  const int num_rows = static_cast<int>(min(int64_t{rows_per_block}, p.num_rows - first_row));
  const int pairs = p.angles.rotary_dim / 2;
  float* cos = shared;
  float* sin = shared + rows_per_block * pairs;
  LetNextKernelStart();
  ComputeAngles(p.angles, first_row, num_rows, cos, sin);
  __syncthreads();
  WaitForPriorKernels();
  const uint32_t num_items = num_rows * items_per_row.divisor();
  for (uint32_t i = threadIdx.x; i < num_items; i += kThreads) {
    const uint32_t row = items_per_row.Quotient(i);
    const uint32_t in_row = items_per_row.Remainder(i, row);
    const uint32_t head = items_per_head.Quotient(in_row);
    const int pair = static_cast<int>(items_per_head.Remainder(in_row, head)) * kWidth;
    __nv_bfloat16* x = p.x + (first_row + row) * p.x_stride +
                       static_cast<int64_t>(head) * p.head_dim + pair;
    Floats8 a = Load<kWidth>(x);
    Floats8 b = Load<kWidth>(x + pairs);
    RotatePair<kWidth>(a, b, cos + row * pairs + pair, sin + row * pairs + pair);
    Store<kWidth>(x, a);
    Store<kWidth>(x + pairs, b);
  }
}

// Where a row's heads go: head g of it at k + g * k_head_stride of the destination, v likewise.
struct RowSlots {
  __nv_bfloat16* k;
  __nv_bfloat16* v;
};

__device__ RowSlots SlotsOf(const PagedDestination& to, const KvWrite& p, int64_t row) {
  const int32_t position = p.angles.positions[row];
  const int64_t page = to.page_table[static_cast<int64_t>(to.row_seq[row]) * to.page_table_stride +
                                     position / kCacheBlockTokens];
  const int64_t slot = position % kCacheBlockTokens;
  __nv_bfloat16* base = to.pages + page * to.slice;
  return {base + slot * p.head_dim, base + to.k_slice + slot * p.v_head_dim};
}

__device__ RowSlots SlotsOf(const StepDestination& to, const KvWrite& p, int64_t row) {
  return {to.k + row * to.k_stride, to.v + row * to.v_stride};
}

// Rows of one head that a destination holds next to each other.
template <typename Destination>
constexpr int kHeadRows = std::is_same_v<Destination, PagedDestination> ? kCacheBlockTokens : 1;

// The items of one head: pairs of vectors to rotate, key vectors to copy, value vectors to scale.
template <int kWidth, typename Destination>
__global__ void WriteKvKernel(KvWrite p, Destination to, int rows_per_block,
                              FastDivide items_per_row, FastDivide items_per_head) {
  extern __shared__ float shared[];
  __shared__ RowSlots slots[kMaxRowsPerBlock];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * rows_per_block;
  const int num_rows = static_cast<int>(min(int64_t{rows_per_block}, p.num_rows - first_row));
  const int pairs = p.angles.rotary_dim / 2;
  float* cos = shared;
  float* sin = shared + rows_per_block * pairs;
  LetNextKernelStart();
  if (threadIdx.x < num_rows) slots[threadIdx.x] = SlotsOf(to, p, first_row + threadIdx.x);
  if (pairs > 0) ComputeAngles(p.angles, first_row, num_rows, cos, sin);
  __syncthreads();
  WaitForPriorKernels();
  const int pair_items = pairs / kWidth;
  const int key_items = pair_items + (p.head_dim - 2 * pairs) / kWidth;
  const uint32_t num_items = num_rows * items_per_row.divisor();
  for (uint32_t i = threadIdx.x; i < num_items; i += kThreads) {
    const uint32_t row = items_per_row.Quotient(i);
    const uint32_t in_row = items_per_row.Remainder(i, row);
    const uint32_t head = items_per_head.Quotient(in_row);
    const int item = static_cast<int>(items_per_head.Remainder(in_row, head));
    if (item < key_items) {
      const int64_t column = static_cast<int64_t>(head) * p.head_dim;
      __nv_bfloat16* k = p.k + (first_row + row) * p.k_stride + column;
      __nv_bfloat16* slot = slots[row].k + column * kHeadRows<Destination>;
      if (item < pair_items) {
        const int dim = item * kWidth;
        Floats8 a = Load<kWidth>(k + dim);
        Floats8 b = Load<kWidth>(k + dim + pairs);
        RotatePair<kWidth>(a, b, cos + row * pairs + dim, sin + row * pairs + dim);
        Store<kWidth>(k + dim, a);
        Store<kWidth>(k + dim + pairs, b);
        Store<kWidth>(slot + dim, a);
        Store<kWidth>(slot + dim + pairs, b);
      } else {
        const int dim = 2 * pairs + (item - pair_items) * kWidth;
        StorePacked<kWidth == kVector>(slot + dim,
                                       LoadPacked<kWidth == kVector>(k + dim, kWidth), kWidth);
      }
    } else {
      const int64_t column = static_cast<int64_t>(head) * p.v_head_dim;
      const int dim = (item - key_items) * kWidth;
      Floats8 x = Load<kWidth>(p.v + (first_row + row) * p.v_stride + column + dim);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) x.v[j] *= p.value_scale;
      Store<kWidth>(slots[row].v + column * kHeadRows<Destination> + dim, x);
    }
  }
}

// Block (x, y): rows of sequence y, counted from the first that the ring keeps.
template <typename Word>
__global__ void StoreWindowKvKernel(StoreWindowKvLaunch p, int rows_per_block) {
  constexpr int kWidth = sizeof(Word) / sizeof(__nv_bfloat16);
  LetNextKernelStart();
  WaitForPriorKernels();
  const int k_items = p.head_dim / kWidth;
  const int items_per_head = k_items + p.v_head_dim / kWidth;
  const int items_per_row = items_per_head * p.num_kv_heads;
  for (int seq = blockIdx.y; seq < p.num_seqs; seq += gridDim.y) {
    const int seq_begin = p.row_begin[seq];
    const int seq_end = p.row_begin[seq + 1];
    const int begin = max(seq_begin, seq_end - p.window) + static_cast<int>(blockIdx.x) *
                                                               rows_per_block;
    const int num_rows = min(rows_per_block, seq_end - begin);
    char* slab = p.slabs + p.slab_index[seq] * p.slab_stride_bytes;
    auto* ring_k = reinterpret_cast<__nv_bfloat16*>(slab + p.k_offset_bytes);
    auto* ring_v = reinterpret_cast<__nv_bfloat16*>(slab + p.v_offset_bytes);
    for (int i = threadIdx.x; i < num_rows * items_per_row; i += blockDim.x) {
      const int row = begin + i / items_per_row;
      const int head = i % items_per_row / items_per_head;
      const int item = i % items_per_row % items_per_head;
      const int position = p.first_position[seq] + row - seq_begin;
      const int64_t slot = static_cast<int64_t>(head) * p.window + position % p.window;
      const __nv_bfloat16* from;
      __nv_bfloat16* to;
      if (item < k_items) {
        from = p.k + row * p.k_stride + static_cast<int64_t>(head) * p.head_dim + item * kWidth;
        to = ring_k + slot * p.head_dim + item * kWidth;
      } else {
        const int dim = (item - k_items) * kWidth;
        from = p.v + row * p.v_stride + static_cast<int64_t>(head) * p.v_head_dim + dim;
        to = ring_v + slot * p.v_head_dim + dim;
      }
      *reinterpret_cast<Word*>(to) = *reinterpret_cast<const Word*>(from);
    }
  }
}

// Rows whose angles fit, with the rest, in the 48 KB of shared memory that need no opt-in.
int FitShared(int rows_per_block, int rotary_dim) {
  constexpr int kSharedBytes = 40 << 10;
  const int row_bytes = rotary_dim * static_cast<int>(sizeof(float));
  return row_bytes == 0 ? rows_per_block
                        : std::max(1, std::min(rows_per_block, kSharedBytes / row_bytes));
}

template <typename Destination>
cudaError_t LaunchWriteKv(const KvWrite& write, const Destination& to, bool aligned,
                          cudaStream_t stream) {
  const int width = aligned ? kVector : 1;
  const int items_per_head =
      (write.head_dim - write.angles.rotary_dim / 2 + write.v_head_dim) / width;
  const int items = items_per_head * write.num_kv_heads;
  const int rows = FitShared(RowsPerBlock(items, write.num_rows, 3), write.angles.rotary_dim);
  const auto blocks = static_cast<unsigned>((write.num_rows + rows - 1) / rows);
  const size_t shared = sizeof(float) * rows * write.angles.rotary_dim;
  const auto kernel =
      aligned ? WriteKvKernel<kVector, Destination> : WriteKvKernel<1, Destination>;
  return LaunchOverlapped(kernel, dim3(blocks), kThreads, shared, stream, write, to, rows,
                          FastDivide(items), FastDivide(items_per_head));
}

bool SourcesAligned(const KvWrite& write) {
  return Aligned16(write.k, write.k_stride) && Aligned16(write.v, write.v_stride) &&
         write.head_dim % kVector == 0 && write.v_head_dim % kVector == 0 &&
         write.angles.rotary_dim % (2 * kVector) == 0;
}

}  // namespace

cudaError_t LaunchRotary(const RotaryLaunch& launch, cudaStream_t stream) {
  const bool aligned = Aligned16(launch.x, launch.x_stride) && launch.head_dim % kVector == 0 &&
                       launch.angles.rotary_dim % (2 * kVector) == 0;
  const int width = aligned ? kVector : 1;
  const int items_per_head = launch.angles.rotary_dim / 2 / width;
  const int items = items_per_head * launch.num_heads;
  const int rows = FitShared(RowsPerBlock(items, launch.num_rows, 1), launch.angles.rotary_dim);
  const auto blocks = static_cast<unsigned>((launch.num_rows + rows - 1) / rows);
  const size_t shared = sizeof(float) * rows * launch.angles.rotary_dim;
  const auto kernel = aligned ? RotaryKernel<kVector> : RotaryKernel<1>;
  return LaunchOverlapped(kernel, dim3(blocks), kThreads, shared, stream, launch, rows,
                          FastDivide(items), FastDivide(items_per_head));
}

cudaError_t LaunchAppendPagedKv(const KvWrite& write, const PagedDestination& to,
                                cudaStream_t stream) {
  return LaunchWriteKv(write, to, SourcesAligned(write) && Aligned16(to.pages, 0), stream);
}

cudaError_t LaunchPrepareWindowKv(const KvWrite& write, const StepDestination& to,
                                  cudaStream_t stream) {
  const bool aligned = SourcesAligned(write) && Aligned16(to.k, to.k_stride) &&
                       Aligned16(to.v, to.v_stride);
  return LaunchWriteKv(write, to, aligned, stream);
}

cudaError_t LaunchStoreWindowKv(const StoreWindowKvLaunch& launch, cudaStream_t stream) {
  const auto multiple_of_16 = [](int64_t bytes) { return bytes % 16 == 0; };
  const bool aligned =
      Aligned16(launch.k, launch.k_stride) && Aligned16(launch.v, launch.v_stride) &&
      Aligned16(launch.slabs, 0) && launch.head_dim % kVector == 0 &&
      launch.v_head_dim % kVector == 0 && multiple_of_16(launch.slab_stride_bytes) &&
      multiple_of_16(launch.k_offset_bytes) && multiple_of_16(launch.v_offset_bytes);
  const int64_t kept = std::min(launch.window, launch.max_rows_per_seq);
  const int64_t items = static_cast<int64_t>(launch.num_kv_heads) *
                        (launch.head_dim + launch.v_head_dim) / (aligned ? kVector : 1);
  const int rows = RowsPerBlock(items, kept * launch.num_seqs, 3);
  const dim3 grid(static_cast<unsigned>((kept + rows - 1) / rows),
                  static_cast<unsigned>(std::min(launch.num_seqs, 65535)));
  const auto kernel = aligned ? StoreWindowKvKernel<uint4> : StoreWindowKvKernel<uint16_t>;
  return LaunchOverlapped(kernel, grid, kThreads, 0, stream, launch, rows);
}

}  // namespace hyserve::kernels::cuda
