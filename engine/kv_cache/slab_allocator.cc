#include "engine/kv_cache/slab_allocator.h"

#include "absl/strings/str_cat.h"
#include "engine/kv_cache/check.h"

namespace hyserve::kv_cache {

SlabAllocator::SlabAllocator(int64_t num_slabs) {
  HYSERVE_CHECK(num_slabs >= 0 && num_slabs <= INT32_MAX);
  states_.assign(num_slabs, MemoryState::kFree);
  for (int64_t slab = 0; slab < num_slabs; ++slab) {
    free_.push_back(SlabId{static_cast<int32_t>(slab)});
  }
}

int64_t& SlabAllocator::CountOf(MemoryState state) {
  HYSERVE_CHECK(state != MemoryState::kFree);
  return state == MemoryState::kUsed ? used_ : cached_;
}

std::optional<SlabId> SlabAllocator::Allocate(MemoryState owner) {
  if (free_.empty()) return std::nullopt;
  const SlabId slab = free_.front();
  free_.pop_front();
  states_[Index(slab)] = owner;
  ++CountOf(owner);
  return slab;
}

void SlabAllocator::Free(SlabId slab) {
  --CountOf(states_[Index(slab)]);
  states_[Index(slab)] = MemoryState::kFree;
  free_.push_back(slab);
}

absl::Status SlabAllocator::CheckInvariants() const {
  int64_t free = 0, used = 0, cached = 0;
  for (const MemoryState state : states_) {
    ++(state == MemoryState::kFree ? free : state == MemoryState::kUsed ? used : cached);
  }
  if (free != this->free() || used != used_ || cached != cached_) {
    return absl::InternalError(absl::StrCat("slabs: counted ", free, " free, ", used, " used, ",
                                            cached, " cached; booked ", this->free(), ", ", used_,
                                            ", ", cached_));
  }
  std::vector<bool> listed(states_.size());
  for (const SlabId slab : free_) {
    if (state(slab) != MemoryState::kFree || listed[Index(slab)]) {
      return absl::InternalError(absl::StrCat("slab ", Index(slab), " is wrongly listed as free"));
    }
    listed[Index(slab)] = true;
  }
  return absl::OkStatus();
}

}  // namespace hyserve::kv_cache
