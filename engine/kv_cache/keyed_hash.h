// SipHash-2-4 with 128 bits of output: a keyed pseudo-random function (Aumasson, Bernstein:
// "SipHash: a fast short-input PRF", 2012, and its 128-bit variant). Without the key nobody can
// make two inputs collide.
#ifndef HYSERVE_ENGINE_KV_CACHE_KEYED_HASH_H_
#define HYSERVE_ENGINE_KV_CACHE_KEYED_HASH_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace hyserve::kv_cache {

struct Hash128 {
  uint64_t low = 0;
  uint64_t high = 0;

  bool operator==(const Hash128&) const = default;
  template <typename H>
  friend H AbslHashValue(H state, const Hash128& hash) {
    return H::combine(std::move(state), hash.low);
  }
};

Hash128 KeyedHash(const Hash128& key, std::span<const uint8_t> bytes);

// A key from the operating system's random source.
Hash128 RandomHashKey();

}  // namespace hyserve::kv_cache

#endif  // HYSERVE_ENGINE_KV_CACHE_KEYED_HASH_H_
