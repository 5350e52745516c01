// Which window slab of the KV pool belongs to whom. A slab has one owner: a sequence (kUsed) or a
// snapshot of the prefix cache (kCached); slabs are copied, never shared.
//
// Bookkeeping only; not thread-safe: owned by the engine loop. free + used + cached == total.
#ifndef HYSERVE_ENGINE_KV_CACHE_SLAB_ALLOCATOR_H_
#define HYSERVE_ENGINE_KV_CACHE_SLAB_ALLOCATOR_H_

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "engine/kv_cache/ids.h"

namespace hyserve::kv_cache {

class SlabAllocator {
 public:
  explicit SlabAllocator(int64_t num_slabs);
  SlabAllocator(const SlabAllocator&) = delete;
  SlabAllocator& operator=(const SlabAllocator&) = delete;

  int64_t total() const { return static_cast<int64_t>(states_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }
  int64_t used() const { return used_; }
  int64_t cached() const { return cached_; }

  // The slab that has been free for longest, now `owner` (kUsed or kCached); nothing when all are
  // taken.
  std::optional<SlabId> Allocate(MemoryState owner);
  // REQUIRES: not free.
  void Free(SlabId slab);
  MemoryState state(SlabId slab) const { return states_[Index(slab)]; }

  // INTERNAL with the first violated invariant.
  absl::Status CheckInvariants() const;

 private:
  int64_t& CountOf(MemoryState state);

  std::vector<MemoryState> states_;
  std::deque<SlabId> free_;
  int64_t used_ = 0;
  int64_t cached_ = 0;
};

}  // namespace hyserve::kv_cache

#endif  // HYSERVE_ENGINE_KV_CACHE_SLAB_ALLOCATOR_H_
