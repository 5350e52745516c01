// The importer's connections: up to a few lanes per exporter, kept open, the least loaded one
// taken. Progress thread only.
#ifndef HYSERVE_KV_TRANSFER_PEER_LANES_H_
#define HYSERVE_KV_TRANSFER_PEER_LANES_H_

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "kv_transfer/transport.h"

namespace hyserve::kv_transfer {

class PeerLanes {
 public:
  PeerLanes(Transport* transport, int lanes_per_peer)
      : transport_(*transport), lanes_per_peer_(static_cast<size_t>(lanes_per_peer)) {}

  // A lane to this peer for one more pull; connects while all open ones are busy and there are
  // fewer than lanes_per_peer. Errors of Transport::Connect.
  absl::StatusOr<EndpointId> Acquire(const PeerAddress& peer);
  // The pull has ended; no effect on a forgotten lane.
  void Release(EndpointId lane);
  // The lane is closed or about to be: never given out again.
  void Forget(EndpointId lane);
  void CloseAll();

 private:
  struct Peer {
    PeerAddress address;
    std::vector<EndpointId> lanes;
  };
  // Closes idle lanes of earlier processes at the address, and of any peer when there are too many.
  void CloseIdle(const PeerAddress& peer);

  Transport& transport_;
  const size_t lanes_per_peer_;
  std::vector<Peer> peers_;
  absl::flat_hash_map<EndpointId, int> pulls_;  // per lane
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_PEER_LANES_H_
