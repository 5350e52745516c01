#include "kv_transfer/cuda/copy_parts.h"

#include <cstdint>

namespace hyserve::kv_transfer::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVectorsPerThread = 8;  // of 16 bytes, in flight
constexpr int64_t kVectorsPerBlock = int64_t{kThreads} * kVectorsPerThread;

struct Arguments {
  uint4* to[kMaxCopyParts];
  const uint4* from[kMaxCopyParts];
  int64_t vectors[kMaxCopyParts];
  uint32_t first_block[kMaxCopyParts + 1];  // ascending
  int count;
};

__global__ void __launch_bounds__(kThreads)
    CopyPartsKernel(const __grid_constant__ Arguments arguments) {
  int part = 0;
  for (int step = kMaxCopyParts / 2; step > 0; step /= 2) {
    const int next = part + step;
    if (next < arguments.count && arguments.first_block[next] <= blockIdx.x) part = next;
  }
  const int64_t begin =
      (blockIdx.x - arguments.first_block[part]) * kVectorsPerBlock + threadIdx.x;
  const int64_t end = arguments.vectors[part];
  const uint4* from = arguments.from[part];
  uint4* to = arguments.to[part];
  uint4 vectors[kVectorsPerThread];
#pragma unroll
  for (int i = 0; i < kVectorsPerThread; ++i) {
    const int64_t at = begin + i * kThreads;
    if (at < end) vectors[i] = __ldcs(from + at);
  }
#pragma unroll
  for (int i = 0; i < kVectorsPerThread; ++i) {
    const int64_t at = begin + i * kThreads;
    if (at < end) to[at] = vectors[i];
  }
}

}  // namespace

bool CopyPartsFit(const CopyPart* parts, int count) {
  for (int i = 0; i < count; ++i) {
    if ((reinterpret_cast<uintptr_t>(parts[i].to) | reinterpret_cast<uintptr_t>(parts[i].from) |
         parts[i].bytes) % 16 != 0) {
      return false;
    }
  }
  return true;
}

cudaError_t CopyPartsLaunch(const CopyPart* parts, int count, cudaStream_t stream) {
  if (count < 1 || count > kMaxCopyParts) return cudaErrorInvalidValue;
  Arguments arguments{};
  arguments.count = count;
  int64_t blocks = 0;
  for (int i = 0; i < count; ++i) {
    arguments.to[i] = static_cast<uint4*>(parts[i].to);
    arguments.from[i] = static_cast<const uint4*>(parts[i].from);
    arguments.vectors[i] = static_cast<int64_t>(parts[i].bytes / 16);
    arguments.first_block[i] = static_cast<uint32_t>(blocks);
    blocks += (arguments.vectors[i] + kVectorsPerBlock - 1) / kVectorsPerBlock;
  }
  arguments.first_block[count] = static_cast<uint32_t>(blocks);
  CopyPartsKernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace hyserve::kv_transfer::cuda
