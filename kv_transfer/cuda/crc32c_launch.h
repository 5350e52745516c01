// CRC32C of device memory: the kernel's launch and the host's part of the sum.
#ifndef HYSERVE_KV_TRANSFER_CUDA_CRC32C_LAUNCH_H_
#define HYSERVE_KV_TRANSFER_CUDA_CRC32C_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace hyserve::kv_transfer::cuda {

// Number of partial results for a message: one per chunk of kCrcChunkBytes, counted from the end.
size_t Crc32cPartials(size_t bytes);

// Copies the tables to the device and returns where they lie; to be freed with cudaFree.
cudaError_t Crc32cUploadTables(const void** tables, cudaStream_t stream);

struct CrcRange {
  const void* data = nullptr;
  size_t bytes = 0;  // > 0
};
inline constexpr int kMaxCrcRanges = 512;

// Enqueues, as one launch, the raw checksum of every chunk of `count` (1 .. kMaxCrcRanges) ranges
// into `partials`, range after range: memory that the device can write (pinned host memory is
// fine). Any alignment; 16 bytes is the fast one. `tables` from Crc32cUploadTables.
cudaError_t Crc32cLaunch(const CrcRange* ranges, int count, const void* tables, uint32_t* partials,
                         cudaStream_t stream);

// What kv_transfer's Crc32c(data, bytes, crc) gives, from the partial results of a range.
uint32_t Crc32cCombine(const uint32_t* partials, size_t bytes, uint32_t crc = 0);

}  // namespace hyserve::kv_transfer::cuda

#endif  // HYSERVE_KV_TRANSFER_CUDA_CRC32C_LAUNCH_H_
