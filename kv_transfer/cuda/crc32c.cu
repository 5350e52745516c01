// CRC32C of device memory. A chunk's words are dealt to the threads of one block so that loads are
// coalesced; every thread carries four checksums (one per word of its 16 bytes) from tile to tile
// with one table look-up map, and in the end the 1024 checksums are summed up by a tree.
#include "kv_transfer/cuda/crc32c_launch.h"
#include "kv_transfer/cuda/crc32c_maps.h"

namespace hyserve::kv_transfer::cuda {
namespace {

constexpr CrcKernelTables kTables = MakeKernelTables();
constexpr int kWarps = kCrcThreads / 32;
constexpr int kWarpLevels = 5;
constexpr int kTilesPerGroup = 4;  // loads in flight per thread
constexpr auto kGroupBytes = static_cast<int64_t>(kTilesPerGroup * kCrcTileBytes);
static_assert(kCrcChunkBytes % (kTilesPerGroup * kCrcTileBytes) == 0);

__device__ __forceinline__ uint32_t Advance(const CrcTable& table, uint32_t crc) {
  uint32_t sum = 0;
#pragma unroll
  for (int group = 0; group < kTableGroups; ++group) {
    sum ^= table.entry[group][crc >> (5 * group) & 31];
  }
  return sum;
}

// 16 bytes at `offset`, which may begin before the message: zeros there.
template <bool kAligned>
__device__ __forceinline__ uint4 Load(const unsigned char* data, int64_t offset) {
  if constexpr (kAligned) {
    if (offset < 0) return make_uint4(0, 0, 0, 0);
    return __ldg(reinterpret_cast<const uint4*>(data + offset));
  } else {
    uint32_t word[4];
    for (int w = 0; w < 4; ++w) {
      word[w] = 0;
      for (int b = 0; b < 4; ++b) {
        const int64_t at = offset + 4 * w + b;
        if (at >= 0) word[w] |= static_cast<uint32_t>(data[at]) << (8 * b);
      }
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
  }
}

template <bool kAligned>
__device__ __forceinline__ void LoadGroup(const unsigned char* data, int64_t offset,
                                          uint4 (&words)[kTilesPerGroup]) {
#pragma unroll
  for (int tile = 0; tile < kTilesPerGroup; ++tile) {
    words[tile] = Load<kAligned>(data, offset + tile * static_cast<int64_t>(kCrcTileBytes));
  }
}

// What this thread's words of a chunk add up to, advanced to the end of its own 16 bytes. `offset` is
// where the chunk begins in the message; it may lie before it.
template <bool kAligned>
__device__ __forceinline__ uint32_t ThreadCrc(const unsigned char* data, int64_t offset,
                                              const CrcKernelTables& tables) {
  const int64_t end = offset + static_cast<int64_t>(kCrcChunkBytes);
  if (offset < 0) offset += -offset / kGroupBytes * kGroupBytes;  // skip whole groups of zeros
  offset += 16 * static_cast<int>(threadIdx.x);
  uint32_t crc0 = 0;
  uint32_t crc1 = 0;
  uint32_t crc2 = 0;
  uint32_t crc3 = 0;
  uint4 next[kTilesPerGroup];
  LoadGroup<kAligned>(data, offset, next);
  __syncthreads();  // the tables are there
  while (true) {
    uint4 words[kTilesPerGroup];
#pragma unroll
    for (int tile = 0; tile < kTilesPerGroup; ++tile) words[tile] = next[tile];
    offset += kGroupBytes;
    const bool more = offset < end;
    if (more) LoadGroup<kAligned>(data, offset, next);
#pragma unroll
    for (int tile = 0; tile < kTilesPerGroup; ++tile) {
      // The zero of the first tile stays zero, so advancing it costs time only.
      crc0 = Advance(tables.tile, crc0) ^ words[tile].x;
      crc1 = Advance(tables.tile, crc1) ^ words[tile].y;
      crc2 = Advance(tables.tile, crc2) ^ words[tile].z;
      crc3 = Advance(tables.tile, crc3) ^ words[tile].w;
    }
    if (!more) break;
  }
  uint32_t crc = Advance(tables.word, crc0) ^ crc1;
  crc = Advance(tables.word, crc) ^ crc2;
  crc = Advance(tables.word, crc) ^ crc3;
  return Advance(tables.word, crc);
}

struct KernelRanges {
  const unsigned char* data[kMaxCrcRanges];
  int64_t bytes[kMaxCrcRanges];
  uint32_t first_block[kMaxCrcRanges + 1];  // ascending
  int count;
};

__global__ void __launch_bounds__(kCrcThreads)
    Crc32cKernel(const __grid_constant__ KernelRanges ranges,
                 const CrcKernelTables* __restrict__ tables, uint32_t* __restrict__ partials) {
  __shared__ CrcKernelTables shared;
  __shared__ uint32_t warp_crc[kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  constexpr int kTableWords = static_cast<int>(sizeof(CrcKernelTables) / sizeof(uint32_t));
  for (int i = thread; i < kTableWords; i += kCrcThreads) {
    reinterpret_cast<uint32_t*>(&shared)[i] = reinterpret_cast<const uint32_t*>(tables)[i];
  }
  int range = 0;
  for (int step = kMaxCrcRanges / 2; step > 0; step /= 2) {
    const int next = range + step;
    if (next < ranges.count && ranges.first_block[next] <= blockIdx.x) range = next;
  }
  // Chunks are cut from the end, so only the first one is partial; it begins with zeros.
  const unsigned char* data = ranges.data[range];
  const int64_t bytes = ranges.bytes[range];
  const int64_t chunks_from_end = ranges.first_block[range + 1] - blockIdx.x;
  const int64_t offset = bytes - chunks_from_end * static_cast<int64_t>(kCrcChunkBytes);
  const bool aligned = (reinterpret_cast<uintptr_t>(data) | static_cast<uint64_t>(bytes)) % 16 == 0;
  uint32_t crc = aligned ? ThreadCrc<true>(data, offset, shared)
                         : ThreadCrc<false>(data, offset, shared);
#pragma unroll
  for (int level = 0; level < kWarpLevels; ++level) {
    const uint32_t right = __shfl_down_sync(0xFFFFFFFFu, crc, 1 << level);
    crc = Advance(shared.level[level], crc) ^ right;
  }
  if (thread % 32 == 0) warp_crc[thread / 32] = crc;
  __syncthreads();
  if (thread >= 32) return;
  crc = warp_crc[thread % kWarps];
#pragma unroll
  for (int level = kWarpLevels; level < kTreeLevels; ++level) {
    const uint32_t right = __shfl_down_sync(0xFFFFFFFFu, crc, 1 << (level - kWarpLevels));
    crc = Advance(shared.level[level], crc) ^ right;
  }
  if (thread == 0) partials[blockIdx.x] = crc;
}

}  // namespace

size_t Crc32cPartials(size_t bytes) { return (bytes + kCrcChunkBytes - 1) / kCrcChunkBytes; }

cudaError_t Crc32cUploadTables(const void** tables, cudaStream_t stream) {
  void* memory = nullptr;
  cudaError_t error = cudaMalloc(&memory, sizeof(kTables));
  if (error != cudaSuccess) return error;
  error = cudaMemcpyAsync(memory, &kTables, sizeof(kTables), cudaMemcpyHostToDevice, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  if (error != cudaSuccess) {
    cudaFree(memory);
    return error;
  }
  *tables = memory;
  return cudaSuccess;
}

cudaError_t Crc32cLaunch(const CrcRange* ranges, int count, const void* tables, uint32_t* partials,
                         cudaStream_t stream) {
  if (count < 1 || count > kMaxCrcRanges) return cudaErrorInvalidValue;
  KernelRanges arguments{};
  arguments.count = count;
  size_t blocks = 0;
  for (int i = 0; i < count; ++i) {
    arguments.data[i] = static_cast<const unsigned char*>(ranges[i].data);
    arguments.bytes[i] = static_cast<int64_t>(ranges[i].bytes);
    arguments.first_block[i] = static_cast<uint32_t>(blocks);
    blocks += Crc32cPartials(ranges[i].bytes);
  }
  arguments.first_block[count] = static_cast<uint32_t>(blocks);
  Crc32cKernel<<<static_cast<unsigned>(blocks), kCrcThreads, 0, stream>>>(
      arguments, static_cast<const CrcKernelTables*>(tables), partials);
  return cudaGetLastError();
}

uint32_t Crc32cCombine(const uint32_t* partials, size_t bytes, uint32_t crc) {
  if (bytes == 0) return crc;
  static constexpr CrcTable kChunk = ToTable(AdvanceMap(kCrcChunkBytes));
  const size_t count = Crc32cPartials(bytes);
  const size_t first = bytes - (count - 1) * kCrcChunkBytes;
  const CrcTable& whole = kChunk;
  crc = ~crc;
  crc = (first == kCrcChunkBytes ? whole(crc) : AdvanceMap(first)(crc)) ^ partials[0];
  for (size_t i = 1; i < count; ++i) crc = whole(crc) ^ partials[i];
  return ~crc;
}

}  // namespace hyserve::kv_transfer::cuda
