// CRC32C (Castagnoli polynomial, as in RFC 3720 B.4) of host memory. Uses the SSE4.2 instruction on
// three streams at once where the CPU has it, tables elsewhere; chosen once, at run time.
// Thread-safe.
#ifndef HYSERVE_KV_TRANSFER_CRC32C_H_
#define HYSERVE_KV_TRANSFER_CRC32C_H_

#include <cstddef>
#include <cstdint>

#include "kv_transfer/cuda/crc32c_maps.h"

namespace hyserve::kv_transfer {

// Extends `crc`, the checksum of the bytes before `data` (0 for none), by `bytes` bytes.
uint32_t Crc32c(const void* data, size_t bytes, uint32_t crc = 0);

// The checksum of a message from those of its parts: of everything before the last part, and of the
// last part, which has `bytes` bytes.
class Crc32cAppend {
 public:
  explicit Crc32cAppend(size_t bytes) : advance_(cuda::ToTable(cuda::AdvanceMap(bytes))) {}
  uint32_t operator()(uint32_t head, uint32_t tail) const { return advance_(head) ^ tail; }

 private:
  cuda::CrcTable advance_;
};

// The two implementations, for tests. REQUIRES for the hardware one: Crc32cHasHardware().
bool Crc32cHasHardware();
uint32_t Crc32cHardware(const void* data, size_t bytes, uint32_t crc);
uint32_t Crc32cPortable(const void* data, size_t bytes, uint32_t crc);

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_CRC32C_H_
