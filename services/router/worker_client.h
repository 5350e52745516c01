// WorkerLink over gRPC: one channel per worker, a client reactor per call.
#ifndef HYSERVE_SERVICES_ROUTER_WORKER_CLIENT_H_
#define HYSERVE_SERVICES_ROUTER_WORKER_CLIENT_H_

#include <memory>
#include <string>

#include "services/router/worker_link.h"

namespace hyserve::router {

// `address` is host:port. Connects when first used.
std::shared_ptr<WorkerLink> ConnectWorker(const std::string& address);

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_WORKER_CLIENT_H_
