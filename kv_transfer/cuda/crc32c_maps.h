// CRC32C as linear algebra over its 32 bits: advancing a checksum over n zero bytes is a linear
// map, and so the checksum of a message is the sum (xor) of its parts' checksums, each advanced
// over the bytes behind it. Shared by the kernel and by the host code that adds up its results.
//
// "Raw" checksums start from 0 and are not inverted at the end; leading zeros do not change them.
#ifndef HYSERVE_KV_TRANSFER_CUDA_CRC32C_MAPS_H_
#define HYSERVE_KV_TRANSFER_CUDA_CRC32C_MAPS_H_

#include <cstddef>
#include <cstdint>

namespace hyserve::kv_transfer::cuda {

inline constexpr uint32_t kCrc32cPolynomial = 0x82F63B78;  // bit-reflected

// A linear map of 32 bits: the images of the single bits.
struct CrcMap {
  uint32_t image[32];

  constexpr uint32_t operator()(uint32_t crc) const {
    uint32_t sum = 0;
    for (int bit = 0; bit < 32; ++bit) {
      if ((crc >> bit & 1) != 0) sum ^= image[bit];
    }
    return sum;
  }
};

// Advancing over `bytes` zero bytes, by squaring: O(log bytes).
constexpr CrcMap AdvanceMap(size_t bytes) {
  CrcMap result{};
  CrcMap step{};  // over one zero byte, then two, four, ...
  for (int bit = 0; bit < 32; ++bit) {
    result.image[bit] = uint32_t{1} << bit;
    uint32_t crc = uint32_t{1} << bit;
    for (int i = 0; i < 8; ++i) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kCrc32cPolynomial : 0);
    step.image[bit] = crc;
  }
  for (; bytes != 0; bytes >>= 1) {
    if ((bytes & 1) != 0) {
      for (int bit = 0; bit < 32; ++bit) result.image[bit] = step(result.image[bit]);
    }
    CrcMap square{};
    for (int bit = 0; bit < 32; ++bit) square.image[bit] = step(step.image[bit]);
    step = square;
  }
  return result;
}

// The same map as seven tables of 32 entries, one per five bits of the argument: a table fills the
// 32 banks of shared memory once, so that a warp reads it without conflicts whatever it looks up.
inline constexpr int kTableGroups = 7;
struct CrcTable {
  uint32_t entry[kTableGroups][32];

  constexpr uint32_t operator()(uint32_t crc) const {
    uint32_t sum = 0;
    for (int group = 0; group < kTableGroups; ++group) {
      sum ^= entry[group][crc >> (5 * group) & 31];
    }
    return sum;
  }
};

constexpr CrcTable ToTable(const CrcMap& map) {
  CrcTable table{};
  for (int group = 0; group < kTableGroups; ++group) {
    for (uint32_t value = 0; value < 32; ++value) {
      const int shift = 5 * group;
      table.entry[group][value] = map(shift < 30 ? value << shift : (value & 3) << 30);
    }
  }
  return table;
}

// One thread block sums up a chunk; its threads take 16 bytes of every tile of 4096.
inline constexpr int kCrcThreads = 256;
inline constexpr size_t kCrcTileBytes = size_t{kCrcThreads} * 16;
inline constexpr size_t kCrcChunkBytes = 16 * kCrcTileBytes;

// The maps that the kernel needs: from tile to tile, over one word, and over the 16 << level bytes
// that two halves of a tree are apart.
inline constexpr int kTreeLevels = 8;
struct CrcKernelTables {
  CrcTable tile;
  CrcTable word;
  CrcTable level[kTreeLevels];
};

constexpr CrcKernelTables MakeKernelTables() {
  CrcKernelTables tables{};
  tables.tile = ToTable(AdvanceMap(kCrcTileBytes));
  tables.word = ToTable(AdvanceMap(4));
  for (int level = 0; level < kTreeLevels; ++level) {
    tables.level[level] = ToTable(AdvanceMap(size_t{16} << level));
  }
  return tables;
}

}  // namespace hyserve::kv_transfer::cuda

#endif  // HYSERVE_KV_TRANSFER_CUDA_CRC32C_MAPS_H_
