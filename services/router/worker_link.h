// The way from the router to one worker, without gRPC in sight: calls, their events, cancellation.
#ifndef HYSERVE_SERVICES_ROUTER_WORKER_LINK_H_
#define HYSERVE_SERVICES_ROUTER_WORKER_LINK_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "hyserve/v1/worker.pb.h"

namespace hyserve::router {

// Receives the events of the calls of one request. Called on any thread, one call at a time per
// worker call; must not block. OnPrefillEnd / OnDecodeEnd is the last of each call, always.
class WorkerCallHandler {
 public:
  virtual ~WorkerCallHandler() = default;
  virtual void OnPrefillEvent(uint32_t attempt, const v1::PrefillEvent& event) = 0;
  virtual void OnPrefillEnd(uint32_t attempt, const absl::Status& status) = 0;
  // False: read nothing more until WorkerCall::Resume().
  virtual bool OnDecodeEvent(uint32_t attempt, const v1::DecodeEvent& event) = 0;
  virtual void OnDecodeEnd(uint32_t attempt, const absl::Status& status) = 0;
};

// A running call. Thread-safe; both functions may be called after its end.
class WorkerCall {
 public:
  virtual ~WorkerCall() = default;
  virtual void Cancel() = 0;
  virtual void Resume() = 0;
};

// Thread-safe.
class WorkerLink {
 public:
  virtual ~WorkerLink() = default;
  // The handler is kept alive until the call's end. Handler functions are never called from within.
  virtual std::shared_ptr<WorkerCall> Prefill(const v1::PrefillRequest& request,
                                              absl::Time deadline,
                                              std::shared_ptr<WorkerCallHandler> handler) = 0;
  virtual std::shared_ptr<WorkerCall> Decode(const v1::DecodeRequest& request, absl::Time deadline,
                                             std::shared_ptr<WorkerCallHandler> handler) = 0;
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_WORKER_LINK_H_
