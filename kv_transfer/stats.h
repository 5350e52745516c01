// Counters of one Exporter or Importer. Written on the progress thread, read from any thread
// (relaxed: each value is exact, a set of them is not a snapshot). Cumulative unless marked as a
// gauge.
#ifndef HYSERVE_KV_TRANSFER_STATS_H_
#define HYSERVE_KV_TRANSFER_STATS_H_

#include <atomic>
#include <cstdint>

#include "kv_transfer/ticket.h"

namespace hyserve::kv_transfer {

// A relaxed counter. Movable-looking arithmetic only for its owner thread.
class Counter {
 public:
  void Add(int64_t n = 1) { value_.fetch_add(n, std::memory_order_relaxed); }
  void Set(int64_t n) { value_.store(n, std::memory_order_relaxed); }
  int64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> value_{0};
};

struct PathCounters;  // data_path.h

struct TransferStats {
  // Payload, by kind; sent by an Exporter, received (verified or not) by an Importer. Bytes.
  Counter block_bytes;
  Counter slab_bytes;
  Counter selection_bytes;
  // Everything else on the wire that we know of: data headers and control messages. Bytes.
  Counter control_bytes_sent;
  Counter control_bytes_received;
  Counter data_messages;

  // Ends of transfers.
  Counter started;
  Counter committed;          // Exporter: kCommitted; Importer: OK
  Counter aborted;            // by either side's Abort()
  Counter lease_expired;      // Exporter
  Counter peer_lost;
  Counter deadline_exceeded;  // Importer: deadline, progress, silence
  Counter integrity_failures; // Importer: checksum or length; every one deserves a page
  Counter refused;            // layout, epoch, incarnation or an unknown transfer

  // Messages that changed nothing.
  Counter malformed_messages;
  Counter unknown_transfers;
  Counter stale_messages;     // epoch, incarnation or generation of another time
  Counter duplicate_messages;

  Counter forced_closes;      // endpoints that this side closed by force
  Counter quarantined_blocks; // gauge, Importer: blocks of ended pulls that wait for quiescence
  Counter draining_blocks;    // gauge, Exporter: blocks of ended offers that wait for sends
  Counter open_transfers;     // gauge
  Counter messages_in_flight; // gauge: data messages posted and not completed
  // Gauge: moving average over finished transfers, payload bytes per second of transfer_seconds.
  Counter link_bytes_per_second;
  // Of the transport, shared by all who use it; lives as long as the transport.
  const PathCounters* paths = nullptr;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_STATS_H_
