#include "services/worker/setup.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>

#include "base/strings.h"
#include "kv_transfer/cuda/open_device.h"
#include "kv_transfer/ucx/ucx_transport.h"
#include "services/common/logging.h"

namespace hyserve::worker {
namespace {

// The host of "host:port", without brackets.
std::string HostOf(const std::string& address) {
  std::string host = address.substr(0, address.rfind(':'));
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  return host;
}

// The first numeric address of a host, "" when it has none.
std::string ToNumeric(const std::string& host) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) return "";
  char text[NI_MAXHOST] = "";
  const int error = getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof(text), nullptr, 0,
                                NI_NUMERICHOST);
  freeaddrinfo(found);
  return error == 0 ? text : "";
}

}  // namespace

runtime::EngineOptions ToEngineOptions(const common::Config& config,
                                       const common::WorkerSettings& settings) {
  runtime::EngineOptions options;
  options.device.name = settings.device;
  options.device.isa = settings.isa;
  options.device.num_threads = settings.threads;
  options.model_directory = config.model.path;
  options.random_preset = config.model.random_preset;
  options.random_dtype =
      config.model.random_dtype == "f32" ? tensor::DType::kF32 : tensor::DType::kBF16;
  options.random_seed = static_cast<uint64_t>(config.model.random_seed);
  options.kv_memory_bytes = settings.kv_memory_bytes;
  options.kv_memory_share = settings.kv_memory_share;
  options.max_context_tokens = settings.max_context_tokens;
  options.max_sequences = settings.max_sequences;
  options.chunk_tokens = settings.chunk_tokens;
  options.max_queue = settings.max_queue;
  options.prefix_cache = settings.prefix_cache;
  options.snapshot_interval_tokens = settings.snapshot_interval_tokens;
  options.snapshot_slabs = settings.snapshot_slabs;
  return options;
}

kv_transfer::MemoryKind ToMemoryKind(const common::WorkerSettings& settings) {
  return settings.device == "cpu" ? kv_transfer::MemoryKind::kHost : kv_transfer::MemoryKind::kCuda;
}

kv_transfer::ExporterOptions ToExporterOptions(const common::TransferSettings& settings,
                                               const kv_transfer::Transport& transport) {
  kv_transfer::ExporterOptions options;
  options.lease = settings.lease;
  options.pending_pull_hold = settings.lease;
  options.peer_loss_grace = std::min(options.peer_loss_grace, settings.lease);
  options.max_message_bytes = std::min(static_cast<size_t>(settings.max_message_bytes),
                                       transport.preferred_message_bytes());
  options.max_messages_in_flight = settings.messages_in_flight;
  // Direct messages of device memory take no host memory, staged ones wait for theirs, and many
  // checksums cost little more than one.
  if (transport.device() != nullptr) options.max_messages_in_flight *= 4;
  return options;
}

kv_transfer::ImporterOptions ToImporterOptions(const common::TransferSettings& settings) {
  kv_transfer::ImporterOptions options;
  options.renew_interval = settings.lease_renew;
  options.progress_timeout = settings.progress_timeout;
  options.silence_timeout = 3 * settings.lease_renew;
  options.transfer_deadline = settings.progress_timeout;
  options.commit_give_up = settings.lease;
  return options;
}

kv_transfer::MemoryRegions ToRegions(const runtime::Engine& engine, kv_transfer::MemoryKind kind) {
  const attention::KvPool& pool = engine.kv_pool();
  kv_transfer::MemoryRegions regions;
  regions.layout = engine.layout();
  regions.blocks = pool.Slice(0, 0);
  regions.num_blocks = pool.num_blocks();
  regions.num_slabs = pool.num_slabs();
  if (regions.num_slabs > 0) regions.slabs = pool.Slab(0);
  regions.kind = kind;
  return regions;
}

absl::StatusOr<std::unique_ptr<kv_transfer::Transport>> MakeTransport(
    const common::Config& config, const common::WorkerSettings& settings) {
  const common::TransferSettings& transfer = config.transfer;
  if (transfer.transport != "ucx") {
    return absl::InvalidArgumentError(StrCat(
        "transfer.transport: ", transfer.transport, " cannot leave the process; use ucx"));
  }
  kv_transfer::UcxOptions options;
  options.listen_address = ToNumeric(HostOf(settings.listen));
  if (!settings.advertise.empty()) {
    options.advertise_address = ToNumeric(HostOf(settings.advertise));
  }
  options.transports = transfer.transports;
  options.net_devices = transfer.net_devices;
  auto device = kv_transfer::OpenDevice(settings.device);
  if (!device.ok()) return device.status();
  options.device = *std::move(device);
  options.on_path = [](const kv_transfer::PathReport& report) {
    common::LogInfo("path of device memory",
                    {{"path", kv_transfer::Name(report.path)},
                     {"connection", report.connection},
                     {"bytes_per_second", report.bytes_per_second},
                     {"reason", report.reason}});
  };
  const bool is_loopback =
      options.listen_address.rfind("127.", 0) == 0 || options.listen_address == "::1";
  if (options.net_devices.empty() && is_loopback) options.net_devices = "lo";
  if (transfer.port_first == 0) return kv_transfer::CreateUcxTransport(options);
  // The listener takes the first free port of the range, connections the others: workers of one
  // host share the range.
  options.tcp_port_range = StrCat(transfer.port_first, "-", transfer.port_last);
  for (options.port = transfer.port_first;; ++options.port) {
    auto transport = kv_transfer::CreateUcxTransport(options);
    if (transport.ok() || !absl::IsUnavailable(transport.status()) ||
        options.port >= transfer.port_last) {
      return transport;
    }
  }
}

v1::WorkerRole ToRole(const std::string& role) {
  if (role == "prefill") return v1::WORKER_ROLE_PREFILL;
  if (role == "decode") return v1::WORKER_ROLE_DECODE;
  if (role == "monolithic") return v1::WORKER_ROLE_MONOLITHIC;
  return v1::WORKER_ROLE_UNSPECIFIED;
}

int64_t MaxRequestBytes(int64_t max_context_tokens) {
  constexpr int64_t kBytesPerToken = 5;             // a varint of 31 bits
  constexpr int64_t kEverythingElse = int64_t{1} << 20;
  return max_context_tokens * kBytesPerToken + kEverythingElse;
}

}  // namespace hyserve::worker
