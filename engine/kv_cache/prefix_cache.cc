#include "engine/kv_cache/prefix_cache.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/kv_cache/check.h"

namespace hyserve::kv_cache {
namespace {

std::span<const int32_t> BlockTokens(std::span<const int32_t> tokens, int64_t block) {
  return tokens.subspan(block * kTokensPerBlock, kTokensPerBlock);
}

void AppendBytes(const void* data, size_t size, std::vector<uint8_t>* bytes) {
  const auto* begin = static_cast<const uint8_t*>(data);
  bytes->insert(bytes->end(), begin, begin + size);
}

}  // namespace

PrefixCache::PrefixCache(PrefixCacheOptions options, BlockAllocator* blocks, SlabAllocator* slabs)
    : options_(std::move(options)),
      blocks_(blocks),
      slabs_(slabs),
      node_of_block_(blocks->total(), nullptr) {}

void PrefixCache::ExtendKeys(std::string_view scope, std::span<const int32_t> tokens,
                             std::vector<Hash128>* keys) const {
  const int64_t full_blocks = static_cast<int64_t>(tokens.size()) / kTokensPerBlock;
  std::vector<uint8_t> bytes;
  for (int64_t block = static_cast<int64_t>(keys->size()); block < full_blocks; ++block) {
    bytes.clear();
    if (block == 0) {
      const uint64_t scope_size = scope.size();
      AppendBytes(&scope_size, sizeof(scope_size), &bytes);
      AppendBytes(scope.data(), scope.size(), &bytes);
      AppendBytes(options_.layout.data(), options_.layout.size(), &bytes);
    } else {
      AppendBytes(&keys->back(), sizeof(Hash128), &bytes);
    }
    AppendBytes(BlockTokens(tokens, block).data(), kTokensPerBlock * sizeof(int32_t), &bytes);
    keys->push_back(KeyedHash(options_.hash_key, bytes));
  }
}

PrefixCache::Node* PrefixCache::Find(const Hash128& key, const Node* parent,
                                     std::span<const int32_t> tokens) const {
  const auto found = nodes_.find(key);
  if (found == nodes_.end()) return nullptr;
  Node* node = found->second.get();
  if (node->parent != parent || !std::equal(tokens.begin(), tokens.end(), node->tokens.begin())) {
    return nullptr;
  }
  return node;
}

void PrefixCache::Hold(Node* node) {
  if (!IsHeld(*node)) evictable_.erase({node->used_at, node});
  blocks_->AddReference(node->block);
}

void PrefixCache::TouchSnapshot(Node* node) {
  snapshots_.erase({node->restored_at, node});
  node->restored_at = ++clock_;
  snapshots_.insert({node->restored_at, node});
}

void PrefixCache::FreeSnapshot(Node* node) {
  if (node->snapshot == kNoSlab) return;
  snapshots_.erase({node->restored_at, node});
  slabs_->Free(node->snapshot);
  node->snapshot = kNoSlab;
}

void PrefixCache::Remove(Node* node) {
  while (node != nullptr) {
    HYSERVE_CHECK(node->children == 0 && !IsHeld(*node));
    Node* parent = node->parent;
    FreeSnapshot(node);
    evictable_.erase({node->used_at, node});
    node_of_block_[Index(node->block)] = nullptr;
    blocks_->SetCached(node->block, false);
    nodes_.erase(Hash128(node->key));
    if (parent == nullptr) return;
    --parent->children;
    if (!IsUnreachable(*parent)) {
      if (parent->children == 0 && !IsHeld(*parent)) evictable_.insert({parent->used_at, parent});
      return;
    }
    node = parent;
  }
}

void PrefixCache::Settle(Node* node) {
  if (IsHeld(*node) || node->children > 0) return;
  if (IsUnreachable(*node)) {
    Remove(node);
  } else {
    evictable_.insert({node->used_at, node});
  }
}

PrefixCache::Hit PrefixCache::Acquire(std::span<const Hash128> keys,
                                      std::span<const int32_t> tokens, int64_t max_tokens) {
  const int64_t limit = std::min<int64_t>(static_cast<int64_t>(keys.size()),
                                          std::max<int64_t>(max_tokens, 0) / kTokensPerBlock);
  std::vector<Node*> path;
  size_t restorable = 0;
  const Node* parent = nullptr;
  for (int64_t block = 0; block < limit; ++block) {
    Node* node = Find(keys[block], parent, BlockTokens(tokens, block));
    if (node == nullptr || node->distrusted) break;
    path.push_back(node);
    if (!options_.needs_snapshots || node->snapshot != kNoSlab) restorable = path.size();
    parent = node;
  }
  Hit hit;
  for (size_t block = 0; block < restorable; ++block) {
    Hold(path[block]);
    hit.blocks.push_back(path[block]->block);
  }
  hit.num_tokens = static_cast<int32_t>(restorable * kTokensPerBlock);
  if (restorable > 0 && options_.needs_snapshots) {
    TouchSnapshot(path[restorable - 1]);
    hit.snapshot = path[restorable - 1]->snapshot;
  }
  return hit;
}

bool PrefixCache::Allocate(int64_t count, std::vector<BlockId>* blocks) {
  if (count > available()) return false;
  while (blocks_->free() < count) {
    HYSERVE_CHECK(!evictable_.empty());
    Remove(evictable_.begin()->second);
  }
  return blocks_->Allocate(count, blocks);
}

void PrefixCache::Release(std::span<const BlockId> blocks) {
  // From the end: a block's descendants are given back, and forgotten, before the block itself.
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    if (blocks_->DropReference(*block) != MemoryState::kCached) continue;
    Node* node = node_of_block_[Index(*block)];
    node->used_at = ++clock_;
    Settle(node);
  }
}

void PrefixCache::Publish(std::span<const Hash128> keys, std::span<const int32_t> tokens,
                          std::span<const BlockId> blocks, int64_t num_tokens,
                          std::vector<BlockId>* held) {
  const int64_t count = num_tokens / kTokensPerBlock;
  HYSERVE_CHECK(num_tokens % kTokensPerBlock == 0 && count <= static_cast<int64_t>(keys.size()) &&
                count <= static_cast<int64_t>(blocks.size()));
  Node* parent = nullptr;
  for (int64_t block = 0; block < count; ++block) {
    const std::span<const int32_t> block_tokens = BlockTokens(tokens, block);
    Node* node = Find(keys[block], parent, block_tokens);
    // Under a name that may not be trusted nothing is known until its last holder is gone.
    if (node != nullptr && node->distrusted) return;
    if (node != nullptr) {
      const bool mine = node->block == blocks[block] ||
                        std::find(held->begin(), held->end(), node->block) != held->end();
      if (!mine) {
        Hold(node);
        held->push_back(node->block);
      }
    } else {
      // A name that another node bears (a collision of 128 bits) stays with that node.
      if (nodes_.contains(keys[block])) return;
      auto fresh = std::make_unique<Node>();
      node = fresh.get();
      node->key = keys[block];
      node->parent = parent;
      node->block = blocks[block];
      std::copy(block_tokens.begin(), block_tokens.end(), node->tokens.begin());
      nodes_.emplace(node->key, std::move(fresh));
      node_of_block_[Index(node->block)] = node;
      blocks_->SetCached(node->block, true);
      if (parent != nullptr) ++parent->children;
    }
    parent = node;
  }
}

std::optional<SlabId> PrefixCache::AddSnapshot(std::span<const Hash128> keys, int64_t num_tokens) {
  if (!options_.needs_snapshots || options_.max_snapshots <= 0 || num_tokens <= 0) {
    return std::nullopt;
  }
  const auto found = nodes_.find(keys[num_tokens / kTokensPerBlock - 1]);
  if (found == nodes_.end() || found->second->distrusted) return std::nullopt;
  Node* node = found->second.get();
  HYSERVE_CHECK(IsHeld(*node));
  if (node->snapshot != kNoSlab) {
    TouchSnapshot(node);
    return std::nullopt;
  }
  if (num_snapshots() >= options_.max_snapshots) {
    Node* oldest = snapshots_.begin()->second;
    FreeSnapshot(oldest);
    evictable_.erase({oldest->used_at, oldest});
    Settle(oldest);
  }
  const std::optional<SlabId> slab = slabs_->Allocate(MemoryState::kCached);
  if (!slab.has_value()) return std::nullopt;
  node->snapshot = *slab;
  node->restored_at = ++clock_;
  snapshots_.insert({node->restored_at, node});
  return slab;
}

bool PrefixCache::HasSnapshot(const Hash128& key) const {
  const auto found = nodes_.find(key);
  return found != nodes_.end() && found->second->snapshot != kNoSlab;
}

void PrefixCache::DropSnapshot(SlabId slab) {
  for (const auto& [when, node] : snapshots_) {
    if (node->snapshot != slab) continue;
    Node* dropped = node;
    FreeSnapshot(dropped);
    evictable_.erase({dropped->used_at, dropped});
    Settle(dropped);
    return;
  }
}

void PrefixCache::Distrust(std::span<const Hash128> keys, std::span<const int32_t> tokens) {
  Node* parent = nullptr;
  for (size_t block = 0; block < keys.size(); ++block) {
    Node* node = Find(keys[block], parent, BlockTokens(tokens, static_cast<int64_t>(block)));
    if (node == nullptr) break;
    node->distrusted = true;
    parent = node;
  }
  if (parent == nullptr) return;
  // Rare enough to look at everything. By name, because settling one node may remove others.
  std::vector<Hash128> names;
  for (const auto& [name, node] : nodes_) {
    bool reached = false;
    for (const Node* above = node.get(); above != nullptr; above = above->parent) {
      reached |= above->distrusted;
    }
    if (!reached) continue;
    node->distrusted = true;
    FreeSnapshot(node.get());
    names.push_back(name);
  }
  for (const Hash128& name : names) {
    const auto found = nodes_.find(name);
    if (found != nodes_.end()) Settle(found->second.get());
  }
}

void PrefixCache::Clear() {
  while (!snapshots_.empty()) DropSnapshot(snapshots_.begin()->second->snapshot);
  while (!evictable_.empty()) Remove(evictable_.begin()->second);
}

absl::Status PrefixCache::CheckInvariants() const {
  if (absl::Status status = blocks_->CheckInvariants(); !status.ok()) return status;
  if (absl::Status status = slabs_->CheckInvariants(); !status.ok()) return status;
  absl::flat_hash_map<const Node*, int32_t> children;
  size_t evictable = 0, snapshots = 0, cached = 0;
  for (const auto& [key, owned] : nodes_) {
    const Node* node = owned.get();
    auto bad = [&](const char* what) {
      return absl::InternalError(absl::StrCat("block ", Index(node->block), ": ", what));
    };
    if (node->key != key) return bad("is filed under another name");
    if (node_of_block_[Index(node->block)] != node) return bad("has a node that it does not know");
    if (blocks_->state(node->block) == MemoryState::kFree) return bad("is free and in the tree");
    if (node->parent != nullptr) {
      ++children[node->parent];
      if (IsHeld(*node) && !IsHeld(*node->parent)) return bad("is held, its parent is not");
      if (node->parent->distrusted && !node->distrusted) {
        return bad("is trusted, its parent is not");
      }
    }
    if (IsUnreachable(*node)) return bad("cannot be restored");
    const bool leaf = node->children == 0 && !IsHeld(*node);
    if (leaf != evictable_.contains({node->used_at, const_cast<Node*>(node)})) {
      return bad("is wrongly listed for eviction");
    }
    evictable += leaf;
    cached += !IsHeld(*node);
    if (node->snapshot != kNoSlab) {
      ++snapshots;
      if (slabs_->state(node->snapshot) != MemoryState::kCached) return bad("has a foreign slab");
      if (!snapshots_.contains({node->restored_at, const_cast<Node*>(node)})) {
        return bad("has a snapshot that is not listed");
      }
    }
  }
  for (const auto& [key, node] : nodes_) {
    const auto count = children.find(node.get());
    if (node->children != (count == children.end() ? 0 : count->second)) {
      return absl::InternalError("a node miscounts its children");
    }
  }
  if (evictable != evictable_.size() || snapshots != snapshots_.size() ||
      static_cast<int64_t>(snapshots) != slabs_->cached() ||
      static_cast<int64_t>(cached) != blocks_->cached()) {
    return absl::InternalError("counts of the prefix cache differ from its nodes");
  }
  return absl::OkStatus();
}

}  // namespace hyserve::kv_cache
