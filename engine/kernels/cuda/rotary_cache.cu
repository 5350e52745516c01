#include "engine/kernels/cuda/rotary_cache.h"

#include <algorithm>
#include <type_traits>

#include "engine/kernels/cuda/overlap.cuh"
#include "engine/kernels/cuda/vector_io.cuh"

namespace hyserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxRowsPerBlock = 16;

constexpr int64_t kEnoughBlocks = 132 * 7;  // that fill a GPU

// Rows of a block so that each thread has about items_per_thread items, as long as the rows fill
// the GPU. Measured on an H200: several for cache writes, whose rows are short, one for rotating
// queries alone.
int RowsPerBlock(int64_t items_per_row, int64_t num_rows, int items_per_thread) {
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

struct Floats8x2 {
  Floats8 a;
  Floats8 b;
};
template <int kWidth>
__device__ Floats8x2 RotateInPlace(__nv_bfloat16* a, __nv_bfloat16* b, const float* cos,
                                   const float* sin) {
  Floats8x2 x = {Load<kWidth>(a), Load<kWidth>(b)};
  RotatePair<kWidth>(x.a, x.b, cos, sin);
  Store<kWidth>(a, x.a);
  Store<kWidth>(b, x.b);
  return x;
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
    RotateInPlace<kWidth>(x, x + pairs, cos + row * pairs + pair, sin + row * pairs + pair);
  }
}

// Where a row's heads go: head g of it at k + g * head_rows * head_dim, v likewise. ring: the same
// with head_rows = window; null where nothing goes.
struct RowSlots {
  __nv_bfloat16* k;
  __nv_bfloat16* v;
  __nv_bfloat16* ring_k = nullptr;
  __nv_bfloat16* ring_v = nullptr;
};

// Rings of the slab of sequence `seq`, at the slot of `position`.
__device__ void PlaceInRing(const RingMemory& ring, int seq, int position, int head_dim,
                            int v_head_dim, __nv_bfloat16** k, __nv_bfloat16** v) {
  char* slab = ring.slabs + ring.slab_index[seq] * ring.slab_stride_bytes;
  const int64_t slot = position % ring.window;
  *k = reinterpret_cast<__nv_bfloat16*>(slab + ring.k_offset_bytes) + slot * head_dim;
  *v = reinterpret_cast<__nv_bfloat16*>(slab + ring.v_offset_bytes) + slot * v_head_dim;
}

__device__ RowSlots SlotsOf(const PagedDestination& to, const KvWrite& p, int64_t row) {
  const int32_t position = p.angles.positions[row];
  const int64_t page = to.page_table[static_cast<int64_t>(to.row_seq[row]) * to.page_table_stride +
                                     position / kCacheBlockTokens];
  const int64_t slot = position % kCacheBlockTokens;
  __nv_bfloat16* base = to.pages + page * to.slice;
  return {base + slot * p.head_dim, base + to.k_slice + slot * p.v_head_dim};
}

__device__ RowSlots SlotsOf(const StepDestination& to, const KvWrite& p, int64_t row) {
  RowSlots slots = {to.k + row * to.k_stride, to.v + row * to.v_stride};
  if (to.ring.slabs != nullptr) {
    PlaceInRing(to.ring, static_cast<int>(row), p.angles.positions[row], p.head_dim, p.v_head_dim,
                &slots.ring_k, &slots.ring_v);
  }
  return slots;
}

__device__ int64_t RingRows(const PagedDestination& to) { return 0; }
__device__ int64_t RingRows(const StepDestination& to) { return to.ring.window; }

// Rows of one head that a destination holds next to each other.
template <typename Destination>
constexpr int kHeadRows = std::is_same_v<Destination, PagedDestination> ? kCacheBlockTokens : 1;

// The items of a row: pairs of vectors of its queries to rotate; then of every KV head pairs of
// vectors to rotate, key vectors to copy, value vectors to scale.
struct RowItems {
  FastDivide per_row;
  FastDivide per_query_head;
  FastDivide per_kv_head;
  uint32_t queries;
};

// Blocks (x, y) share the items of rows [x * rows_per_block, ...).
template <int kWidth, typename Destination>
__global__ void WriteKvKernel(KvWrite p, Destination to, int rows_per_block, RowItems items) {
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
  const uint32_t num_items = num_rows * items.per_row.divisor();
  for (uint32_t i = blockIdx.y * kThreads + threadIdx.x; i < num_items; i += gridDim.y * kThreads) {
    const uint32_t row = items.per_row.Quotient(i);
    const uint32_t in_row = items.per_row.Remainder(i, row);
    const float* row_cos = cos + row * pairs;
    const float* row_sin = sin + row * pairs;
    if (in_row < items.queries) {
      const uint32_t head = items.per_query_head.Quotient(in_row);
      const int dim = static_cast<int>(items.per_query_head.Remainder(in_row, head)) * kWidth;
      __nv_bfloat16* q =
          p.q + (first_row + row) * p.q_stride + static_cast<int64_t>(head) * p.head_dim + dim;
      RotateInPlace<kWidth>(q, q + pairs, row_cos + dim, row_sin + dim);
      continue;
    }
    const uint32_t kv_item = in_row - items.queries;
    const uint32_t head = items.per_kv_head.Quotient(kv_item);
    const int item = static_cast<int>(items.per_kv_head.Remainder(kv_item, head));
    if (item < key_items) {
      const int64_t column = static_cast<int64_t>(head) * p.head_dim;
      __nv_bfloat16* k = p.k + (first_row + row) * p.k_stride + column;
      __nv_bfloat16* slot = slots[row].k + column * kHeadRows<Destination>;
      __nv_bfloat16* ring = slots[row].ring_k;
      if (ring != nullptr) ring += column * RingRows(to);
      if (item < pair_items) {
        const int dim = item * kWidth;
        const Floats8x2 rotated =
            RotateInPlace<kWidth>(k + dim, k + dim + pairs, row_cos + dim, row_sin + dim);
        Store<kWidth>(slot + dim, rotated.a);
        Store<kWidth>(slot + dim + pairs, rotated.b);
        if (ring != nullptr) {
          Store<kWidth>(ring + dim, rotated.a);
          Store<kWidth>(ring + dim + pairs, rotated.b);
        }
      } else {
        const int dim = 2 * pairs + (item - pair_items) * kWidth;
        const uint4 raw = LoadPacked<kWidth == kVector>(k + dim, kWidth);
        StorePacked<kWidth == kVector>(slot + dim, raw, kWidth);
        if (ring != nullptr) StorePacked<kWidth == kVector>(ring + dim, raw, kWidth);
      }
    } else {
      const int64_t column = static_cast<int64_t>(head) * p.v_head_dim;
      const int dim = (item - key_items) * kWidth;
      Floats8 x = Load<kWidth>(p.v + (first_row + row) * p.v_stride + column + dim);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) x.v[j] *= p.value_scale;
      Store<kWidth>(slots[row].v + column * kHeadRows<Destination> + dim, x);
      if (slots[row].ring_v != nullptr) {
        Store<kWidth>(slots[row].ring_v + column * RingRows(to) + dim, x);
      }
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
    const int begin = max(seq_begin, seq_end - p.ring.window) + static_cast<int>(blockIdx.x) *
                                                               rows_per_block;
    const int num_rows = min(rows_per_block, seq_end - begin);
    for (int i = threadIdx.x; i < num_rows * items_per_row; i += blockDim.x) {
      const int row = begin + i / items_per_row;
      const int head = i % items_per_row / items_per_head;
      const int item = i % items_per_row % items_per_head;
      const int position = p.first_position[seq] + row - seq_begin;
      __nv_bfloat16* ring_k;
      __nv_bfloat16* ring_v;
      PlaceInRing(p.ring, seq, position, p.head_dim, p.v_head_dim, &ring_k, &ring_v);
      const int64_t head_rows = static_cast<int64_t>(head) * p.ring.window;
      const __nv_bfloat16* from;
      __nv_bfloat16* to;
      if (item < k_items) {
        from = p.k + row * p.k_stride + static_cast<int64_t>(head) * p.head_dim + item * kWidth;
        to = ring_k + head_rows * p.head_dim + item * kWidth;
      } else {
        const int dim = (item - k_items) * kWidth;
        from = p.v + row * p.v_stride + static_cast<int64_t>(head) * p.v_head_dim + dim;
        to = ring_v + head_rows * p.v_head_dim + dim;
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
  const int pair_items = write.angles.rotary_dim / 2 / width;
  const int kv_head_items =
      (write.head_dim - write.angles.rotary_dim / 2 + write.v_head_dim) / width;
  const int queries = pair_items * write.num_q_heads;
  const int per_row = queries + kv_head_items * write.num_kv_heads;
  const int rows = FitShared(RowsPerBlock(per_row, write.num_rows, 3), write.angles.rotary_dim);
  const int64_t blocks = (write.num_rows + rows - 1) / rows;
  // An item a thread where that does not fill the GPU.
  const int64_t parts = (int64_t{rows} * per_row + kThreads - 1) / kThreads;
  const int64_t split = std::max<int64_t>(1, std::min(parts, kEnoughBlocks / blocks));
  const size_t shared = sizeof(float) * rows * write.angles.rotary_dim;
  const auto kernel =
      aligned ? WriteKvKernel<kVector, Destination> : WriteKvKernel<1, Destination>;
  const RowItems items = {FastDivide(per_row), FastDivide(std::max(1, pair_items)),
                          FastDivide(kv_head_items), static_cast<uint32_t>(queries)};
  return LaunchOverlapped(
      kernel, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(split)), kThreads, shared,
      stream, write, to, rows, items);
}

bool Aligned16(const RingMemory& ring) {
  const auto multiple_of_16 = [](int64_t bytes) { return bytes % 16 == 0; };
  return Aligned16(ring.slabs, 0) && multiple_of_16(ring.slab_stride_bytes) &&
         multiple_of_16(ring.k_offset_bytes) && multiple_of_16(ring.v_offset_bytes);
}

bool SourcesAligned(const KvWrite& write) {
  return Aligned16(write.q, write.q_stride) && Aligned16(write.k, write.k_stride) &&
         Aligned16(write.v, write.v_stride) && write.head_dim % kVector == 0 &&
         write.v_head_dim % kVector == 0 && write.angles.rotary_dim % (2 * kVector) == 0;
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
                       Aligned16(to.v, to.v_stride) && Aligned16(to.ring);
  return LaunchWriteKv(write, to, aligned, stream);
}

cudaError_t LaunchStoreWindowKv(const StoreWindowKvLaunch& launch, cudaStream_t stream) {
  const bool aligned = Aligned16(launch.k, launch.k_stride) &&
                       Aligned16(launch.v, launch.v_stride) && Aligned16(launch.ring) &&
                       launch.head_dim % kVector == 0 && launch.v_head_dim % kVector == 0;
  const int64_t kept = std::min(launch.ring.window, launch.max_rows_per_seq);
  const int64_t items = static_cast<int64_t>(launch.num_kv_heads) *
                        (launch.head_dim + launch.v_head_dim) / (aligned ? kVector : 1);
  const int rows = RowsPerBlock(items, kept * launch.num_seqs, 3);
  const dim3 grid(static_cast<unsigned>((kept + rows - 1) / rows),
                  static_cast<unsigned>(std::min(launch.num_seqs, 65535)));
  const auto kernel = aligned ? StoreWindowKvKernel<uint4> : StoreWindowKvKernel<uint16_t>;
  return LaunchOverlapped(kernel, grid, kThreads, 0, stream, launch, rows);
}

}  // namespace hyserve::kernels::cuda
