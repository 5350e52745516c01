// The other process of the UCX tests. Speaks lines on stdin and stdout:
//
//   exporter LAYERS HEAD_DIM SLAB_BYTES NUM_BLOCKS
//            [MESSAGE_BYTES [DEVICE [POLICY [STAGING_BYTES]]]]
//     -> READY <address> <incarnation>
//     <- OFFER <seed> <epoch> <tokens> <first block> <1: all of it, 0: layer 0 only>
//     -> RELEASED <seed> <reason>
//   importer ... (same arguments)
//     <- PULL <seed> <epoch> <tokens> <first block> <address> <incarnation>
//     -> DONE <seed> <status code> <payload bytes> <holds the right bytes: 0 or 1> <seconds>
//   both <- QUIT
//
// DEVICE: cpu, fake, or as OpenDevice() takes it. POLICY: auto, direct or staged.
#include <cstdlib>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "kv_transfer/exporter.h"
#include "kv_transfer/importer.h"
#include "kv_transfer/link_probe.h"
#include "kv_transfer/ucx/ucx_transport.h"
#include "tests/kv_transfer/handoff_pool.h"
#include "tests/kv_transfer/path_policy.h"
#include "tests/kv_transfer/test_device.h"

namespace hyserve::kv_transfer {
namespace {

absl::Mutex output_mutex;
void Say(const std::string& line) {
  absl::MutexLock lock(&output_mutex);
  std::cout << line << std::endl;
}

uint64_t SeedOf(const TransferId& id) {
  uint64_t seed = 0;
  for (int i = 7; i >= 0; --i) seed = seed << 8 | id.bytes[static_cast<size_t>(i)];
  return seed;
}

int ServeExporter(Transport& transport, HandoffPool& pool) {
  auto exporter = Exporter::Create(&transport, pool.regions(), {},
                                   [](const TransferId& id, ReleaseReason reason) {
                                     Say("RELEASED " + std::to_string(SeedOf(id)) + " " +
                                         std::string(Name(reason)));
                                   });
  if (!exporter.ok()) return 1;
  Say("READY " + transport.local_address() + " " + std::to_string(transport.incarnation()));
  std::string line;
  while (std::getline(std::cin, line) && line != "QUIT") {
    std::istringstream in(line);
    std::string verb;
    uint64_t seed = 0;
    uint32_t epoch = 0;
    int64_t tokens = 0;
    int32_t first = 0;
    int all = 1;
    in >> verb >> seed >> epoch >> tokens >> first >> all;
    OfferSpec spec{.id = TestId(seed), .epoch = epoch, .num_tokens = tokens,
                   .blocks = BlockRun(tokens, first),
                   .slab = pool.layout().slab_bytes > 0 ? 0 : -1};
    const auto num_blocks = static_cast<int64_t>(spec.blocks.size());
    pool.Fill(seed, spec.blocks, spec.slab);
    if (!(*exporter)->Offer(spec).ok()) return 1;
    (*exporter)->LayerReady(spec.id, 0, tokens);
    if (all == 1) {
      (*exporter)->SlabReady(spec.id, HandoffPool::Selection(pool.layout(), seed, num_blocks), "");
    }
  }
  return 0;
}

int ServeImporter(Transport& transport, HandoffPool& pool) {
  auto importer = Importer::Create(&transport, pool.regions(), {});
  if (!importer.ok()) return 1;
  Say("READY " + transport.local_address() + " " + std::to_string(transport.incarnation()));
  std::string line;
  while (std::getline(std::cin, line) && line != "QUIT") {
    std::istringstream in(line);
    std::string verb;
    uint64_t seed = 0;
    int32_t first = 0;
    PullSpec spec;
    in >> verb >> seed >> spec.epoch >> spec.num_tokens >> first >>
        spec.source.transport_address >> spec.source.incarnation;
    spec.id = TestId(seed);
    spec.blocks = BlockRun(spec.num_tokens, first);
    spec.slab = pool.layout().slab_bytes > 0 ? 0 : -1;
    const absl::Status status = (*importer)->Pull(
        spec, [&pool, seed, blocks = spec.blocks, slab = spec.slab](const TransferId&,
                                                                    const PullResult& result) {
          std::ostringstream out;
          out << "DONE " << seed << " " << static_cast<int>(result.status.code()) << " "
              << result.payload.total() << " "
              << (result.status.ok() && pool.Holds(seed, blocks, slab) ? 1 : 0) << " "
              << result.seconds;
          Say(out.str());
        });
    if (!status.ok()) return 1;
  }
  return 0;
}

int Main(int argc, char** argv) {
  if (argc < 6) {
    std::cerr << "usage: handoff_peer exporter|importer LAYERS HEAD_DIM SLAB_BYTES NUM_BLOCKS"
                 " [MESSAGE_BYTES [DEVICE [POLICY [STAGING_BYTES]]]]\n";
    return 2;
  }
  UcxOptions options;
  options.net_devices = "lo";
  if (argc > 6) options.message_bytes = std::strtoull(argv[6], nullptr, 10);
  if (argc > 7) options.device = OpenTestDevice(argv[7]);
  if (argc > 8) options.device_path = PolicyOf(argv[8]);
  if (argc > 9) options.staging_bytes = std::strtoull(argv[9], nullptr, 10);
  HandoffPool pool(TestLayout(std::atoi(argv[2]), std::atoi(argv[3]),
                              std::strtoull(argv[4], nullptr, 10)),
                   std::atoll(argv[5]), 1, options.device);
  auto transport = CreateUcxTransport(options);
  if (!transport.ok()) {
    std::cerr << transport.status() << "\n";
    return 1;
  }
  const std::unique_ptr<LinkProbe> probe = LinkProbe::Create(transport->get());
  return std::string(argv[1]) == "exporter" ? ServeExporter(**transport, pool)
                                            : ServeImporter(**transport, pool);
}

}  // namespace
}  // namespace hyserve::kv_transfer

int main(int argc, char** argv) { return hyserve::kv_transfer::Main(argc, argv); }
