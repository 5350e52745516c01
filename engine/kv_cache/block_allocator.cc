#include "engine/kv_cache/block_allocator.h"

#include "absl/strings/str_cat.h"
#include "engine/kv_cache/check.h"

namespace hyserve::kv_cache {
namespace {

// Free blocks compared per run. More gives longer runs from a fragmented pool and a weaker order of
// reuse.
constexpr int kCandidates = 8;

}  // namespace

BlockAllocator::BlockAllocator(int64_t num_blocks, ReuseOrder order) : order_(order) {
  HYSERVE_CHECK(num_blocks >= 0 && num_blocks <= INT32_MAX);
  blocks_.resize(num_blocks);
  for (int64_t block = 0; block < num_blocks; ++block) PushFree(static_cast<int32_t>(block));
}

void BlockAllocator::PushFree(int32_t block) {
  Block& b = blocks_[block];
  b.is_free = true;
  b.next = kNone;
  b.previous = tail_;
  (tail_ == kNone ? head_ : blocks_[tail_].next) = block;
  tail_ = block;
  ++free_;
}

void BlockAllocator::RemoveFree(int32_t block) {
  Block& b = blocks_[block];
  (b.previous == kNone ? head_ : blocks_[b.previous].next) = b.next;
  (b.next == kNone ? tail_ : blocks_[b.next].previous) = b.previous;
  b.previous = b.next = kNone;
  b.is_free = false;
  --free_;
}

void BlockAllocator::RunAround(int32_t block, int64_t limit, int32_t* first,
                               int64_t* length) const {
  int32_t begin = block;
  int32_t end = block + 1;
  while (end < static_cast<int32_t>(blocks_.size()) && end - begin < limit &&
         blocks_[end].is_free) {
    ++end;
  }
  while (begin > 0 && end - begin < limit && blocks_[begin - 1].is_free) --begin;
  *first = begin;
  *length = end - begin;
}

bool BlockAllocator::Allocate(int64_t count, std::vector<BlockId>* blocks) {
  HYSERVE_CHECK(count >= 0);
  if (count > free_) return false;
  while (count > 0) {
    int32_t best_first = kNone;
    int64_t best_length = 0;
    int32_t candidate = order_ == ReuseOrder::kFifo ? head_ : tail_;
    for (int i = 0; i < kCandidates && candidate != kNone && best_length < count; ++i) {
      int32_t first;
      int64_t length;
      RunAround(candidate, count, &first, &length);
      if (length > best_length) {
        best_first = first;
        best_length = length;
      }
      candidate = order_ == ReuseOrder::kFifo ? blocks_[candidate].next
                                              : blocks_[candidate].previous;
    }
    for (int32_t block = best_first; block < best_first + best_length; ++block) {
      RemoveFree(block);
      blocks_[block].references = 1;
      ++used_;
      blocks->push_back(BlockId{block});
    }
    count -= best_length;
  }
  return true;
}

void BlockAllocator::AddReference(BlockId block) {
  Block& b = blocks_[Index(block)];
  HYSERVE_CHECK(!b.is_free);
  if (b.references++ == 0) {
    --cached_;
    ++used_;
  }
}

MemoryState BlockAllocator::DropReference(BlockId block) {
  Block& b = blocks_[Index(block)];
  HYSERVE_CHECK(!b.is_free && b.references > 0);
  if (--b.references > 0) return MemoryState::kUsed;
  --used_;
  if (b.in_cache) {
    ++cached_;
    return MemoryState::kCached;
  }
  PushFree(Index(block));
  return MemoryState::kFree;
}

void BlockAllocator::SetCached(BlockId block, bool cached) {
  Block& b = blocks_[Index(block)];
  HYSERVE_CHECK(!b.is_free);
  b.in_cache = cached;
  if (!cached && b.references == 0) {
    --cached_;
    PushFree(Index(block));
  }
}

MemoryState BlockAllocator::state(BlockId block) const {
  const Block& b = blocks_[Index(block)];
  if (b.is_free) return MemoryState::kFree;
  return b.references > 0 ? MemoryState::kUsed : MemoryState::kCached;
}

absl::Status BlockAllocator::CheckInvariants() const {
  if (free_ + used_ + cached_ != total()) {
    return absl::InternalError(absl::StrCat("free ", free_, " + used ", used_, " + cached ",
                                            cached_, " is not total ", total()));
  }
  int64_t free = 0, used = 0, cached = 0;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& b = blocks_[i];
    if (b.is_free && (b.references != 0 || b.in_cache)) {
      return absl::InternalError(absl::StrCat("block ", i, " is free and referenced or cached"));
    }
    if (!b.is_free && b.references == 0 && !b.in_cache) {
      return absl::InternalError(absl::StrCat("block ", i, " is lost"));
    }
    ++(b.is_free ? free : b.references > 0 ? used : cached);
  }
  if (free != free_ || used != used_ || cached != cached_) {
    return absl::InternalError("counts of blocks differ from their states");
  }
  int64_t listed = 0;
  int32_t previous = kNone;
  for (int32_t block = head_; block != kNone; block = blocks_[block].next) {
    if (!blocks_[block].is_free || blocks_[block].previous != previous || ++listed > free_) {
      return absl::InternalError("the free list is broken");
    }
    previous = block;
  }
  if (listed != free_ || previous != tail_) return absl::InternalError("the free list is short");
  return absl::OkStatus();
}

}  // namespace hyserve::kv_cache
