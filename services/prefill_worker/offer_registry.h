// Which sequence an offer belongs to. The exporter knows transfer ids only.
#ifndef HYSERVE_SERVICES_PREFILL_WORKER_OFFER_REGISTRY_H_
#define HYSERVE_SERVICES_PREFILL_WORKER_OFFER_REGISTRY_H_

#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "kv_transfer/ticket.h"

namespace hyserve::prefill_worker {

class OfferOwner {
 public:
  virtual ~OfferOwner() = default;
  // Exporter's OnReleased: nothing touches the memory any more. Progress thread; must not block.
  virtual void OnReleased(kv_transfer::ReleaseReason reason) = 0;
};

// Thread-safe. Bounded by the exporter's max_offers.
class OfferRegistry {
 public:
  // False: the id is in use.
  bool Add(const kv_transfer::TransferId& id, std::shared_ptr<OfferOwner> owner) {
    absl::MutexLock lock(&mutex_);
    return owners_.try_emplace(id, std::move(owner)).second;
  }
  void Remove(const kv_transfer::TransferId& id) { Take(id); }
  void Release(const kv_transfer::TransferId& id, kv_transfer::ReleaseReason reason) {
    if (const std::shared_ptr<OfferOwner> owner = Take(id)) owner->OnReleased(reason);
  }

 private:
  std::shared_ptr<OfferOwner> Take(const kv_transfer::TransferId& id) {
    absl::MutexLock lock(&mutex_);
    const auto found = owners_.find(id);
    if (found == owners_.end()) return nullptr;
    std::shared_ptr<OfferOwner> owner = std::move(found->second);
    owners_.erase(found);
    return owner;
  }

  absl::Mutex mutex_;
  absl::flat_hash_map<kv_transfer::TransferId, std::shared_ptr<OfferOwner>> owners_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace hyserve::prefill_worker

#endif  // HYSERVE_SERVICES_PREFILL_WORKER_OFFER_REGISTRY_H_
