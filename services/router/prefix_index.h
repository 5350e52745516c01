// Which prefixes the router has sent to which prefill worker: its own approximate view of the
// workers' prefix caches, bounded, least recently used entries first out. It only steers routing,
// never results.
#ifndef HYSERVE_SERVICES_ROUTER_PREFIX_INDEX_H_
#define HYSERVE_SERVICES_ROUTER_PREFIX_INDEX_H_

#include <cstdint>
#include <list>
#include <span>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace hyserve::router {

using BlockHash = uint64_t;

// Hashes of the whole blocks of a prompt; hash i stands for tokens [0, 64 (i + 1)) within a scope.
// `salt` is random per process, so that nobody outside can aim for collisions. Pure.
std::vector<BlockHash> HashBlocks(std::span<const int32_t> prompt, std::string_view scope,
                                  uint64_t salt);

// Not thread-safe.
class PrefixIndex {
 public:
  // At most `max_blocks` entries over all workers.
  explicit PrefixIndex(int64_t max_blocks) : max_blocks_(max_blocks) {}

  // Number of leading blocks that `worker` is expected to have.
  int32_t MatchedBlocks(uint64_t worker, std::span<const BlockHash> hashes) const;
  // The worker computes (and caches) these blocks.
  void Insert(uint64_t worker, std::span<const BlockHash> hashes);
  // The worker is gone.
  void RemoveWorker(uint64_t worker);

  int64_t size() const { return size_; }

 private:
  struct Entry {
    uint64_t worker;
    BlockHash hash;
  };
  using Lru = std::list<Entry>;
  using Blocks = absl::flat_hash_map<BlockHash, Lru::iterator>;

  const int64_t max_blocks_;
  int64_t size_ = 0;
  Lru lru_;  // most recent first
  absl::flat_hash_map<uint64_t, Blocks> workers_;
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_PREFIX_INDEX_H_
