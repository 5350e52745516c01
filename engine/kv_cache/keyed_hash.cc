#include "engine/kv_cache/keyed_hash.h"

#include <bit>
#include <cstring>
#include <random>

namespace hyserve::kv_cache {
namespace {

static_assert(std::endian::native == std::endian::little, "words are read as they lie in memory");

struct State {
  uint64_t v0, v1, v2, v3;

  void Rounds(int count) {
    for (int i = 0; i < count; ++i) {
      v0 += v1;
      v2 += v3;
      v1 = std::rotl(v1, 13) ^ v0;
      v3 = std::rotl(v3, 16) ^ v2;
      v0 = std::rotl(v0, 32);
      v2 += v1;
      v0 += v3;
      v1 = std::rotl(v1, 17) ^ v2;
      v3 = std::rotl(v3, 21) ^ v0;
      v2 = std::rotl(v2, 32);
    }
  }
  void Absorb(uint64_t word) {
    v3 ^= word;
    Rounds(2);
    v0 ^= word;
  }
  uint64_t Output() {
    Rounds(4);
    return v0 ^ v1 ^ v2 ^ v3;
  }
};

}  // namespace

Hash128 KeyedHash(const Hash128& key, std::span<const uint8_t> bytes) {
  State s{key.low ^ 0x736f6d6570736575u, key.high ^ 0x646f72616e646f6du ^ 0xee,
          key.low ^ 0x6c7967656e657261u, key.high ^ 0x7465646279746573u};
  size_t at = 0;
  for (; at + 8 <= bytes.size(); at += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + at, 8);
    s.Absorb(word);
  }
  uint64_t last = static_cast<uint64_t>(bytes.size()) << 56;
  for (size_t i = 0; at + i < bytes.size(); ++i) {
    last |= static_cast<uint64_t>(bytes[at + i]) << (8 * i);
  }
  s.Absorb(last);
  Hash128 hash;
  s.v2 ^= 0xee;
  hash.low = s.Output();
  s.v1 ^= 0xdd;
  hash.high = s.Output();
  return hash;
}

Hash128 RandomHashKey() {
  std::random_device source;
  auto word = [&source] { return (static_cast<uint64_t>(source()) << 32) | source(); };
  Hash128 key;
  key.low = word();
  key.high = word();
  return key;
}

}  // namespace hyserve::kv_cache
