// What tests of hand-offs between two processes share: handoff_peer as the other side, and a pull
// whose result a test waits for.
#ifndef HYSERVE_TESTS_KV_TRANSFER_HANDOFF_PROCESS_H_
#define HYSERVE_TESTS_KV_TRANSFER_HANDOFF_PROCESS_H_

#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "kv_transfer/importer.h"
#include "tests/kv_transfer/peer_process.h"

namespace hyserve::kv_transfer {

class HandoffPeer : public PeerProcess {
 public:
  // `arguments` as handoff_peer.cc says. Returns when the peer can be reached.
  explicit HandoffPeer(const std::vector<std::string>& arguments)
      : PeerProcess(CommandLine(arguments)) {
    std::istringstream in(Line());
    std::string ready;
    in >> ready >> address.transport_address >> address.incarnation;
    EXPECT_EQ(ready, "READY");
  }
  PeerAddress address;

 private:
  static std::vector<std::string> CommandLine(const std::vector<std::string>& arguments) {
    std::vector<std::string> line = {HYSERVE_BINARY_DIR "/bin/handoff_peer"};
    line.insert(line.end(), arguments.begin(), arguments.end());
    return line;
  }
};

struct WaitingPull {
  absl::Notification done;
  PullResult result;
  PullCallback Callback() {
    return [this](const TransferId&, PullResult r) {
      result = std::move(r);
      done.Notify();
    };
  }
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_TESTS_KV_TRANSFER_HANDOFF_PROCESS_H_
