// Which block of the KV pool belongs to whom: reference counts and three states per block.
//
// Bookkeeping only: never touches memory of the pool. Not thread-safe: owned by the engine loop.
//
//            Allocate                  DropReference (last, cached)
//   kFree ------------> kUsed <----------------------------------------> kCached
//     ^                   |            AddReference                         |
//     |                   | DropReference (last, not cached)                |
//     +-------------------+------------------------ SetCached(false) -------+
//
// At all times free() + used() + cached() == total().
#ifndef HYSERVE_ENGINE_KV_CACHE_BLOCK_ALLOCATOR_H_
#define HYSERVE_ENGINE_KV_CACHE_BLOCK_ALLOCATOR_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "engine/kv_cache/ids.h"

namespace hyserve::kv_cache {

// Which free block is looked at first. kFifo: the one that has been free for longest (production: a
// late reader or writer of a freed block meets a new owner as late as possible). kLifo: the one
// freed last (stress tests: it meets the new owner at once).
enum class ReuseOrder : uint8_t { kFifo, kLifo };

class BlockAllocator {
 public:
  explicit BlockAllocator(int64_t num_blocks, ReuseOrder order = ReuseOrder::kFifo);
  BlockAllocator(const BlockAllocator&) = delete;
  BlockAllocator& operator=(const BlockAllocator&) = delete;

  int64_t total() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t free() const { return free_; }
  int64_t used() const { return used_; }
  int64_t cached() const { return cached_; }

  // Appends `count` blocks with one reference each, all or none; false when fewer are free. Blocks
  // come in ascending runs as long as the free list offers: neighbouring blocks travel as one
  // message.
  bool Allocate(int64_t count, std::vector<BlockId>* blocks);

  // REQUIRES: not free.
  void AddReference(BlockId block);
  // Returns the state afterwards. REQUIRES: kUsed.
  MemoryState DropReference(BlockId block);
  // Says whether the prefix cache knows the block. A block that only the cache knew becomes free
  // with `false`. REQUIRES: not free.
  void SetCached(BlockId block, bool cached);

  MemoryState state(BlockId block) const;
  int32_t references(BlockId block) const { return blocks_[Index(block)].references; }
  bool in_cache(BlockId block) const { return blocks_[Index(block)].in_cache; }

  // INTERNAL with the first violated invariant. Walks everything: for tests and debug builds.
  absl::Status CheckInvariants() const;

 private:
  static constexpr int32_t kNone = -1;

  struct Block {
    int32_t references = 0;
    bool in_cache = false;
    // Free list in the order of freeing, doubly linked so that a run can be cut out of its middle.
    bool is_free = false;
    int32_t previous = kNone;
    int32_t next = kNone;
  };

  void PushFree(int32_t block);
  void RemoveFree(int32_t block);
  // The free run around `block`, at most `limit` long: [first, first + length).
  void RunAround(int32_t block, int64_t limit, int32_t* first, int64_t* length) const;

  const ReuseOrder order_;
  std::vector<Block> blocks_;
  int32_t head_ = kNone;  // freed first
  int32_t tail_ = kNone;  // freed last
  int64_t free_ = 0;
  int64_t used_ = 0;
  int64_t cached_ = 0;
};

}  // namespace hyserve::kv_cache

#endif  // HYSERVE_ENGINE_KV_CACHE_BLOCK_ALLOCATOR_H_
