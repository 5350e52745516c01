#include "engine/kernels/cuda/dense_ops.h"

#include <algorithm>

#include "engine/kernels/cuda/overlap.cuh"
#include "engine/kernels/cuda/vector_io.cuh"

namespace hyserve::kernels::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;

bool Aligned16(const void* data, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride_bytes % 16 == 0;
}
bool Aligned16(const Bf16Matrix& matrix) {
  return matrix.data == nullptr || Aligned16(matrix.data, matrix.row_stride * 2);
}

// Sum over the block in a fixed order; every thread gets it. scratch: one float per warp. Once a
// kernel.
__device__ float BlockSum(float x, float* scratch) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  const int warp = threadIdx.x / kWarp;
  const int num_warps = blockDim.x / kWarp;
  if (threadIdx.x % kWarp == 0) scratch[warp] = x;
  __syncthreads();
  x = threadIdx.x % kWarp < num_warps ? scratch[threadIdx.x % kWarp] : 0.0f;
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

// Eight weights; zeros past the end of the row.
template <bool kAligned>
__device__ Floats8 LoadWeight(const float* weight, int count) {
  if constexpr (kAligned) {
    const float4 low = *reinterpret_cast<const float4*>(weight);
    const float4 high = *reinterpret_cast<const float4*>(weight + 4);
    return {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  } else {
    Floats8 w;
#pragma unroll
    for (int i = 0; i < kVector; ++i) w.v[i] = i < count ? weight[i] : 0.0f;
    return w;
  }
}

// A block per row; thread t has its vectors t, t + threads, ... So the order of a row's sum depends
// on the number of columns only. kVectors > 0: so many per thread, kept in registers as bf16, which
// they are after the addition; 0: any number, read again for the second pass.
template <int kVectors, bool kAligned>
__global__ void __launch_bounds__(kMaxThreads, kVectors == 1 ? 2 : 1)
    AddRmsNormKernel(AddRmsNormLaunch p) {
  constexpr int kKept = kVectors > 0 ? kVectors : 1;
  __shared__ float scratch[kWarp];
  const int64_t row = blockIdx.x;
  const int cols = static_cast<int>(p.num_cols);
  const int threads = static_cast<int>(blockDim.x);
  const int num_vectors =
      kVectors > 0 ? kVectors : (cols + kVector * threads - 1) / (kVector * threads);
  const auto column = [&](int i) {
    return (i * threads + static_cast<int>(threadIdx.x)) * kVector;
  };
  __nv_bfloat16* hidden = p.hidden.data + row * p.hidden.row_stride;
  const __nv_bfloat16* delta =
      p.delta.data == nullptr ? nullptr : p.delta.data + row * p.delta.row_stride;

  LetNextKernelStart();
  Floats8 weight = {};  // of the first vector
  if (p.out.data != nullptr && column(0) < cols) {
    weight = LoadWeight<kAligned>(p.weight + column(0), cols - column(0));
  }
  WaitForPriorKernels();
  uint4 kept[kKept];
  uint4 added[kKept];
  const auto load = [&](int i, int col) {
    kept[i] = LoadPacked<kAligned>(hidden + col, cols - col);
    if (delta != nullptr) added[i] = LoadPacked<kAligned>(delta + col, cols - col);
  };
  if constexpr (kVectors > 0) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {  // all loads first, so that they overlap
      if (column(i) < cols) load(i, column(i));
    }
  }

  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < num_vectors; ++i) {
    const int col = column(i);
    const int k = kVectors > 0 ? i : 0;
    if (col >= cols) break;
    if constexpr (kVectors == 0) load(0, col);
    Floats8 x = Unpack(kept[k]);
    if (delta != nullptr) {
      const Floats8 d = Unpack(added[k]);
#pragma unroll
      for (int j = 0; j < kVector; ++j) x.v[j] += d.v[j];
      kept[k] = Pack(x);
      StorePacked<kAligned>(hidden + col, kept[k], cols - col);
      x = Unpack(kept[k]);
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) squares = fmaf(x.v[j], x.v[j], squares);
  }
  if (p.out.data == nullptr) return;
  const float mean = BlockSum(squares, scratch) / static_cast<float>(cols);
  const float factor = 1.0f / sqrtf(mean + p.epsilon);
  __nv_bfloat16* out = p.out.data + row * p.out.row_stride;
#pragma unroll
  for (int i = 0; i < num_vectors; ++i) {
    const int col = column(i);
    if (col >= cols) break;
    if (i > 0) weight = LoadWeight<kAligned>(p.weight + col, cols - col);
    if constexpr (kVectors == 0) kept[0] = LoadPacked<kAligned>(hidden + col, cols - col);
    Floats8 x = Unpack(kept[kVectors > 0 ? i : 0]);
#pragma unroll
    for (int j = 0; j < kVector; ++j) x.v[j] = x.v[j] * factor * weight.v[j];
    Store8<kAligned>(out + col, x, cols - col);
  }
}

template <bool kAligned>
cudaError_t LaunchAddRmsNorm(const AddRmsNormLaunch& launch, cudaStream_t stream) {
  const int64_t vectors = (launch.num_cols + kVector - 1) / kVector;
  const int64_t per_thread = (vectors + kMaxThreads - 1) / kMaxThreads;
  const int64_t threads = (vectors + per_thread - 1) / per_thread;
  const auto kernel = per_thread == 1   ? AddRmsNormKernel<1, kAligned>
                      : per_thread == 2 ? AddRmsNormKernel<2, kAligned>
                                        : AddRmsNormKernel<0, kAligned>;
  return LaunchOverlapped(kernel, dim3(static_cast<unsigned>(launch.num_rows)),
                          static_cast<int>((threads + kWarp - 1) / kWarp * kWarp), 0, stream,
                          launch);
}

template <bool kAligned>
__global__ void SwiGluKernel(const __nv_bfloat16* gate, const __nv_bfloat16* up,
                             int64_t gate_up_stride, Bf16Matrix out, int num_cols,
                             FastDivide vectors_per_row, uint32_t num_vectors) {
  LetNextKernelStart();
  WaitForPriorKernels();
  const uint32_t vector = blockIdx.x * blockDim.x + threadIdx.x;
  if (vector >= num_vectors) return;
  const uint32_t row = vectors_per_row.Quotient(vector);
  const int col = static_cast<int>(vectors_per_row.Remainder(vector, row)) * kVector;
  const int64_t offset = row * gate_up_stride + col;
  const Floats8 g = Load8<kAligned>(gate + offset, num_cols - col);
  const Floats8 u = Load8<kAligned>(up + offset, num_cols - col);
  Floats8 y;
#pragma unroll
  for (int i = 0; i < kVector; ++i) y.v[i] = Silu(g.v[i]) * u.v[i];
  Store8<kAligned>(out.data + row * out.row_stride + col, y, num_cols - col);
}

// A block copies one row.
template <typename Word>
__global__ void GatherKernel(GatherLaunch p) {
  LetNextKernelStart();
  WaitForPriorKernels();
  const int64_t row = blockIdx.x;
  const auto* from = reinterpret_cast<const Word*>(static_cast<const char*>(p.source) +
                                                   p.rows[row] * p.source_stride_bytes);
  auto* to = reinterpret_cast<Word*>(static_cast<char*>(p.out) + row * p.out_stride_bytes);
  const int64_t words = p.row_bytes / static_cast<int64_t>(sizeof(Word));
  for (int64_t i = threadIdx.x; i < words; i += blockDim.x) to[i] = from[i];
}

__global__ void GatherF32Kernel(const float* table, int64_t table_stride, const int32_t* rows,
                                Bf16Matrix out, int64_t num_cols) {
  LetNextKernelStart();
  WaitForPriorKernels();
  const int64_t row = blockIdx.x;
  const float* from = table + rows[row] * table_stride;
  __nv_bfloat16* to = out.data + row * out.row_stride;
  for (int64_t i = threadIdx.x; i < num_cols; i += blockDim.x) to[i] = __float2bfloat16_rn(from[i]);
}

template <typename Word>
cudaError_t LaunchGather(const GatherLaunch& launch, cudaStream_t stream) {
  const int64_t words = launch.row_bytes / static_cast<int64_t>(sizeof(Word));
  const int threads =
      static_cast<int>(std::clamp<int64_t>((words + kWarp - 1) / kWarp * kWarp, kWarp, 512));
  return LaunchOverlapped(GatherKernel<Word>, dim3(static_cast<unsigned>(launch.num_rows)), threads,
                          0, stream, launch);
}

}  // namespace

cudaError_t LaunchAddRmsNorm(const AddRmsNormLaunch& launch, cudaStream_t stream) {
  const bool aligned = launch.num_cols % kVector == 0 && Aligned16(launch.hidden) &&
                       Aligned16(launch.delta) && Aligned16(launch.out) &&
                       reinterpret_cast<uintptr_t>(launch.weight) % 16 == 0;
  return aligned ? LaunchAddRmsNorm<true>(launch, stream)
                 : LaunchAddRmsNorm<false>(launch, stream);
}

cudaError_t LaunchSwiGlu(const __nv_bfloat16* gate, const __nv_bfloat16* up, int64_t gate_up_stride,
                         Bf16Matrix out, int64_t num_rows, int64_t num_cols, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t vectors_per_row = (num_cols + kVector - 1) / kVector;
  const bool aligned = num_cols % kVector == 0 && Aligned16(gate, gate_up_stride * 2) &&
                       Aligned16(up, gate_up_stride * 2) && Aligned16(out);
  const int64_t rows_per_launch =
      std::max<int64_t>(1, (int64_t{1} << 30) / vectors_per_row);  // 32-bit indices
  for (int64_t row = 0; row < num_rows; row += rows_per_launch) {
    const int64_t rows = std::min(rows_per_launch, num_rows - row);
    const auto vectors = static_cast<uint32_t>(rows * vectors_per_row);
    const auto kernel = aligned ? SwiGluKernel<true> : SwiGluKernel<false>;
    const cudaError_t error = LaunchOverlapped(
        kernel, dim3((vectors + kThreads - 1) / kThreads), kThreads, 0, stream,
        gate + row * gate_up_stride, up + row * gate_up_stride, gate_up_stride,
        Bf16Matrix{out.data + row * out.row_stride, out.row_stride}, static_cast<int>(num_cols),
        FastDivide(static_cast<uint32_t>(vectors_per_row)), vectors);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t LaunchGather(const GatherLaunch& launch, cudaStream_t stream) {
  const auto all_multiples_of = [&](uintptr_t bytes) {
    return (reinterpret_cast<uintptr_t>(launch.source) | reinterpret_cast<uintptr_t>(launch.out) |
            static_cast<uintptr_t>(launch.source_stride_bytes) |
            static_cast<uintptr_t>(launch.out_stride_bytes) |
            static_cast<uintptr_t>(launch.row_bytes)) %
               bytes ==
           0;
  };
  if (all_multiples_of(16)) return LaunchGather<uint4>(launch, stream);
  if (all_multiples_of(4)) return LaunchGather<uint32_t>(launch, stream);
  return LaunchGather<uint16_t>(launch, stream);
}

cudaError_t LaunchGatherF32(const float* table, int64_t table_stride, const int32_t* rows,
                            Bf16Matrix out, int64_t num_rows, int64_t num_cols,
                            cudaStream_t stream) {
  return LaunchOverlapped(GatherF32Kernel, dim3(static_cast<unsigned>(num_rows)), 256, 0, stream,
                          table, table_stride, rows, out, num_cols);
}

}  // namespace hyserve::kernels::cuda
