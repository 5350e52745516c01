// The words that both sides of a hand-off share: how a transfer is named, where a peer is, where
// the cached state lies in this process, and how a transfer ends. Plain values; copy freely.
#ifndef HYSERVE_KV_TRANSFER_TICKET_H_
#define HYSERVE_KV_TRANSFER_TICKET_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/kv_cache/kv_layout.h"

namespace hyserve::kv_transfer {

// Steady time since an arbitrary start of the process. Never compared across processes, so a step
// of the wall clock changes nothing.
using ClockTime = absl::Duration;

// Names one transfer: 128 random bits, made by the router, used once. Whoever knows it may pull the
// transfer, so it is a secret of the workers' network and is never logged in full.
struct TransferId {
  std::array<uint8_t, 16> bytes{};

  // From the 16 bytes of a ticket; INVALID_ARGUMENT for another length or all zeros.
  static absl::StatusOr<TransferId> FromBytes(std::string_view bytes);
  static TransferId Random();
  std::string ToBytes() const;
  // The first 4 bytes in hex: for logs and error messages.
  std::string Short() const;

  bool operator==(const TransferId&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const TransferId& id) {
    return H::combine(std::move(h), id.bytes);
  }
};

// Where a worker's transport can be reached, as carried by registration and tickets.
struct PeerAddress {
  std::string transport_address;  // Transport::local_address() of the peer
  uint64_t incarnation = 0;  // Transport::incarnation() of the peer; another value: another process
  bool operator==(const PeerAddress&) const = default;
};

enum class MemoryKind : uint8_t { kHost, kCuda };

// The memory of all cached state of this process, as engine/attention/kv_pool.h lays it out. Not
// owned; must outlive the Exporter or Importer that it is given to.
struct MemoryRegions {
  kv_cache::KvLayout layout;
  char* blocks =
      nullptr;  // slice of layer slot l, block b: blocks + (l * num_blocks + b) * slice_bytes
  int64_t num_blocks = 0;
  char* slabs = nullptr;   // slab s: slabs + s * slab_bytes; may be null when slab_bytes is 0
  int64_t num_slabs = 0;
  MemoryKind kind = MemoryKind::kHost;

  size_t blocks_bytes() const {
    return static_cast<size_t>(num_blocks) * layout.block_bytes();
  }
  size_t slabs_bytes() const { return static_cast<size_t>(num_slabs) * layout.slab_bytes; }
  char* Slice(int64_t layer_slot, int64_t block) const {
    return blocks + static_cast<size_t>(layer_slot * num_blocks + block) * layout.slice_bytes();
  }
  char* Slab(int64_t slab) const { return slabs + static_cast<size_t>(slab) * layout.slab_bytes; }
};

// Payload on the wire by kind, bytes. For a complete transfer total() equals
// KvLayout::HandoffBytes(num_tokens); message headers and control messages are not in here.
struct PayloadBytes {
  uint64_t blocks = 0;
  uint64_t slab = 0;
  uint64_t selection = 0;
  uint64_t total() const { return blocks + slab + selection; }
  bool operator==(const PayloadBytes&) const = default;
};

// Why the source's pages were given back.
enum class ReleaseReason : uint8_t {
  kCommitted,     // the receiver has verified everything
  kLeaseExpired,  // nobody pulled, or the receiver fell silent
  kAborted,       // by this side's Abort() or by the receiver's
  kPeerLost,      // the receiver's connection broke and nobody pulled again in time
};
// "committed", "lease_expired", "aborted", "peer_lost".
std::string_view Name(ReleaseReason reason);

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_TICKET_H_
