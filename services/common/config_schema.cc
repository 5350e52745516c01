// Which keys the configuration has, their ranges, and the rules between them.
#include <algorithm>
#include <set>

#include "absl/strings/numbers.h"
#include "base/strings.h"
#include "services/common/config.h"
#include "services/common/config_reader.h"

namespace hyserve::common {
namespace {

constexpr int64_t kKiB = int64_t{1} << 10;
constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kTiB = int64_t{1} << 40;
constexpr int32_t kMaxTokens = 1 << 24;
constexpr int32_t kMaxReplicas = 256;
constexpr int32_t kTokensPerBlock = 64;
constexpr double kAutoKvMemoryShare = 0.9;

void ReadModel(ConfigTable& table, ModelSettings* model) {
  table.String("path", &model->path);
  table.String("random_preset", &model->random_preset);
  table.Enum("random_dtype", &model->random_dtype, {"f32", "bf16"});
  table.Int("random_seed", &model->random_seed, 0, int64_t{1} << 53);
  table.String("name", &model->name, 128);
  if (model->path.empty() == model->random_preset.empty()) {
    table.Problem(model->path.empty() ? "path" : "random_preset",
                  "exactly one of path and random_preset must be given");
  }
  if (!model->name.empty()) return;
  std::string name = model->path.empty() ? model->random_preset : model->path;
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  model->name = name.substr(name.rfind('/') + 1);
}

void ReadRouter(ConfigTable& table, RouterSettings* router) {
  table.Address("listen", &router->listen);
  table.Address("registry_listen", &router->registry_listen);
  table.Address("metrics_listen", &router->metrics_listen);
  table.Int("text_threads", &router->text_threads, 1, 256);
  table.Bytes("inline_text", &router->inline_text_bytes, 0, kMiB);
  table.Int("text_queue", &router->text_queue, 1, 1 << 20);
  table.Int("prefix_index_blocks", &router->prefix_index_blocks, 0, int64_t{1} << 28);
  table.Duration("pair_quarantine", &router->pair_quarantine, absl::Milliseconds(10),
                 absl::Minutes(10));
}

void CheckBlocks(ConfigTable& table, std::string_view key, int32_t tokens) {
  if (tokens % kTokensPerBlock != 0) {
    table.Problem(key, StrCat("must be a multiple of ", kTokensPerBlock, "; got ", tokens));
  }
}

// "cuda:" and a number without leading zeros.
bool IsGpu(std::string_view device) {
  if (device == "cuda") return true;
  if (device.substr(0, 5) != "cuda:") return false;
  const std::string_view number = device.substr(5);
  return !number.empty() && number.size() <= 3 && (number == "0" || number[0] != '0') &&
         std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; });
}

void ReadDevice(ConfigTable& table, WorkerSettings* worker) {
  table.String("device", &worker->device, 32);
  const bool is_gpu = IsGpu(worker->device);
  if (!is_gpu && worker->device != "cpu") {
    const bool means_gpu = worker->device.rfind("gpu", 0) == 0 ||
                           worker->device.rfind("cuda", 0) == 0 ||
                           worker->device.rfind("nvidia", 0) == 0;
    table.Problem("device", StrCat("must be cpu, cuda or cuda:N; got \"", worker->device, "\"",
                                   means_gpu ? "; did you mean \"cuda:0\"?" : ""));
  }
  table.Enum("isa", &worker->isa, {"auto", "avx512_bf16", "avx512", "avx2", "scalar"});
  if (is_gpu && worker->isa != "auto") table.Problem("isa", "is of the device cpu only");
  table.Int("threads", &worker->threads, 0, 1024);
  const bool is_share = table.BytesOrShare("kv_memory", &worker->kv_memory_bytes,
                                           &worker->kv_memory_share, kAutoKvMemoryShare, kMiB,
                                           64 * kTiB);
  if (is_share && worker->device == "cpu") {
    table.Problem("kv_memory", "auto and percentages need a device cuda; give a size (1GiB)");
  }
}

void ReadWorkerKeys(ConfigTable& table, bool may_be_monolithic, WorkerSettings* worker) {
  table.String("name", &worker->name, 64);
  if (may_be_monolithic) table.Enum("role", &worker->role, {"decode", "monolithic"});
  table.Address("listen", &worker->listen);
  table.Address("advertise", &worker->advertise);
  table.Address("metrics_listen", &worker->metrics_listen);
  ReadDevice(table, worker);
  table.Int("max_context_tokens", &worker->max_context_tokens, 0, kMaxTokens);
  table.Int("max_sequences", &worker->max_sequences, 1, 65536);
  table.Int("chunk_tokens", &worker->chunk_tokens, kTokensPerBlock, 1 << 20);
  CheckBlocks(table, "chunk_tokens", worker->chunk_tokens);
  table.Int("max_queue", &worker->max_queue, 1, 1 << 20);
  table.Bool("prefix_cache", &worker->prefix_cache);
  table.Int("snapshot_interval_tokens", &worker->snapshot_interval_tokens, kTokensPerBlock,
            kMaxTokens);
  CheckBlocks(table, "snapshot_interval_tokens", worker->snapshot_interval_tokens);
  table.Int("snapshot_slabs", &worker->snapshot_slabs, 0, 65536);
}

// "host:port" with the port plus `offset`; unchanged for port 0 and for an empty address.
std::string OffsetPort(const std::string& address, int32_t offset) {
  const size_t colon = address.rfind(':');
  int32_t port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port)) {
    return address;
  }
  return port == 0 ? address : StrCat(address.substr(0, colon + 1), port + offset);
}

void ReadWorkers(ConfigTable& root, const std::string& section,
                 std::vector<WorkerSettings>* workers) {
  const bool may_be_monolithic = section == "decode";
  const auto add = [&](WorkerSettings worker, int32_t offset) {
    const int32_t index = static_cast<int32_t>(
        std::count_if(workers->begin(), workers->end(),
                      [&](const WorkerSettings& other) { return other.role == worker.role; }));
    if (worker.name.empty()) {
      worker.name = StrCat(worker.role, "-", index);
    } else if (offset > 0) {
      StrAppend(&worker.name, "-", offset);
    }
    worker.listen = OffsetPort(worker.listen, offset);
    worker.advertise = OffsetPort(worker.advertise, offset);
    worker.metrics_listen = OffsetPort(worker.metrics_listen, offset);
    workers->push_back(std::move(worker));
  };
  if (root.IsList(section)) {
    root.List(section, kMaxReplicas, [&](ConfigTable& table) {
      WorkerSettings worker;
      worker.role = section;
      ReadWorkerKeys(table, may_be_monolithic, &worker);
      add(std::move(worker), 0);
    });
    return;
  }
  if (!root.Has(section)) {
    root.Table(section, [](ConfigTable&) {});  // makes the key known
    return;
  }
  root.Table(section, [&](ConfigTable& table) {
    WorkerSettings worker;
    worker.role = section;
    int32_t replicas = 1;
    table.Int("replicas", &replicas, 0, kMaxReplicas);
    ReadWorkerKeys(table, may_be_monolithic, &worker);
    for (int32_t i = 0; i < replicas; ++i) add(worker, i);
  });
}

void ReadTransfer(ConfigTable& table, TransferSettings* transfer) {
  table.Enum("transport", &transfer->transport, {"ucx", "loopback"});
  table.String("transports", &transfer->transports, 256);
  table.String("net_devices", &transfer->net_devices, 256);
  table.Int("port_first", &transfer->port_first, 0, 65535);
  table.Int("port_last", &transfer->port_last, 0, 65535);
  if (transfer->port_last < transfer->port_first) {
    table.Problem("port_last", StrCat("must be at least port_first (", transfer->port_first,
                                      "); got ", transfer->port_last));
  }
  table.Duration("lease", &transfer->lease, absl::Milliseconds(100), absl::Minutes(10));
  table.Duration("lease_renew", &transfer->lease_renew, absl::Milliseconds(10), absl::Minutes(5));
  if (transfer->lease < 3 * transfer->lease_renew) {
    table.Problem("lease", StrCat("must be at least 3 x lease_renew (",
                                  absl::FormatDuration(3 * transfer->lease_renew), "); got ",
                                  absl::FormatDuration(transfer->lease)));
  }
  table.Duration("progress_timeout", &transfer->progress_timeout, absl::Milliseconds(10),
                 absl::Minutes(5));
  table.Bytes("max_message", &transfer->max_message_bytes, 64 * kKiB, 1024 * kMiB);
  table.Int("messages_in_flight", &transfer->messages_in_flight, 1, 1024);
  table.Double("min_link_bytes_per_second", &transfer->min_link_bytes_per_second, 0, 1e13);
}

void ReadLimits(ConfigTable& table, LimitSettings* limits) {
  table.Bytes("request", &limits->request_bytes, kKiB, 64 * kMiB);
  table.Bytes("metadata", &limits->metadata_bytes, kKiB, 16 * kKiB);
  table.Int("streams_per_connection", &limits->streams_per_connection, 1, 10'000);
  table.Int("live_requests", &limits->live_requests, 1, 50'000);
  table.Int("queued_requests", &limits->queued_requests, 0, 1 << 20);
  table.Int("queued_tokens", &limits->queued_tokens, 1, int64_t{1} << 40);
  table.Int("default_max_tokens", &limits->default_max_tokens, 1, kMaxTokens);
  table.Int("max_tokens", &limits->max_tokens, 1, kMaxTokens);
  table.Int("messages", &limits->messages, 1, 8192);
  table.Int("logprobs", &limits->logprobs, 0, 20);
  table.Int("prompt_logprobs", &limits->prompt_logprobs, 0, 20);
  table.Int("logit_bias", &limits->logit_bias, 0, 1024);
  table.Int("stop_token_ids", &limits->stop_token_ids, 0, 256);
  table.Int("stop_strings", &limits->stop_strings, 0, 16);
  table.Int("stop_string_bytes", &limits->stop_string_bytes, 1, 1024);
  table.Duration("default_deadline", &limits->default_deadline, absl::Seconds(1), absl::Hours(24));
  table.Duration("max_deadline", &limits->max_deadline, absl::Seconds(1), absl::Hours(24));
  table.Duration("max_queue_time", &limits->max_queue_time, absl::Milliseconds(1), absl::Hours(1));
  table.Int("retries", &limits->retries, 0, 10);
  table.Double("retry_budget_ratio", &limits->retry_budget_ratio, 0, 1);
  table.Int("backlog_tokens", &limits->backlog_tokens, 1, 1 << 20);
  table.Bytes("backlog", &limits->backlog_bytes, kKiB, 64 * kMiB);
  table.Duration("slow_consumer_kill", &limits->slow_consumer_kill, absl::Milliseconds(10),
                 absl::Minutes(10));
  table.Duration("drain_soft", &limits->drain_soft, absl::ZeroDuration(), absl::Hours(1));
  table.Duration("drain_hard", &limits->drain_hard, absl::ZeroDuration(), absl::Hours(1));
  if (limits->drain_soft > limits->drain_hard) {
    table.Problem("drain_soft", "must not be longer than drain_hard");
  }
  if (limits->default_deadline > limits->max_deadline) {
    table.Problem("default_deadline", "must not be longer than max_deadline");
  }
  if (limits->default_max_tokens > limits->max_tokens) {
    table.Problem("default_max_tokens", "must not be larger than max_tokens");
  }
}

void CheckWorkers(ConfigTable& root, const Config& config) {
  std::set<std::string> names;
  bool prefill = false, decode = false;
  for (const WorkerSettings& worker : config.workers) {
    if (!names.insert(worker.name).second) {
      root.Problem(worker.role == "prefill" ? "prefill" : "decode",
                   StrCat("two workers are called \"", worker.name, "\""));
    }
    prefill |= worker.role == "prefill";
    decode |= worker.role == "decode";
  }
  if (config.workers.empty()) root.Problem("decode", "no worker at all");
  if (prefill && !decode) root.Problem("decode", "prefill workers need at least one decode worker");
  if (decode && !prefill)
    root.Problem("prefill", "decode workers need at least one prefill worker");
}

void ReadAll(ConfigTable& root, Config* config) {
  root.Require("model");
  root.Table("model", [&](ConfigTable& table) { ReadModel(table, &config->model); });
  root.Table("router", [&](ConfigTable& table) { ReadRouter(table, &config->router); });
  ReadWorkers(root, "prefill", &config->workers);
  ReadWorkers(root, "decode", &config->workers);
  root.Table("transfer", [&](ConfigTable& table) { ReadTransfer(table, &config->transfer); });
  root.Table("limits", [&](ConfigTable& table) { ReadLimits(table, &config->limits); });
  root.Table("logging", [&](ConfigTable& table) {
    table.Enum("level", &config->logging.level, {"debug", "info", "warning", "error"});
    table.Enum("format", &config->logging.format, {"logfmt", "json"});
  });
  CheckWorkers(root, *config);
}

}  // namespace

absl::StatusOr<Config> ParseConfig(std::string_view text, std::string_view name) {
  Config config;
  absl::Status status =
      ReadConfigText(text, name, [&](ConfigTable& root) { ReadAll(root, &config); });
  if (!status.ok()) return status;
  return config;
}

absl::StatusOr<Config> LoadConfig(const std::string& path) {
  Config config;
  absl::Status status = ReadConfigFile(path, [&](ConfigTable& root) { ReadAll(root, &config); });
  if (!status.ok()) return status;
  return config;
}

}  // namespace hyserve::common
