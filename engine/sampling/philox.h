// Counter-based random numbers: Philox 4x32 with 10 rounds (Salmon, Moraes, Dror, Shaw: "Parallel
// random numbers: as easy as 1, 2, 3", SC 2011). A number is a pure function of (key, counter), so
// a sequence that moves to another worker needs no generator state: the index of the token is
// enough.
#ifndef HYSERVE_ENGINE_SAMPLING_PHILOX_H_
#define HYSERVE_ENGINE_SAMPLING_PHILOX_H_

#include <array>
#include <cstdint>

namespace hyserve::sampling {

constexpr std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                             std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// A number in [0, 1) with 53 random bits, for token `index` of choice `choice` of a request.
constexpr double UniformAt(uint64_t seed, uint32_t choice, uint64_t index) {
  const std::array<uint32_t, 4> bits = Philox4x32(
      {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), choice, 0},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t word = (static_cast<uint64_t>(bits[1]) << 32) | bits[0];
  return static_cast<double>(word >> 11) * 0x1.0p-53;
}

}  // namespace hyserve::sampling

#endif  // HYSERVE_ENGINE_SAMPLING_PHILOX_H_
