// Remembers computed prefixes: a tree of full 64-token blocks, and window snapshots at some of its
// nodes.
//
// A node is named by a keyed hash of (scope, layout, all tokens up to its end), and its tokens are
// compared besides, so nobody can make a request read a foreign prefix. Blocks in the tree are
// shared read-only: a sequence only ever writes blocks past what it published here.
//
// With window layers a prefix can be restored only where a snapshot of the rings exists; without
// them, at every node. Nodes that no restore can reach any more are dropped at once.
//
// Bookkeeping only; not thread-safe: owned by the engine loop. All blocks are taken and given back
// through this class, because a lack of free blocks is met by forgetting prefixes: blocks that no
// sequence holds, leaves first, least recently used first. A block that a sequence holds has all
// its ancestors held too, so every cached block can be reclaimed: available() blocks can be had.
//
// Copies of slabs are only named here. The caller must carry them out in the order in which they
// were named and before anything else writes the slabs; then a slab that is reclaimed after it was
// named as a source is still intact when it is read.
#ifndef HYSERVE_ENGINE_KV_CACHE_PREFIX_CACHE_H_
#define HYSERVE_ENGINE_KV_CACHE_PREFIX_CACHE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "engine/kv_cache/block_allocator.h"
#include "engine/kv_cache/ids.h"
#include "engine/kv_cache/keyed_hash.h"
#include "engine/kv_cache/kv_layout.h"
#include "engine/kv_cache/slab_allocator.h"

namespace hyserve::kv_cache {

struct PrefixCacheOptions {
  bool needs_snapshots = true;  // the model has window layers
  int64_t max_snapshots = 0;    // slabs that the cache may own
  std::string layout;           // KvLayout::Fingerprint()
  Hash128 hash_key;             // secret; RandomHashKey() in production
};

class PrefixCache {
 public:
  // The allocators must outlive the cache.
  PrefixCache(PrefixCacheOptions options, BlockAllocator* blocks, SlabAllocator* slabs);
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // Appends the names of the full blocks of `tokens` that `keys` lacks.
  void ExtendKeys(std::string_view scope, std::span<const int32_t> tokens,
                  std::vector<Hash128>* keys) const;

  struct Hit {
    int32_t num_tokens = 0;        // a multiple of kTokensPerBlock
    std::vector<BlockId> blocks;   // with one more reference each; read-only
    SlabId snapshot = kNoSlab;     // slab to copy from, when the model has window layers
  };
  // The longest restorable prefix of at most `max_tokens` tokens.
  Hit Acquire(std::span<const Hash128> keys, std::span<const int32_t> tokens, int64_t max_tokens);

  // As BlockAllocator::Allocate, forgetting prefixes as needed. False (nothing forgotten) when
  // available() < count.
  bool Allocate(int64_t count, std::vector<BlockId>* blocks);
  int64_t available() const { return blocks_->free() + blocks_->cached(); }
  // Gives one reference of each back; `blocks` in the order of the sequence.
  void Release(std::span<const BlockId> blocks);

  // Makes the first num_tokens tokens (whole blocks, final in every layer) known. `blocks` are
  // those of the sequence, which keeps its references. Where the tree already has a block of the
  // same name that one stays; the sequence then holds it too, and it is appended to `held`, to be
  // Release()d with (after) the sequence's own.
  void Publish(std::span<const Hash128> keys, std::span<const int32_t> tokens,
               std::span<const BlockId> blocks, int64_t num_tokens, std::vector<BlockId>* held);

  // A slab for a snapshot of the rings behind the first num_tokens tokens, which must be published
  // and held. Nothing if one exists, or snapshots are off. The least recently used one makes room.
  std::optional<SlabId> AddSnapshot(std::span<const Hash128> keys, int64_t num_tokens);
  bool HasSnapshot(const Hash128& key) const;
  // The copy into `slab` failed: its node can no longer be restored. No effect on other slabs.
  void DropSnapshot(SlabId slab);

  // What a sequence with these keys and tokens read and wrote may be wrong: nothing of it, nor what
  // others put behind it, is found again. Who holds it keeps it; what nobody holds is forgotten at
  // once, the rest with its last holder.
  void Distrust(std::span<const Hash128> keys, std::span<const int32_t> tokens);

  // Forgets everything that no sequence holds, and all snapshots.
  void Clear();

  int64_t num_nodes() const { return static_cast<int64_t>(nodes_.size()); }
  int64_t num_snapshots() const { return static_cast<int64_t>(snapshots_.size()); }

  // INTERNAL with the first violated invariant, the allocators' included.
  absl::Status CheckInvariants() const;

 private:
  struct Node {
    Hash128 key;
    Node* parent = nullptr;
    int32_t children = 0;
    BlockId block{};
    SlabId snapshot = kNoSlab;
    uint64_t used_at = 0;      // of the block, when it was last given back
    uint64_t restored_at = 0;  // of the snapshot
    bool distrusted = false;   // and so are all its descendants
    std::array<int32_t, kTokensPerBlock> tokens;
  };
  using Order = std::set<std::pair<uint64_t, Node*>>;

  Node* Find(const Hash128& key, const Node* parent, std::span<const int32_t> tokens) const;
  bool IsHeld(const Node& node) const { return blocks_->references(node.block) > 0; }
  bool IsUnreachable(const Node& node) const {
    return node.children == 0 && !IsHeld(node) &&
           (node.distrusted || (options_.needs_snapshots && node.snapshot == kNoSlab));
  }
  void Hold(Node* node);
  void TouchSnapshot(Node* node);
  void FreeSnapshot(Node* node);
  // Removes a leaf that nobody holds, and its ancestors as far as they became unreachable.
  void Remove(Node* node);
  // After a change: drops the node if unreachable, lists it as evictable if it is a leaf.
  void Settle(Node* node);

  const PrefixCacheOptions options_;
  BlockAllocator* const blocks_;
  SlabAllocator* const slabs_;
  absl::flat_hash_map<Hash128, std::unique_ptr<Node>> nodes_;
  std::vector<Node*> node_of_block_;  // by block; null when the block is not in the tree
  Order evictable_;                   // leaves that nobody holds, by used_at
  Order snapshots_;                   // nodes with a snapshot, by restored_at
  uint64_t clock_ = 0;
};

}  // namespace hyserve::kv_cache

#endif  // HYSERVE_ENGINE_KV_CACHE_PREFIX_CACHE_H_
