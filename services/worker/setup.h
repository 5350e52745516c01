// From the configuration file to the options of the engine and of the transfer, and the checks
// between the two.
#ifndef HYSERVE_SERVICES_WORKER_SETUP_H_
#define HYSERVE_SERVICES_WORKER_SETUP_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/runtime/engine.h"
#include "hyserve/v1/worker.pb.h"
#include "kv_transfer/exporter.h"
#include "kv_transfer/importer.h"
#include "kv_transfer/transport.h"
#include "services/common/config.h"

namespace hyserve::worker {

inline constexpr uint32_t kProtocolVersion = 1;

runtime::EngineOptions ToEngineOptions(const common::Config& config,
                                       const common::WorkerSettings& settings);

// `transport` decides the size of a message, within the configuration's limit.
kv_transfer::ExporterOptions ToExporterOptions(const common::TransferSettings& settings,
                                               const kv_transfer::Transport& transport);
kv_transfer::ImporterOptions ToImporterOptions(const common::TransferSettings& settings);

kv_transfer::MemoryKind ToMemoryKind(const common::WorkerSettings& settings);
// The engine's KV pool as the transfer sees it.
kv_transfer::MemoryRegions ToRegions(const runtime::Engine& engine, kv_transfer::MemoryKind kind);

// The transport of the configuration, listening beside the worker's gRPC address.
// INVALID_ARGUMENT for a transport that cannot leave the process; errors of CreateUcxTransport.
absl::StatusOr<std::unique_ptr<kv_transfer::Transport>> MakeTransport(
    const common::Config& config, const common::WorkerSettings& settings);

v1::WorkerRole ToRole(const std::string& role);  // "prefill", "decode", "monolithic"

// Bytes of the longest request that a worker can be sent.
int64_t MaxRequestBytes(int64_t max_context_tokens);

}  // namespace hyserve::worker

#endif  // HYSERVE_SERVICES_WORKER_SETUP_H_
