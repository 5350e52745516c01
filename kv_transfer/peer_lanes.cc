#include "kv_transfer/peer_lanes.h"

#include <algorithm>

namespace hyserve::kv_transfer {
namespace {
constexpr size_t kMaxPeers = 512;
}

absl::StatusOr<EndpointId> PeerLanes::Acquire(const PeerAddress& peer) {
  auto it = std::find_if(peers_.begin(), peers_.end(),
                         [&](const Peer& known) { return known.address == peer; });
  if (it == peers_.end()) {
    CloseIdle(peer);
    peers_.push_back(Peer{peer, {}});
    it = std::prev(peers_.end());
  }
  std::vector<EndpointId>& lanes = it->lanes;
  const auto least = std::min_element(
      lanes.begin(), lanes.end(),
      [this](EndpointId a, EndpointId b) { return pulls_.at(a) < pulls_.at(b); });
  if (least != lanes.end() && (pulls_.at(*least) == 0 || lanes.size() >= lanes_per_peer_)) {
    ++pulls_.at(*least);
    return *least;
  }
  absl::StatusOr<EndpointId> lane = transport_.Connect(peer.transport_address);
  if (!lane.ok()) return lane.status();
  lanes.push_back(*lane);
  pulls_[*lane] = 1;
  return *lane;
}

void PeerLanes::Release(EndpointId lane) {
  const auto it = pulls_.find(lane);
  if (it != pulls_.end()) --it->second;
}

void PeerLanes::Forget(EndpointId lane) {
  if (pulls_.erase(lane) == 0) return;
  for (auto peer = peers_.begin(); peer != peers_.end(); ++peer) {
    const auto it = std::find(peer->lanes.begin(), peer->lanes.end(), lane);
    if (it == peer->lanes.end()) continue;
    peer->lanes.erase(it);
    if (peer->lanes.empty()) peers_.erase(peer);
    return;
  }
}

void PeerLanes::CloseIdle(const PeerAddress& peer) {
  const bool full = peers_.size() >= kMaxPeers;
  std::vector<EndpointId> idle;
  for (const Peer& known : peers_) {
    const bool replaced = known.address.transport_address == peer.transport_address;
    for (const EndpointId lane : known.lanes) {
      if ((replaced || full) && pulls_.at(lane) == 0) idle.push_back(lane);
    }
  }
  for (const EndpointId lane : idle) {
    Forget(lane);
    transport_.Close(lane);
  }
  std::erase_if(peers_, [](const Peer& known) { return known.lanes.empty(); });
}

void PeerLanes::CloseAll() {
  for (const auto& [lane, pulls] : pulls_) transport_.Close(lane);
  pulls_.clear();
  peers_.clear();
}

}  // namespace hyserve::kv_transfer
