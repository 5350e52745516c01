// Bandwidth of a hand-off between two processes on this machine, against ucx_perftest over the same
// transport and message size in the same run.
//
//   kv_transfer_bench [--message_bytes N] [--tokens N] [--transfers N] [--transports tcp]
//                     [--net_devices lo] [--checksum 0|1] [--scattered 0|1] [--out rows.jsonl]
//                     [--commit HASH] [--settings NAME=VALUE,NAME=VALUE]
//
// The hand-off is that of an 80B HySparse model in bf16: 5 full layers with slices of 163,840
// bytes, a window slab of 14.4 MB. A child process exports, this one imports; every offer is
// complete before it is pulled, so the time is that of the transfer alone (first announcement to
// last verified byte). The first transfer warms up and is checked byte for byte. Prints the median
// and the spread of both sides of the comparison, and their ratio.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "kv_transfer/crc32c.h"
#include "kv_transfer/exporter.h"
#include "kv_transfer/importer.h"
#include "kv_transfer/link_probe.h"
#include "kv_transfer/ucx/ucx_transport.h"
#include "nlohmann/json.hpp"

namespace hyserve::kv_transfer {
namespace {

struct Flags {
  std::map<std::string, std::string> values = {
      {"message_bytes", "0"}, {"tokens", "8192"},   {"transfers", "9"},
      {"transports", "tcp"},  {"net_devices", "lo"}, {"checksum", "1"},
      {"scattered", "0"},     {"out", ""},          {"commit", "unknown"},
      {"settings", ""}};
  std::string Text(const std::string& name) const { return values.at(name); }
  int64_t Number(const std::string& name) const { return std::stoll(values.at(name)); }
};

kv_cache::KvLayout PresetLayout() {
  kv_cache::KvLayout layout;
  layout.dtype = tensor::DType::kBF16;
  for (int i = 0; i < 5; ++i) layout.full_layers.push_back(11 * i);
  layout.num_kv_heads = 4;
  layout.head_dim = 192;
  layout.v_head_dim = 128;
  layout.window = 128;
  layout.slab_bytes = 14'417'920;
  layout.oracle_slots = {0, 1, 2, 3};
  layout.selected_blocks = 16;
  layout.num_layers = 49;
  layout.model_digest = "benchmark";
  return layout;
}

std::vector<int32_t> BlockList(int64_t count, bool scattered) {
  std::vector<int32_t> blocks(static_cast<size_t>(count));
  std::iota(blocks.begin(), blocks.end(), 0);
  // Every second pair of neighbours broken: what a busy pool looks like.
  for (size_t i = 0; scattered && i + 3 < blocks.size(); i += 4)
    std::swap(blocks[i], blocks[i + 2]);
  return blocks;
}

TransferId IdOf(int64_t n) {
  TransferId id;
  std::memcpy(id.bytes.data(), &n, sizeof(n));
  id.bytes[15] = 1;
  return id;
}

struct Memory {
  Memory(const kv_cache::KvLayout& layout, int64_t num_blocks, char fill)
      : blocks(static_cast<size_t>(num_blocks) * layout.block_bytes(), fill),
        slab(layout.slab_bytes, fill) {
    regions.layout = layout;
    regions.blocks = blocks.data();
    regions.num_blocks = num_blocks;
    regions.slabs = slab.data();
    regions.num_slabs = 1;
  }
  std::vector<char> blocks;
  std::vector<char> slab;
  MemoryRegions regions;
};

UcxOptions TransportOptions(const Flags& flags) {
  UcxOptions options;
  options.transports = flags.Text("transports");
  options.net_devices = flags.Text("net_devices");
  options.message_bytes = static_cast<size_t>(flags.Number("message_bytes"));
  std::istringstream settings(flags.Text("settings"));
  for (std::string setting; std::getline(settings, setting, ',');) {
    const size_t equals = setting.find('=');
    if (equals == std::string::npos) continue;
    options.settings.emplace_back(setting.substr(0, equals), setting.substr(equals + 1));
  }
  return options;
}

// The exporting child: offers one transfer per line read, says where it can be reached.
int Export(const Flags& flags, int commands, int answers) {
  const kv_cache::KvLayout layout = PresetLayout();
  const int64_t num_blocks = kv_cache::KvLayout::NumBlocks(flags.Number("tokens"));
  Memory memory(layout, num_blocks, 0);
  for (size_t i = 0; i < memory.blocks.size(); ++i)
    memory.blocks[i] = static_cast<char>(i * 7 >> 3);
  for (size_t i = 0; i < memory.slab.size(); ++i) memory.slab[i] = static_cast<char>(i * 5 >> 2);
  auto transport = CreateUcxTransport(TransportOptions(flags));
  if (!transport.ok()) {
    std::cerr << transport.status() << "\n";
    return 1;
  }
  const auto probe = LinkProbe::Create(transport->get());
  ExporterOptions options;
  options.checksum = flags.Number("checksum") != 0;
  auto exporter = Exporter::Create(transport->get(), memory.regions, options,
                                   [](const TransferId&, ReleaseReason) {});
  if (!exporter.ok()) return 1;
  dprintf(answers, "%s %llu\n", (*transport)->local_address().c_str(),
          static_cast<unsigned long long>((*transport)->incarnation()));
  FILE* in = fdopen(commands, "r");
  char line[64];
  while (fgets(line, sizeof(line), in) != nullptr) {
    const TransferId id = IdOf(std::atoll(line));
    if (!(*exporter)
             ->Offer({.id = id, .epoch = 1, .num_tokens = flags.Number("tokens"),
                      .blocks = BlockList(num_blocks, flags.Number("scattered") != 0), .slab = 0})
             .ok()) {
      return 1;
    }
    (*exporter)->SlabReady(
        id, std::vector<int32_t>(layout.selection_bytes() / sizeof(int32_t), 0), "");
    dprintf(answers, "offered\n");
  }
  return 0;
}

// ucx_perftest's average bandwidth in bytes per second; 0 when it is not installed or fails.
double PerftestBandwidth(const Flags& flags, size_t message_bytes, int in_flight) {
  std::string own = "UCX_TCP_PUT_ENABLE=n";  // as the transport sets it
  for (const auto& [name, value] : TransportOptions(flags).settings) {
    own += " UCX_" + name + "=" + value;
  }
  const std::string environment = "UCX_TLS=" + flags.Text("transports") +
                                  " UCX_NET_DEVICES=" + flags.Text("net_devices") +
                                  " UCX_LOG_LEVEL=error " + own + " ";
  const std::string port = std::to_string(20'000 + getpid() % 10'000);
  const std::string test = "ucx_perftest -t ucp_am_bw -p " + port + " -O " +
                           std::to_string(in_flight) + " -s " + std::to_string(message_bytes) +
                           " -w 10 -n " +
                           std::to_string(std::max<size_t>(50, (size_t{1} << 30) / message_bytes));
  const std::string command = "( " + environment + test +
                              " >/dev/null 2>&1 & server=$!; sleep 0.5; " + environment + test +
                              " 127.0.0.1 2>/dev/null; kill $server 2>/dev/null )";
  FILE* out = popen(command.c_str(), "r");
  if (out == nullptr) return 0;
  double megabytes = 0;
  char line[512];
  while (fgets(line, sizeof(line), out) != nullptr) {
    // Final: iterations, three overheads or latencies, average and overall bandwidth in MiB/s,
    // rates.
    std::istringstream words(line);
    std::string first;
    words >> first;
    if (first != "Final:") continue;
    std::vector<double> numbers;
    for (double number; words >> number;) numbers.push_back(number);
    if (numbers.size() >= 6) megabytes = numbers[5];
  }
  pclose(out);
  return megabytes * 1024 * 1024;
}

std::string ProcessorName() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int Import(const Flags& flags, int commands, FILE* answers) {
  char line[256];
  if (fgets(line, sizeof(line), answers) == nullptr) return 1;
  PeerAddress peer;
  std::istringstream(line) >> peer.transport_address >> peer.incarnation;
  auto transport = CreateUcxTransport(TransportOptions(flags));
  if (!transport.ok()) {
    std::cerr << transport.status() << "\n";
    return 1;
  }
  const kv_cache::KvLayout layout = PresetLayout();
  const int64_t tokens = flags.Number("tokens");
  const int64_t num_blocks = kv_cache::KvLayout::NumBlocks(tokens);
  Memory memory(layout, num_blocks, 1);
  ImporterOptions options;
  options.checksum = flags.Number("checksum") != 0;
  auto importer = Importer::Create(transport->get(), memory.regions, options);
  if (!importer.ok()) return 1;

  std::vector<double> rates;
  for (int64_t n = 0; n <= flags.Number("transfers"); ++n) {
    dprintf(commands, "%lld\n", static_cast<long long>(n + 1));
    if (fgets(line, sizeof(line), answers) == nullptr) return 1;
    absl::Notification done;
    PullResult result;
    const absl::Status started = (*importer)->Pull(
        {.id = IdOf(n + 1), .epoch = 1, .source = peer, .num_tokens = tokens,
         .blocks = BlockList(num_blocks, flags.Number("scattered") != 0), .slab = 0},
        [&](const TransferId&, PullResult r) {
          result = std::move(r);
          done.Notify();
        });
    if (!started.ok()) return 1;
    done.WaitForNotification();
    if (!result.status.ok() || result.payload.total() != layout.HandoffBytes(tokens)) {
      std::cerr << "transfer failed: " << result.status << "\n";
      return 1;
    }
    if (n > 0) {
      rates.push_back(static_cast<double>(result.payload.total()) / result.transfer_seconds);
      continue;
    }
    for (size_t i = 0; i < memory.blocks.size(); ++i) {
      if (memory.blocks[i] != static_cast<char>(i * 7 >> 3)) {
        std::cerr << "wrong byte " << i << "\n";
        return 1;
      }
    }
  }
  const auto probe = LinkProbe::Create(transport->get());
  const size_t message_bytes = (*transport)->preferred_message_bytes();
  const auto link = probe->MeasureAndWait(
      peer,
      {.message_bytes = message_bytes,
       .messages = static_cast<int32_t>(std::clamp<size_t>((256 << 20) / message_bytes, 4, 256))});
  std::vector<double> perftest;
  for (int i = 0; i < 3; ++i) perftest.push_back(PerftestBandwidth(flags, message_bytes, 4));

  const double rate = Median(rates);
  const double reference = Median(perftest);
  nlohmann::json row = {
      {"benchmark", "kv_transfer"},
      {"commit", flags.Text("commit")},
      {"machine", ProcessorName()},
      {"ucx", UcxVersion()},
      {"transports", flags.Text("transports")},
      {"message_bytes", message_bytes},
      {"checksum", options.checksum},
      {"crc32c", Crc32cHasHardware() ? "sse4.2" : "portable"},
      {"scattered", flags.Number("scattered") != 0},
      {"tokens", tokens},
      {"handoff_bytes", layout.HandoffBytes(tokens)},
      {"transfers", rates.size()},
      {"gb_per_second", rate / 1e9},
      {"gb_per_second_least", *std::min_element(rates.begin(), rates.end()) / 1e9},
      {"gb_per_second_most", *std::max_element(rates.begin(), rates.end()) / 1e9},
      {"probe_gb_per_second", link.ok() ? link->bytes_per_second / 1e9 : 0.0},
      {"probe_latency_us", link.ok() ? link->latency_us : 0.0},
      {"perftest_gb_per_second", reference / 1e9},
      {"ratio_to_perftest", reference > 0 ? rate / reference : 0.0},
  };
  std::cout << row.dump() << std::endl;
  if (!flags.Text("out").empty())
    std::ofstream(flags.Text("out"), std::ios::app) << row.dump() << "\n";
  return 0;
}

int Main(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = std::string(argv[i]).substr(0, 2) == "--" ? argv[i] + 2 : "";
    if (i + 1 == argc || flags.values.count(name) == 0) {
      std::cerr << "kv_transfer_bench: unknown or incomplete flag " << argv[i] << "\n";
      return 2;
    }
    flags.values[name] = argv[i + 1];
  }
  int commands[2];
  int answers[2];
  if (pipe(commands) != 0 || pipe(answers) != 0) return 1;
  const pid_t child = fork();  // before UCX starts any thread
  if (child == 0) {
    close(commands[1]);
    close(answers[0]);
    _exit(Export(flags, commands[0], answers[1]));
  }
  close(commands[0]);
  close(answers[1]);
  const int result = Import(flags, commands[1], fdopen(answers[0], "r"));
  close(commands[1]);
  waitpid(child, nullptr, 0);
  return result;
}

}  // namespace
}  // namespace hyserve::kv_transfer

int main(int argc, char** argv) { return hyserve::kv_transfer::Main(argc, argv); }
