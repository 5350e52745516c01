// The requests that are being served, by id: unique ids, a limit, and a way to stop them all. A
// request's id is free again when it has ended; the request itself lives on until its last call to
// a worker has. Thread-safe.
#ifndef HYSERVE_SERVICES_ROUTER_LIVE_REQUESTS_H_
#define HYSERVE_SERVICES_ROUTER_LIVE_REQUESTS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/common/status_mapping.h"

namespace hyserve::router {

class LiveRequest {
 public:
  virtual ~LiveRequest() = default;
  virtual void Shutdown() = 0;  // end with a status that says the router stops, cancel all calls
};

class LiveRequests {
 public:
  explicit LiveRequests(int32_t limit) : limit_(limit) {}

  // ALREADY_EXISTS: the id is live. RESOURCE_EXHAUSTED: too many. UNAVAILABLE: draining.
  absl::Status Add(const std::string& id, std::weak_ptr<LiveRequest> request) {
    absl::MutexLock lock(&mutex_);
    if (draining_) {
      return common::WithRetryDelay(absl::UnavailableError("draining: the router stops"),
                                    absl::Seconds(1));
    }
    if (static_cast<int32_t>(requests_.size()) >= limit_) {
      return common::WithRetryDelay(
          absl::ResourceExhaustedError("overloaded: too many live requests"), absl::Seconds(1));
    }
    if (!requests_.try_emplace(id, std::move(request)).second) {
      return absl::AlreadyExistsError("request_id: a request with this id is live");
    }
    return absl::OkStatus();
  }
  void Remove(const std::string& id) {
    absl::MutexLock lock(&mutex_);
    requests_.erase(id);
  }
  int32_t size() const {
    absl::MutexLock lock(&mutex_);
    return static_cast<int32_t>(requests_.size());
  }

  // Refuses new requests from now on.
  void StartDraining() {
    absl::MutexLock lock(&mutex_);
    draining_ = true;
  }
  bool draining() const {
    absl::MutexLock lock(&mutex_);
    return draining_;
  }
  // Blocks until there are none; false when `timeout` passed first.
  bool WaitEmpty(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    const auto empty = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return requests_.empty(); };
    return mutex_.AwaitWithTimeout(absl::Condition(&empty), timeout);
  }
  // Every request from its construction to its destruction.
  void Attach(LiveRequest* key, std::weak_ptr<LiveRequest> request) {
    absl::MutexLock lock(&mutex_);
    objects_.emplace(key, std::move(request));
  }
  void Detach(LiveRequest* key) {
    absl::MutexLock lock(&mutex_);
    objects_.erase(key);
  }
  // Ends all of them, calls to workers included.
  void ShutdownAll() {
    std::vector<std::shared_ptr<LiveRequest>> requests;
    {
      absl::MutexLock lock(&mutex_);
      for (const auto& [key, weak] : objects_) {
        if (std::shared_ptr<LiveRequest> request = weak.lock())
          requests.push_back(std::move(request));
      }
    }
    for (const std::shared_ptr<LiveRequest>& request : requests) request->Shutdown();
  }
  // Blocks until every request that there ever was is destroyed; false when `timeout` passed first.
  // REQUIRES: ShutdownAll() was called.
  bool WaitDestroyed(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return objects_.empty(); };
    return mutex_.AwaitWithTimeout(absl::Condition(&none), timeout);
  }

 private:
  const int32_t limit_;
  mutable absl::Mutex mutex_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_map<std::string, std::weak_ptr<LiveRequest>> requests_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<LiveRequest*, std::weak_ptr<LiveRequest>> objects_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_LIVE_REQUESTS_H_
