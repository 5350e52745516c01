#include "services/router/prefix_index.h"

#include "absl/hash/hash.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "services/router/model_info.h"

namespace hyserve::router {

std::vector<BlockHash> HashBlocks(std::span<const int32_t> prompt, std::string_view scope,
                                  uint64_t salt) {
  const size_t num_blocks = prompt.size() / kTokensPerBlock;
  std::vector<BlockHash> hashes;
  hashes.reserve(num_blocks);
  uint64_t parent = absl::HashOf(salt, absl::string_view(scope.data(), scope.size()));
  for (size_t i = 0; i < num_blocks; ++i) {
    const absl::Span<const int32_t> block(prompt.data() + i * kTokensPerBlock, kTokensPerBlock);
    parent = absl::HashOf(parent, block);
    hashes.push_back(parent);
  }
  return hashes;
}

int32_t PrefixIndex::MatchedBlocks(uint64_t worker, std::span<const BlockHash> hashes) const {
  const auto blocks = workers_.find(worker);
  if (blocks == workers_.end()) return 0;
  int32_t matched = 0;
  while (matched < static_cast<int32_t>(hashes.size()) &&
         blocks->second.contains(hashes[matched])) {
    ++matched;
  }
  return matched;
}

void PrefixIndex::Insert(uint64_t worker, std::span<const BlockHash> hashes) {
  // Last block first: a prefix is then always more recent than what hangs on it, and eviction takes
  // leaves before roots.
  for (size_t i = hashes.size(); i-- > 0;) {
    if (max_blocks_ == 0) return;
    Blocks& blocks = workers_[worker];
    if (const auto found = blocks.find(hashes[i]); found != blocks.end()) {
      lru_.splice(lru_.begin(), lru_, found->second);
      continue;
    }
    lru_.push_front({worker, hashes[i]});
    blocks.emplace(hashes[i], lru_.begin());
    ++size_;
    if (size_ > max_blocks_) {
      const Entry& oldest = lru_.back();
      const auto owner = workers_.find(oldest.worker);
      owner->second.erase(oldest.hash);
      if (owner->second.empty()) workers_.erase(owner);
      lru_.pop_back();
      --size_;
    }
  }
}

void PrefixIndex::RemoveWorker(uint64_t worker) {
  const auto blocks = workers_.find(worker);
  if (blocks == workers_.end()) return;
  for (const auto& [hash, position] : blocks->second) lru_.erase(position);
  size_ -= static_cast<int64_t>(blocks->second.size());
  workers_.erase(blocks);
}

}  // namespace hyserve::router
