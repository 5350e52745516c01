// The configuration of a whole HyServe: router, prefill and decode workers in one file. Every
// process reads the same file and takes its part; `hyserve up` starts all of it. Plain data.
//
//   model:   {path: models/demo}
//   router:  {listen: 127.0.0.1:8470, registry_listen: 127.0.0.1:8471}
//   prefill: {replicas: 2, listen: 127.0.0.1:8480, kv_memory: 1GiB}   # ports count up
//   decode:                                                           # or one entry per worker
//     - {name: decode-a, listen: 127.0.0.1:8490, max_sequences: 64}
//
// Every key and its range: config_schema.cc.
#ifndef HYSERVE_SERVICES_COMMON_CONFIG_H_
#define HYSERVE_SERVICES_COMMON_CONFIG_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace hyserve::common {

struct ModelSettings {
  std::string path;           // directory of a checkpoint, or
  std::string random_preset;  // a preset with random weights
  std::string random_dtype = "bf16";
  int64_t random_seed = 0;
  std::string name;           // served name; default: last part of the path, or the preset
};

// One prefill, decode or monolithic worker.
struct WorkerSettings {
  std::string name;                       // default: <role>-<index>
  std::string role;                       // "prefill", "decode" or "monolithic"
  std::string listen = "127.0.0.1:0";     // gRPC; port 0: chosen by the system
  std::string advertise;  // what the router dials; default: listen with the real port
  std::string metrics_listen;             // /metrics, /livez, /readyz; empty: none
  std::string device = "cpu";             // "cpu", "cuda" (the first GPU) or "cuda:N"
  std::string isa = "auto";               // of the CPU device; see tensor::DeviceOptions
  int32_t threads = 0;                    // of the CPU device; 0: all cores
  int64_t kv_memory_bytes = int64_t{1} << 30;  // or, on a GPU,
  double kv_memory_share = 0;             // > 0: of what weights and workspaces leave free
  int32_t max_context_tokens = 0;         // 0: the model's
  int32_t max_sequences = 64;
  int32_t chunk_tokens = 1024;            // prompt rows per step, a multiple of 64
  int32_t max_queue = 4096;               // sequences that wait in the engine
  bool prefix_cache = true;
  int32_t snapshot_interval_tokens = 4096;  // restore points inside a prompt, a multiple of 64
  int32_t snapshot_slabs = 16;
};

struct RouterSettings {
  std::string listen = "127.0.0.1:8470";           // public gRPC API
  std::string registry_listen = "127.0.0.1:8471";  // WorkerRegistry; workers dial it
  std::string metrics_listen = "127.0.0.1:9470";   // empty: none
  int32_t text_threads = 1;             // tokenization of long texts
  int64_t inline_text_bytes = 4096;     // texts up to this size are tokenized where they arrive
  int32_t text_queue = 1024;            // long texts that wait for a thread
  int64_t prefix_index_blocks = 1 << 20;  // block hashes remembered over all prefill workers
  absl::Duration pair_quarantine = absl::Seconds(30);  // after a failed transfer, doubling
};

struct TransferSettings {
  std::string transport = "ucx";             // "ucx" or "loopback" (single process)
  std::string transports = "tcp";            // UCX_TLS: which of UCX's transports may be used
  std::string net_devices;  // UCX_NET_DEVICES; empty: lo when listening on loopback
  int32_t port_first = 0;                    // UCX_TCP_PORT_RANGE; 0: any
  int32_t port_last = 0;
  absl::Duration lease = absl::Seconds(10);  // prefill keeps an offer that nobody renews this long
  absl::Duration lease_renew = absl::Seconds(2);
  absl::Duration progress_timeout = absl::Seconds(2);  // a pull without a new byte is given up
  int64_t max_message_bytes = int64_t{16} << 20;
  int32_t messages_in_flight = 8;
  // Floor of a link's bandwidth, at `hyserve doctor` and when a decode worker first hears of a
  // prefill worker; below it no hand-offs. 0: no floor, and workers do not measure ahead.
  double min_link_bytes_per_second = 0;
};

struct LimitSettings {
  int64_t request_bytes = int64_t{8} << 20;
  int64_t metadata_bytes = 8 << 10;
  int32_t streams_per_connection = 100;  // public listener
  int32_t live_requests = 10'000;        // streams of one router
  int32_t queued_requests = 4096;
  int64_t queued_tokens = 32'000'000;    // prompt tokens
  int32_t default_max_tokens = 1024;
  int32_t max_tokens = 32'768;
  int32_t messages = 1024;               // of a chat
  int32_t logprobs = 20;
  int32_t prompt_logprobs = 20;
  int32_t logit_bias = 300;
  int32_t stop_token_ids = 64;
  int32_t stop_strings = 8;
  int32_t stop_string_bytes = 256;
  absl::Duration default_deadline = absl::Minutes(10);
  absl::Duration max_deadline = absl::Minutes(60);
  absl::Duration max_queue_time = absl::Seconds(60);
  int32_t retries = 2;                       // of one request, before its first token
  double retry_budget_ratio = 0.1;           // retries per request, over all requests
  int32_t backlog_tokens = 256;              // per stream, before it counts as slow
  int64_t backlog_bytes = 64 << 10;
  absl::Duration slow_consumer_kill = absl::Seconds(10);
  absl::Duration drain_soft = absl::Seconds(90);
  absl::Duration drain_hard = absl::Seconds(120);
};

struct LoggingSettings {
  std::string level = "info";      // debug, info, warning, error
  std::string format = "logfmt";   // or json
};

struct Config {
  ModelSettings model;
  RouterSettings router;
  std::vector<WorkerSettings> workers;  // prefill first, then decode and monolithic
  TransferSettings transfer;
  LimitSettings limits;
  LoggingSettings logging;

  // The worker of that name, or of that role when the name is empty and there is only one of it.
  // NOT_FOUND or INVALID_ARGUMENT says which names exist.
  absl::StatusOr<WorkerSettings> FindWorker(std::string_view role, std::string_view name) const;
};

// INVALID_ARGUMENT lists every problem, one "file:line:column: key: reason" per line.
absl::StatusOr<Config> LoadConfig(const std::string& path);
absl::StatusOr<Config> ParseConfig(std::string_view text, std::string_view name);

// The command line that all servers share: --config FILE [--name NAME] [--role ROLE]
// [--check-config].
struct ServerFlags {
  std::string config_path;
  std::string name;
  std::string role;
  bool check_config = false;
  bool help = false;
};
// INVALID_ARGUMENT: unknown flag, missing value, no --config.
absl::StatusOr<ServerFlags> ParseServerFlags(int argc, char** argv);
inline constexpr char kServerFlagsUsage[] =
    "  --config FILE    configuration (required)\n"
    "  --name NAME      which worker of the file this process is\n"
    "  --role ROLE      prefill, decode or monolithic, where a name does not say it\n"
    "  --check-config   read the file, report every problem, exit 0 or 78\n";

inline constexpr int kExitUsage = 64;
inline constexpr int kExitConfig = 78;

}  // namespace hyserve::common

#endif  // HYSERVE_SERVICES_COMMON_CONFIG_H_
