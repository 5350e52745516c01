#include "kv_transfer/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace hyserve::kv_transfer {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;  // bit-reflected

// table[k][b]: effect of byte b followed by k zero bytes.
using ByteTables = std::array<std::array<uint32_t, 256>, 8>;

constexpr ByteTables MakeByteTables() {
  ByteTables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (size_t k = 1; k < tables.size(); ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t previous = tables[k - 1][byte];
      tables[k][byte] = (previous >> 8) ^ tables[0][previous & 0xFF];
    }
  }
  return tables;
}
constexpr ByteTables kByteTables = MakeByteTables();

#if defined(__x86_64__)
// A checksum advanced over a fixed number of zero bytes is a linear map of its 32 bits, kept as one
// table per byte of the checksum.
using ShiftTables = std::array<std::array<uint32_t, 256>, 4>;

ShiftTables MakeShiftTables(size_t zero_bytes) {
  std::array<uint32_t, 32> image;  // of every single bit
  for (int bit = 0; bit < 32; ++bit) {
    uint32_t crc = uint32_t{1} << bit;
    for (size_t i = 0; i < zero_bytes; ++i) crc = (crc >> 8) ^ kByteTables[0][crc & 0xFF];
    image[bit] = crc;
  }
  ShiftTables tables{};
  for (int byte = 0; byte < 4; ++byte) {
    for (uint32_t value = 0; value < 256; ++value) {
      uint32_t sum = 0;
      for (int bit = 0; bit < 8; ++bit) {
        if ((value >> bit & 1) != 0) sum ^= image[byte * 8 + bit];
      }
      tables[byte][value] = sum;
    }
  }
  return tables;
}

uint32_t Shift(const ShiftTables& tables, uint32_t crc) {
  return tables[0][crc & 0xFF] ^ tables[1][crc >> 8 & 0xFF] ^ tables[2][crc >> 16 & 0xFF] ^
         tables[3][crc >> 24];
}

uint64_t Load64(const unsigned char* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

// Three neighbouring stretches of kLane bytes at once: the instruction has a latency of three
// cycles and a throughput of one, so three independent chains keep it busy.
template <size_t kLane>
__attribute__((target("sse4.2"))) uint64_t ThreeLanes(const unsigned char*& p, size_t& bytes,
                                                       uint64_t crc, const ShiftTables& shift) {
  while (bytes >= 3 * kLane) {
    uint64_t first = crc;
    uint64_t second = 0;
    uint64_t third = 0;
    for (size_t i = 0; i < kLane; i += 8) {
      first = _mm_crc32_u64(first, Load64(p + i));
      second = _mm_crc32_u64(second, Load64(p + kLane + i));
      third = _mm_crc32_u64(third, Load64(p + 2 * kLane + i));
    }
    crc = Shift(shift, static_cast<uint32_t>(first)) ^ second;
    crc = Shift(shift, static_cast<uint32_t>(crc)) ^ third;
    p += 3 * kLane;
    bytes -= 3 * kLane;
  }
  return crc;
}
#endif

}  // namespace

uint32_t Crc32cPortable(const void* data, size_t bytes, uint32_t crc) {
  const auto* p = static_cast<const unsigned char*>(data);
  crc = ~crc;
  for (; bytes >= 8; p += 8, bytes -= 8) {
    crc = kByteTables[7][(crc ^ p[0]) & 0xFF] ^ kByteTables[6][(crc >> 8 ^ p[1]) & 0xFF] ^
          kByteTables[5][(crc >> 16 ^ p[2]) & 0xFF] ^ kByteTables[4][crc >> 24 ^ p[3]] ^
          kByteTables[3][p[4]] ^ kByteTables[2][p[5]] ^ kByteTables[1][p[6]] ^ kByteTables[0][p[7]];
  }
  for (; bytes > 0; ++p, --bytes) crc = (crc >> 8) ^ kByteTables[0][(crc ^ *p) & 0xFF];
  return ~crc;
}

#if defined(__x86_64__)
bool Crc32cHasHardware() {
  static const bool has = __builtin_cpu_supports("sse4.2") != 0;
  return has;
}

__attribute__((target("sse4.2"))) uint32_t Crc32cHardware(const void* data, size_t bytes,
                                                           uint32_t crc) {
  constexpr size_t kLongLane = 4096;
  constexpr size_t kShortLane = 256;
  static const ShiftTables long_shift = MakeShiftTables(kLongLane);
  static const ShiftTables short_shift = MakeShiftTables(kShortLane);
  const auto* p = static_cast<const unsigned char*>(data);
  uint64_t state = static_cast<uint32_t>(~crc);
  state = ThreeLanes<kLongLane>(p, bytes, state, long_shift);
  state = ThreeLanes<kShortLane>(p, bytes, state, short_shift);
  for (; bytes >= 8; p += 8, bytes -= 8) state = _mm_crc32_u64(state, Load64(p));
  auto narrow = static_cast<uint32_t>(state);
  for (; bytes > 0; ++p, --bytes) narrow = _mm_crc32_u8(narrow, *p);
  return ~narrow;
}
#else
bool Crc32cHasHardware() { return false; }
uint32_t Crc32cHardware(const void* data, size_t bytes, uint32_t crc) {
  return Crc32cPortable(data, bytes, crc);
}
#endif

uint32_t Crc32c(const void* data, size_t bytes, uint32_t crc) {
  return Crc32cHasHardware() ? Crc32cHardware(data, bytes, crc) : Crc32cPortable(data, bytes, crc);
}

}  // namespace hyserve::kv_transfer
