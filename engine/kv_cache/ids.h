// Index types of the KV pool, so that a block is never taken for a slab or for a position.
#ifndef HYSERVE_ENGINE_KV_CACHE_IDS_H_
#define HYSERVE_ENGINE_KV_CACHE_IDS_H_

#include <cstdint>

namespace hyserve::kv_cache {

enum class BlockId : int32_t {};
enum class SlabId : int32_t {};

inline constexpr SlabId kNoSlab{-1};

constexpr int32_t Index(BlockId block) { return static_cast<int32_t>(block); }
constexpr int32_t Index(SlabId slab) { return static_cast<int32_t>(slab); }

// Who holds a block or a slab:
//   kFree    nobody; its content is meaningless
//   kUsed    at least one sequence
//   kCached  only the prefix cache; can be reclaimed at any time
enum class MemoryState : uint8_t { kFree, kUsed, kCached };

}  // namespace hyserve::kv_cache

#endif  // HYSERVE_ENGINE_KV_CACHE_IDS_H_
