// A random step for WindowSparseAttention's kernels and a plain reference of it. Everything that no
// row may read is NaN.
#ifndef HYSERVE_BENCHMARKS_KERNELS_CUDA_SPARSE_CASE_CUH_
#define HYSERVE_BENCHMARKS_KERNELS_CUDA_SPARSE_CASE_CUH_

#include <cstring>
#include <numeric>
#include <random>
#include <set>

#include "benchmarks/kernels/cuda/bench_util.cuh"
#include "engine/kernels/cuda/window_sparse_attention_launch.h"

namespace hyserve::kernels::cuda::bench {

using hyserve::bench::Download;

struct SparseShape {
  int heads, kv_heads, dim, v_dim, window, selected;
  std::string Name() const {
    return std::to_string(heads) + "/" + std::to_string(kv_heads) + " " + std::to_string(dim) +
           "/" + std::to_string(v_dim);
  }
};

// Rows [first, first + rows) of a sequence.
struct SparseRows {
  int first, rows;
};

enum class GateKind { kNone, kHead, kElement };

// kNeighbours: twelve of sixteen blocks are the last token's (one changes every fourth token), four
// come from 32 that 64 tokens share. kSame: 64 tokens select the same. kUniform: all random.
enum class Pattern { kNeighbours, kSame, kUniform };

struct SparseOptions {
  GateKind gate = GateKind::kHead;
  bool sinks = true;
  bool sparse = true;
  Pattern pattern = Pattern::kNeighbours;
  int extra_stride = 64;  // elements between rows; odd ones break every alignment
  uint32_t seed = 1;
};

inline constexpr uint16_t kNanBits = 0xffff;

__device__ inline float FromBf16(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

// NaN in the slots of [slices of kv_heads x slots x dim] at and after valid[slice].
__global__ void PoisonSlots(uint16_t* data, const int* valid, int64_t slice_stride, int kv_heads,
                            int slots, int dim) {
  uint16_t* slice = data + blockIdx.x * slice_stride;
  for (int i = threadIdx.x; i < kv_heads * slots * dim; i += blockDim.x) {
    if (i / dim % slots >= valid[blockIdx.x]) slice[i] = kNanBits;
  }
}

// Where the i-th key of a branch of a row lies; false: not visible.
__device__ inline bool FindKey(const WindowSparseArgs& args, int row, int kv_head, bool sparse,
                               int i, const uint16_t** k, const uint16_t** v) {
  const int seq = args.row_seq[row];
  const int position = args.positions[row];
  if (!sparse) {
    const int p = position - args.window + 1 + i;
    if (p < 0) return false;
    const int first = args.first_position[seq];
    if (p >= first) {
      const int64_t r = args.row_begin[seq] + p - first;
      *k = args.step_k.data + r * args.step_k.stride + kv_head * args.head_dim;
      *v = args.step_v.data + r * args.step_v.stride + kv_head * args.v_head_dim;
      return true;
    }
    const char* slab = args.ring + args.slab_index[seq] * args.slab_stride_bytes;
    const int64_t r = int64_t{kv_head} * args.window + p % args.window;
    *k = reinterpret_cast<const uint16_t*>(slab + args.ring_k_offset_bytes) + r * args.head_dim;
    *v = reinterpret_cast<const uint16_t*>(slab + args.ring_v_offset_bytes) + r * args.v_head_dim;
    return true;
  }
  const int block =
      args.selection[(int64_t{row} * args.num_kv_heads + kv_head) * args.selected_blocks + i / 64];
  if (block < 0 || block * 64 + i % 64 > position) return false;
  const int64_t page = args.page_table[int64_t{seq} * args.page_table_stride + block];
  const int64_t slots = int64_t{args.num_kv_heads} * 64;
  const uint16_t* slice = args.pages + page * slots * (args.head_dim + args.v_head_dim);
  const int64_t slot = kv_head * 64 + i % 64;
  *k = slice + slot * args.head_dim;
  *v = slice + slots * args.head_dim + slot * args.v_head_dim;
  return true;
}

// Block (sampled row, head): two passes, in double.
__global__ void ReferenceKernel(const WindowSparseArgs args, const int* rows, float* out) {
  extern __shared__ float logits[];
  __shared__ double top, total;
  const int row = rows[blockIdx.x];
  const int head = blockIdx.y;
  const int kv_head = head / (args.num_heads / args.num_kv_heads);
  const uint16_t* q = args.q.data + row * args.q.stride + int64_t{head} * args.head_dim;
  double result[2] = {};
  for (int branch = 0; branch < (args.selection == nullptr ? 1 : 2); ++branch) {
    const int keys = branch == 0 ? args.window : args.selected_blocks * 64;
    const uint16_t* k = nullptr;
    const uint16_t* v = nullptr;
    for (int i = threadIdx.x; i < keys; i += blockDim.x) {
      double dot = -INFINITY;
      if (FindKey(args, row, kv_head, branch == 1, i, &k, &v)) {
        dot = 0;
        for (int d = 0; d < args.head_dim; ++d) dot += double{FromBf16(q[d])} * FromBf16(k[d]);
        dot *= args.scale;
      }
      logits[i] = static_cast<float>(dot);
    }
    __syncthreads();
    const float* sink = branch == 0 ? args.window_sink : args.sparse_sink;
    if (threadIdx.x == 0) {
      top = sink == nullptr ? -INFINITY : sink[head];
      for (int i = 0; i < keys; ++i) top = fmax(top, double{logits[i]});
      total = sink == nullptr ? 0 : exp(sink[head] - top);
      for (int i = 0; i < keys; ++i) total += exp(logits[i] - top);
    }
    __syncthreads();
    const SparseGate& gate = branch == 0 ? args.window_gate : args.sparse_gate;
    for (int part = 0; part < 2; ++part) {
      const int d = threadIdx.x + part * blockDim.x;
      if (d >= args.v_head_dim) break;
      double sum = 0;
      for (int i = 0; i < keys; ++i) {
        if (!FindKey(args, row, kv_head, branch == 1, i, &k, &v)) continue;
        sum += exp(logits[i] - top) * FromBf16(v[d]);
      }
      double factor = total > 0 ? 1 / total : 0;
      if (gate.data != nullptr) {
        const int64_t column = gate.per_element ? int64_t{head} * args.v_head_dim + d : head;
        factor /= 1 + exp(-double{FromBf16(gate.data[row * gate.stride + column])});
      }
      result[part] += sum * factor;
    }
    __syncthreads();
  }
  for (int part = 0; part < 2; ++part) {
    const int d = threadIdx.x + part * blockDim.x;
    if (d >= args.v_head_dim) break;
    out[(int64_t{blockIdx.x} * args.num_heads + head) * args.v_head_dim + d] =
        static_cast<float>(result[part]);
  }
}

class SparseCase {
 public:
  SparseCase(const SparseShape& shape, std::vector<SparseRows> sequences,
             const SparseOptions& options = {});
  SparseCase(const SparseCase&) = delete;
  ~SparseCase() {
    for (void* memory : memory_) cudaFree(memory);
  }

  const WindowSparseArgs& args() const { return args_; }
  const SparseShape& shape() const { return shape_; }
  const std::vector<SparseRows>& sequences() const { return sequences_; }
  // Mean number of blocks in the union of the selections of `tokens` neighbours.
  double MeanUnion(int tokens) const;
  // K and V bytes that decode rows must read.
  double DecodeBytes() const;

  void PoisonOutput() {
    BENCH_CHECK(cudaMemset(args_.out, 0xff, size_t(args_.num_rows) * args_.out_stride * 2));
  }
  std::vector<uint16_t> Output() const {
    return Download(args_.out, size_t(args_.num_rows) * args_.out_stride);
  }
  // Rows of sequences with more than min_rows and at most max_rows rows; of long ones the edges and
  // about 100 between.
  std::vector<int> Sample(int min_rows, int max_rows) const;
  // Relative error over these rows; NaN when something was not written or is NaN.
  double Error(const std::vector<int>& rows);

  template <typename T>
  T* Upload(const std::vector<T>& values) {
    T* data = Array<T>(values.size() + 16);
    BENCH_CHECK(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return data;
  }

 private:
  template <typename T>
  T* Array(size_t count) {
    T* data = hyserve::bench::DeviceArray<T>(count);
    memory_.push_back(data);
    return data;
  }
  SparseMatrix RandomMatrix(int64_t cols, float scale) {
    const int64_t stride = cols + options_.extra_stride;
    return {RandomArray(args_.num_rows * stride, scale), stride};
  }
  const uint16_t* RandomArray(int64_t count, float scale) {
    auto* data = Array<__nv_bfloat16>(count + 16);
    hyserve::bench::FillRandom(data, count, options_.seed * 64 + ++arrays_, scale);
    return reinterpret_cast<const uint16_t*>(data);
  }
  SparseGate RandomGate() {
    if (options_.gate == GateKind::kNone) return {};
    const bool element = options_.gate == GateKind::kElement;
    const SparseMatrix m = RandomMatrix(shape_.heads * (element ? shape_.v_dim : 1), 1.0f);
    return {m.data, m.stride, element};
  }
  void MakeBatch();
  void MakeWindow();
  void MakePages();
  void Select();

  const SparseShape shape_;
  const std::vector<SparseRows> sequences_;
  const SparseOptions options_;
  std::mt19937_64 random_;
  WindowSparseArgs args_;
  std::vector<int> page_tokens_;  // tokens written in each page
  std::vector<int32_t> selection_;
  std::vector<void*> memory_;
  uint32_t arrays_ = 0;
};

inline SparseCase::SparseCase(const SparseShape& shape, std::vector<SparseRows> sequences,
                              const SparseOptions& options)
    : shape_(shape), sequences_(std::move(sequences)), options_(options), random_(options.seed) {
  args_.num_heads = shape.heads;
  args_.num_kv_heads = shape.kv_heads;
  args_.head_dim = shape.dim;
  args_.v_head_dim = shape.v_dim;
  args_.window = shape.window;
  args_.scale = 1.0f / std::sqrt(static_cast<float>(shape.dim));
  MakeBatch();
  args_.q = RandomMatrix(int64_t{shape.heads} * shape.dim, 1.5f);
  args_.out_stride = int64_t{shape.heads} * shape.v_dim + options.extra_stride;
  args_.out = Array<uint16_t>(args_.num_rows * args_.out_stride + 16);
  MakeWindow();
  if (options.sparse) {
    MakePages();
    Select();
  }
  BENCH_CHECK(cudaDeviceSynchronize());
}

inline void SparseCase::MakeBatch() {
  std::vector<int> begin = {0}, first, positions, row_seq, slabs;
  int stride = 1;
  int pages = 3;  // some that belong to nobody
  for (const SparseRows& rows : sequences_) {
    const int blocks = (rows.first + rows.rows + 63) / 64;
    stride = std::max(stride, blocks + 1);
    pages += blocks;
  }
  std::vector<int> order(pages);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random_);
  std::vector<int> table(sequences_.size() * stride, -1);
  page_tokens_.assign(pages, 0);
  int next = 0;
  for (size_t s = 0; s < sequences_.size(); ++s) {
    const SparseRows& rows = sequences_[s];
    first.push_back(rows.first);
    begin.push_back(begin.back() + rows.rows);
    slabs.push_back(static_cast<int>(sequences_.size() - 1 - s));
    for (int i = 0; i < rows.rows; ++i) {
      positions.push_back(rows.first + i);
      row_seq.push_back(static_cast<int>(s));
    }
    const int context = rows.first + rows.rows;
    for (int b = 0; b * 64 < context; ++b) {
      table[s * stride + b] = order[next];
      page_tokens_[order[next++]] = std::min(64, context - b * 64);
    }
  }
  args_.num_rows = begin.back();
  args_.num_seqs = static_cast<int>(sequences_.size());
  args_.positions = Upload(positions);
  args_.row_seq = Upload(row_seq);
  args_.row_begin = Upload(begin);
  args_.one_row_each = std::all_of(sequences_.begin(), sequences_.end(),
                                   [](const SparseRows& rows) { return rows.rows == 1; });
  args_.first_position = Upload(first);
  args_.page_table = Upload(table);
  args_.page_table_stride = stride;
  args_.slab_index = Upload(slabs);
}

inline void SparseCase::MakeWindow() {
  constexpr int64_t kFront = 64;  // bytes of other layers
  const int64_t k_count = int64_t{shape_.kv_heads} * shape_.window * shape_.dim;
  const int64_t v_count = int64_t{shape_.kv_heads} * shape_.window * shape_.v_dim;
  args_.ring_k_offset_bytes = kFront;
  args_.ring_v_offset_bytes = kFront + 2 * k_count;
  args_.slab_stride_bytes = kFront + 2 * (k_count + v_count);
  const int64_t stride = args_.slab_stride_bytes / 2;
  uint16_t* ring = const_cast<uint16_t*>(RandomArray(stride * args_.num_seqs, 1.0f));
  args_.ring = reinterpret_cast<const char*>(ring);
  std::vector<int> valid(args_.num_seqs);  // by slab
  for (int s = 0; s < args_.num_seqs; ++s) valid[args_.num_seqs - 1 - s] = sequences_[s].first;
  const int* device_valid = Upload(valid);
  PoisonSlots<<<args_.num_seqs, 256>>>(ring + kFront / 2, device_valid, stride, shape_.kv_heads,
                                       shape_.window, shape_.dim);
  PoisonSlots<<<args_.num_seqs, 256>>>(ring + kFront / 2 + k_count, device_valid, stride,
                                       shape_.kv_heads, shape_.window, shape_.v_dim);
  BENCH_CHECK(cudaGetLastError());
  args_.step_k = RandomMatrix(int64_t{shape_.kv_heads} * shape_.dim, 1.0f);
  args_.step_v = RandomMatrix(int64_t{shape_.kv_heads} * shape_.v_dim, 1.0f);
  args_.window_gate = RandomGate();
  if (options_.sinks) {
    std::vector<float> sinks(2 * shape_.heads);
    std::normal_distribution<float> normal;
    for (float& sink : sinks) sink = normal(random_);
    args_.window_sink = Upload(sinks);
    args_.sparse_sink = args_.window_sink + shape_.heads;
  }
}

inline void SparseCase::MakePages() {
  const int64_t k_slice = int64_t{shape_.kv_heads} * 64 * shape_.dim;
  const int64_t slice = k_slice + int64_t{shape_.kv_heads} * 64 * shape_.v_dim;
  const int pages = static_cast<int>(page_tokens_.size());
  uint16_t* data = const_cast<uint16_t*>(RandomArray(slice * pages, 1.0f));
  const int* valid = Upload(page_tokens_);
  PoisonSlots<<<pages, 256>>>(data, valid, slice, shape_.kv_heads, 64, shape_.dim);
  PoisonSlots<<<pages, 256>>>(data + k_slice, valid, slice, shape_.kv_heads, 64, shape_.v_dim);
  BENCH_CHECK(cudaGetLastError());
  args_.pages = data;
  args_.num_blocks = pages;
  args_.selected_blocks = shape_.selected;
  args_.sparse_gate = RandomGate();
}

inline void SparseCase::Select() {
  const int k = shape_.selected;
  const int stable = options_.pattern == Pattern::kNeighbours ? k * 3 / 4
                     : options_.pattern == Pattern::kSame     ? k
                                                              : 0;
  selection_.assign(int64_t{args_.num_rows} * shape_.kv_heads * k, -1);
  int64_t row0 = 0;
  for (const SparseRows& rows : sequences_) {
    for (int g = 0; g < shape_.kv_heads; ++g) {
      std::set<int> base;
      std::vector<int> pool(2 * k);
      for (int i = 0; i < rows.rows; ++i) {
        const int blocks = (rows.first + i) / 64 + 1;
        const auto draw = [&] { return static_cast<int>(random_() % blocks); };
        std::set<int> chosen;
        if (blocks <= k) {
          for (int b = 0; b < blocks; ++b) chosen.insert(b);
        } else {
          if (i % 64 == 0) {
            for (int& b : pool) b = draw();
            pool[0] = blocks - 1;
            if (options_.pattern == Pattern::kSame) base.clear();
          }
          if (options_.pattern == Pattern::kNeighbours && i % 4 == 0 && !base.empty()) {
            base.erase(std::next(base.begin(), random_() % base.size()));
          }
          while (static_cast<int>(base.size()) < stable) base.insert(draw());
          chosen = base;
          for (int tries = 0; static_cast<int>(chosen.size()) < k; ++tries) {
            const bool shared = options_.pattern == Pattern::kNeighbours && tries < 64;
            chosen.insert(shared ? pool[random_() % pool.size()] : draw());
          }
        }
        std::copy(chosen.begin(), chosen.end(),
                  selection_.begin() + ((row0 + i) * shape_.kv_heads + g) * k);
      }
    }
    row0 += rows.rows;
  }
  args_.selection = Upload(selection_);
}

inline double SparseCase::MeanUnion(int tokens) const {
  double sum = 0;
  int64_t tiles = 0;
  int row0 = 0;
  for (const SparseRows& rows : sequences_) {
    for (int g = 0; g < shape_.kv_heads; ++g) {
      for (int begin = 0; begin < rows.rows; begin += tokens, ++tiles) {
        std::set<int> all;
        for (int i = begin; i < std::min(begin + tokens, rows.rows); ++i) {
          const auto* ids =
              &selection_[(int64_t{row0 + i} * shape_.kv_heads + g) * shape_.selected];
          all.insert(ids, ids + shape_.selected);
        }
        all.erase(-1);
        sum += static_cast<double>(all.size());
      }
    }
    row0 += rows.rows;
  }
  return sum / static_cast<double>(tiles);
}

inline double SparseCase::DecodeBytes() const {
  double keys = 0;
  for (const SparseRows& rows : sequences_) {
    for (int i = 0; i < rows.rows; ++i) {
      const int context = rows.first + i + 1;
      keys += std::min(context, shape_.window);
      if (args_.selection != nullptr) keys += std::min(context, shape_.selected * 64);
    }
  }
  return keys * shape_.kv_heads * (shape_.dim + shape_.v_dim) * 2;
}

inline std::vector<int> SparseCase::Sample(int min_rows, int max_rows) const {
  std::vector<int> rows;
  int row0 = 0;
  for (const SparseRows& seq : sequences_) {
    const int step = seq.rows / 100 + 1;
    for (int i = 0; i < seq.rows && seq.rows > min_rows && seq.rows <= max_rows; ++i) {
      if (i < 40 || i >= seq.rows - 40 || i % step == 0) rows.push_back(row0 + i);
    }
    row0 += seq.rows;
  }
  return rows;
}

inline double SparseCase::Error(const std::vector<int>& rows) {
  const int64_t cols = int64_t{shape_.heads} * shape_.v_dim;
  const int* device_rows = Upload(rows);
  float* out = Array<float>(rows.size() * cols);
  const int bytes = std::max(shape_.window, shape_.selected * 64) * 4;
  const dim3 grid(static_cast<unsigned>(rows.size()), shape_.heads);
  ReferenceKernel<<<grid, 128, bytes>>>(args_, device_rows, out);
  BENCH_CHECK(cudaGetLastError());
  const std::vector<float> want = Download(out, rows.size() * cols);
  const std::vector<uint16_t> all = Output();
  std::vector<float> got(want.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    for (int64_t c = 0; c < cols; ++c) {
      const uint32_t bits = uint32_t{all[rows[i] * args_.out_stride + c]} << 16;
      std::memcpy(&got[i * cols + c], &bits, 4);
    }
  }
  return hyserve::bench::RelativeError(got, want);
}

}  // namespace hyserve::kernels::cuda::bench

#endif  // HYSERVE_BENCHMARKS_KERNELS_CUDA_SPARSE_CASE_CUH_
