// Bandwidth of a hand-off between two processes on this machine, against ucx_perftest over the same
// transport and message size in the same run.
//
//   kv_transfer_bench [--message_bytes N] [--tokens N] [--transfers N] [--transports tcp]
//                     [--net_devices lo] [--checksum 0|1] [--scattered 0|1] [--in_flight N]
//                     [--preset 80b|7b] [--device cpu|cuda:N] [--peer_device cuda:N]
//                     [--policy auto|direct|staged]
//                     [--perftest PATH|none] [--out rows.jsonl] [--commit HASH]
//                     [--settings NAME=VALUE,NAME=VALUE]
//
// The hand-off is that of an 80B HySparse model in bf16 (5 full layers with slices of 163,840
// bytes, a window slab of 14.4 MB) or of a 7B one (10 full layers, slices of 262,144 bytes, 13.6
// MB). A child process exports, this one imports; every offer is complete before it is pulled, so
// the time is that of the transfer alone (first announcement to last verified byte). The first
// transfer warms up and is checked byte for byte. Prints the median and the spread of both sides of
// the comparison, and their ratio. With a GPU both processes hold their state in its memory, or the
// child in that of peer_device, and a copy of as many bytes on the device is timed as well.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "kv_transfer/crc32c.h"
#include "kv_transfer/cuda/open_device.h"
#include "kv_transfer/exporter.h"
#include "kv_transfer/importer.h"
#include "kv_transfer/link_probe.h"
#include "kv_transfer/progress_loop.h"
#include "kv_transfer/ucx/ucx_transport.h"
#include "nlohmann/json.hpp"

namespace hyserve::kv_transfer {
namespace {

struct Flags {
  std::map<std::string, std::string> values = {
      {"message_bytes", "0"}, {"tokens", "8192"},   {"transfers", "9"},
      {"transports", "tcp"},  {"net_devices", "lo"}, {"checksum", "1"},
      {"scattered", "0"},     {"out", ""},          {"commit", "unknown"},
      {"settings", ""},       {"in_flight", "4"},   {"preset", "80b"},
      {"device", "cpu"},      {"peer_device", ""},  {"policy", "auto"},
      {"perftest", "ucx_perftest"}};
  std::string Text(const std::string& name) const { return values.at(name); }
  int64_t Number(const std::string& name) const { return std::stoll(values.at(name)); }
};

kv_cache::KvLayout PresetLayout(const std::string& preset) {
  const bool large = preset == "80b";
  kv_cache::KvLayout layout;
  layout.dtype = tensor::DType::kBF16;
  const int full_layers = large ? 5 : 10;
  for (int i = 0; i < full_layers; ++i) layout.full_layers.push_back((large ? 11 : 4) * i);
  layout.num_kv_heads = large ? 4 : 8;
  layout.head_dim = large ? 192 : 128;
  layout.v_head_dim = 128;
  layout.window = 128;
  layout.slab_bytes = large ? 14'417'920 : 13'631'488;
  for (int i = 0; i + 1 < full_layers; ++i) layout.oracle_slots.push_back(i);
  layout.selected_blocks = 16;
  layout.num_layers = large ? 49 : 36;
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

// State of a worker, on the host or on a device. Its contents are one pattern of random bytes again
// and again, of a length that fits no page, so that bytes in a wrong place are wrong.
class Memory {
 public:
  Memory(const kv_cache::KvLayout& layout, int64_t num_blocks, std::shared_ptr<DeviceMemory> device)
      : device_(std::move(device)), pattern_(size_t{16} * 1'048'583 / 8) {
    std::mt19937_64 random(1);
    for (uint64_t& word : pattern_) word = random();
    regions.layout = layout;
    regions.num_blocks = num_blocks;
    regions.num_slabs = 1;
    regions.kind = device_ == nullptr ? MemoryKind::kHost : MemoryKind::kCuda;
    regions.blocks = Allocate(host_blocks_, regions.blocks_bytes());
    regions.slabs = Allocate(host_slab_, layout.slab_bytes);
  }
  ~Memory() {
    if (device_ == nullptr) return;
    device_->Free(DeviceMemory::Space::kDevice, regions.blocks);
    device_->Free(DeviceMemory::Space::kDevice, regions.slabs);
  }

  bool Fill() {
    return Visit(regions.blocks, regions.blocks_bytes(), true) &&
           Visit(regions.slabs, regions.slabs_bytes(), true);
  }
  bool Holds() {
    return Visit(regions.blocks, regions.blocks_bytes(), false) &&
           Visit(regions.slabs, regions.slabs_bytes(), false);
  }
  // Seconds of a copy of the first half of the blocks to the second one; 0 without a device.
  double CopySeconds() {
    if (device_ == nullptr) return 0;
    const size_t half = regions.blocks_bytes() / 2;
    std::vector<double> seconds;
    for (int i = 0; i < 11; ++i) {
      const ClockTime start = SteadyNow();
      if (!CopyAndWait(*device_, DeviceMemory::Direction::kOnDevice, regions.blocks + half,
                       regions.blocks, half).ok()) {
        return 0;
      }
      seconds.push_back(absl::ToDoubleSeconds(SteadyNow() - start));
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  }
  MemoryRegions regions;

 private:
  char* Allocate(std::vector<char>& host, size_t bytes) {
    if (device_ != nullptr) {
      const auto data = device_->Allocate(DeviceMemory::Space::kDevice, bytes);
      if (data.ok()) return *data;
      std::cerr << data.status() << "\n";
      std::exit(1);
    }
    host.resize(bytes);
    return host.data();
  }
  bool Visit(char* data, size_t bytes, bool fill) {
    using Direction = DeviceMemory::Direction;
    const size_t period = pattern_.size() * sizeof(uint64_t);
    std::vector<char> copy(device_ == nullptr || fill ? 0 : period);
    for (size_t offset = 0; offset < bytes; offset += period) {
      const size_t part = std::min(period, bytes - offset);
      if (device_ == nullptr && fill) {
        std::memcpy(data + offset, pattern_.data(), part);
      } else if (fill) {
        if (!CopyAndWait(*device_, Direction::kToDevice, data + offset, pattern_.data(), part).ok())
          return false;
      } else {
        const char* there = data + offset;
        if (device_ != nullptr) {
          if (!CopyAndWait(*device_, Direction::kToHost, copy.data(), there, part).ok())
            return false;
          there = copy.data();
        }
        if (std::memcmp(there, pattern_.data(), part) != 0) return false;
      }
    }
    return true;
  }

  const std::shared_ptr<DeviceMemory> device_;
  std::vector<uint64_t> pattern_;
  std::vector<char> host_blocks_;
  std::vector<char> host_slab_;
};

// The exporting process's device.
std::string PeerDevice(const Flags& flags) {
  return flags.Text(flags.Text("peer_device").empty() ? "device" : "peer_device");
}

UcxOptions TransportOptions(const Flags& flags, const std::string& device_name) {
  UcxOptions options;
  options.transports = flags.Text("transports");
  options.net_devices = flags.Text("net_devices");
  options.message_bytes = static_cast<size_t>(flags.Number("message_bytes"));
  auto device = OpenDevice(device_name);
  if (!device.ok()) {
    std::cerr << device.status() << "\n";
    std::exit(1);
  }
  options.device = *std::move(device);
  const std::string policy = flags.Text("policy");
  if (policy == "direct") options.device_path = DevicePathPolicy::kDirect;
  if (policy == "staged") options.device_path = DevicePathPolicy::kStaged;
  options.on_path = [](const PathReport& report) {
    std::cerr << "path: " << Name(report.path) << ", " << report.bytes_per_second / 1e9 << " GB/s, "
              << report.connection << ", " << report.reason << "\n";
  };
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
  const kv_cache::KvLayout layout = PresetLayout(flags.Text("preset"));
  const int64_t num_blocks = kv_cache::KvLayout::NumBlocks(flags.Number("tokens"));
  const UcxOptions transport_options = TransportOptions(flags, PeerDevice(flags));
  Memory memory(layout, num_blocks, transport_options.device);
  if (!memory.Fill()) return 1;
  auto transport = CreateUcxTransport(transport_options);
  if (!transport.ok()) {
    std::cerr << transport.status() << "\n";
    return 1;
  }
  const auto probe = LinkProbe::Create(transport->get());
  ExporterOptions options;
  options.checksum = flags.Number("checksum") != 0;
  options.max_messages_in_flight = static_cast<int32_t>(flags.Number("in_flight"));
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
  if (flags.Text("perftest") == "none") return 0;
  std::string own = "UCX_TCP_PUT_ENABLE=n";  // as the transport sets it
  std::string transports = flags.Text("transports");
  const bool device = flags.Text("device") != "cpu";
  const bool staged = flags.Text("policy") == "staged";
  if (device) {
    // Where we stage: what UCX does by itself without a way between devices.
    transports += staged ? ",cuda_copy" : ",cuda_copy,cuda_ipc";
    own += " UCX_RNDV_SCHEME=get_zcopy UCX_CUDA_IPC_ENABLE_GET_ZCOPY=on";
  }
  std::istringstream settings(flags.Text("settings"));
  for (std::string setting; std::getline(settings, setting, ',');) own += " UCX_" + setting;
  const std::string environment = "UCX_TLS=" + transports +
                                  " UCX_NET_DEVICES=" + flags.Text("net_devices") +
                                  " UCX_LOG_LEVEL=error " + own + " ";
  const std::string port = std::to_string(20'000 + getpid() % 10'000);
  const size_t bytes = (device ? 8 : 1) * (size_t{1} << 30) >> (device && staged ? 4 : 0);
  const std::string test = flags.Text("perftest") + " -t ucp_am_bw -e -p " + port + " -O " +
                           std::to_string(in_flight) + " -s " + std::to_string(message_bytes) +
                           (device ? " -m cuda,cuda -w 4 -n " : " -w 10 -n ") +
                           std::to_string(std::max<size_t>(20, bytes / message_bytes));
  // Each process uses the first GPU that it sees and must see the other's.
  std::string of_client, of_server;
  if (device && PeerDevice(flags) != flags.Text("device")) {
    const std::string own_gpu = flags.Text("device").substr(flags.Text("device").find(':') + 1);
    const std::string peer_gpu = PeerDevice(flags).substr(PeerDevice(flags).find(':') + 1);
    of_client = "CUDA_VISIBLE_DEVICES=" + own_gpu + "," + peer_gpu + " ";
    of_server = "CUDA_VISIBLE_DEVICES=" + peer_gpu + "," + own_gpu + " ";
  }
  const std::string command = "( " + of_server + environment + test +
                              " >/dev/null 2>&1 & server=$!; sleep 0.5; " + of_client +
                              environment + test +
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
  const UcxOptions transport_options = TransportOptions(flags, flags.Text("device"));
  const kv_cache::KvLayout layout = PresetLayout(flags.Text("preset"));
  const int64_t tokens = flags.Number("tokens");
  const int64_t num_blocks = kv_cache::KvLayout::NumBlocks(tokens);
  Memory memory(layout, num_blocks, transport_options.device);
  auto transport = CreateUcxTransport(transport_options);
  if (!transport.ok()) {
    std::cerr << transport.status() << "\n";
    return 1;
  }
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
    if (flags.Number("scattered") == 0 && !memory.Holds()) {
      std::cerr << "wrong bytes arrived\n";
      return 1;
    }
  }
  const auto probe = LinkProbe::Create(transport->get());
  const size_t message_bytes = (*transport)->preferred_message_bytes();
  const auto link = probe->MeasureAndWait(
      peer,
      {.message_bytes = message_bytes,
       .messages = static_cast<int32_t>(std::clamp<size_t>((1 << 30) / message_bytes, 4, 256))});
  std::vector<double> perftest;
  const auto in_flight = static_cast<int>(flags.Number("in_flight"));
  for (int i = 0; i < 3; ++i) {
    perftest.push_back(PerftestBandwidth(flags, message_bytes, in_flight));
  }
  const double copy_seconds = memory.CopySeconds();
  const double copy_bytes = static_cast<double>(memory.regions.blocks_bytes()) / 2;

  const double rate = Median(rates);
  const double reference = Median(perftest);
  nlohmann::json row = {
      {"benchmark", "kv_transfer"},
      {"commit", flags.Text("commit")},
      {"machine", ProcessorName()},
      {"ucx", UcxVersion()},
      {"transports", flags.Text("transports")},
      {"device", flags.Text("device")},
      {"peer_device", PeerDevice(flags)},
      {"preset", flags.Text("preset")},
      {"path", link.ok() ? std::string(Name(link->path)) : "unknown"},
      {"connection", link.ok() ? link->connection : ""},
      {"in_flight", in_flight},
      {"message_bytes", message_bytes},
      {"checksum", options.checksum},
      {"crc32c", transport_options.device != nullptr ? "kernel"
                 : Crc32cHasHardware()               ? "sse4.2"
                                                     : "portable"},
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
      {"device_copy_gb_per_second", copy_seconds > 0 ? copy_bytes / copy_seconds / 1e9 : 0.0},
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
