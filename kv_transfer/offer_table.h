// Every offer of an exporter as a pure state machine: events in, actions out, no threads, no clock
// of its own, no memory touched. The Exporter runs it on the transport's progress thread.
//
//   OFFERED --pull--> SENDING --commit, cancel, lease, abort, loss--> DRAINING --last send--> gone
//
// DRAINING: the offer has ended, but sends that read its memory have not. After quiesce_wait their
// endpoints are closed by force. Only when the last send has completed comes the Released action.
#ifndef HYSERVE_KV_TRANSFER_OFFER_TABLE_H_
#define HYSERVE_KV_TRANSFER_OFFER_TABLE_H_

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "kv_transfer/copy_plan.h"
#include "kv_transfer/exporter.h"
#include "kv_transfer/handoff_message.h"
#include "kv_transfer/stats.h"
#include "kv_transfer/transport.h"

namespace hyserve::kv_transfer {

class OfferTable {
 public:
  struct Config {
    ExporterOptions options;  // max_message_bytes resolved
    kv_cache::KvLayout layout;
    uint64_t layout_hash = 0;
    uint64_t incarnation = 0;
    bool gather = false;  // messages may be put together from scattered blocks
  };

  // What the owner shall do, in order.
  struct SendControl {
    EndpointId endpoint;
    ControlMessage message;
  };
  // Send the part of memory that `part` names; the owner fills header.crc. Part's first block lies
  // at first_physical_block, the others follow it; with Config::gather they lie at `blocks`.
  struct SendData {
    EndpointId endpoint;
    OperationId operation;
    DataHeader header;
    CopyMessage part;
    int32_t first_physical_block;
    int32_t slab;
    const int32_t* blocks = nullptr;  // part.num_blocks of them; until the next event
  };
  struct CloseEndpoint {
    EndpointId endpoint;
  };
  struct Released {
    TransferId id;
    ReleaseReason reason;
  };
  using Action = std::variant<SendControl, SendData, CloseEndpoint, Released>;
  using Actions = std::vector<Action>;

  OfferTable(Config config, TransferStats* stats);

  // Events. `spec` was validated; its deadline is given in clock time.
  void Offer(const OfferSpec& spec, ClockTime deadline, ClockTime now, Actions& actions);
  void LayerReady(const TransferId& id, int layer_slot, int64_t num_tokens, Actions& actions);
  void SlabReady(const TransferId& id, std::vector<int32_t> selection, std::string trailer,
                 ClockTime now, Actions& actions);
  void Abort(const TransferId& id, ClockTime now, Actions& actions);
  void AbortAll(ClockTime now, Actions& actions);
  void OnControl(EndpointId from, const ControlMessage& message, ClockTime now, Actions& actions);
  // A send has completed, well or not. Not `possible`: this side cannot send it at all, so the
  // offer ends (kAborted).
  void OnSent(OperationId operation, ClockTime now, Actions& actions, bool possible = true);
  void OnEndpointClosed(EndpointId endpoint, ClockTime now, Actions& actions);
  void OnTimer(ClockTime now, Actions& actions);

  // When OnTimer must be called next; InfiniteDuration when nothing waits. May be early.
  ClockTime NextTimer() const;

  int64_t num_offers() const { return static_cast<int64_t>(offers_.size()); }
  int64_t num_pending_pulls() const { return static_cast<int64_t>(pending_pulls_.size()); }
  // Counts and gauges must agree; for tests after every event. Empty when they do.
  std::string CheckInvariants() const;

 private:
  struct Receiver {
    EndpointId endpoint;
    Envelope reply;  // as our messages to it carry it
    CopyPlan plan;
    int32_t in_flight = 0;
    bool final_sent = false;
  };
  struct Send {
    EndpointId endpoint;
    uint64_t generation;  // of the pull it belongs to
  };
  struct OfferState {
    OfferSpec spec;
    BreakMap breaks;
    std::vector<int64_t> ready_blocks;  // per layer slot
    bool slab_ready = false;
    std::vector<int32_t> selection;
    std::string trailer;
    std::optional<Receiver> receiver;
    absl::flat_hash_map<OperationId, Send> sends;  // all that may read this offer's memory
    ClockTime deadline = absl::InfiniteDuration();
    ClockTime lease_end = absl::InfiniteDuration();
    ClockTime grace_end = absl::InfiniteDuration();  // after the receiver was lost
    std::optional<ReleaseReason> ended;              // set: DRAINING
    ClockTime force_at = absl::InfiniteDuration();   // DRAINING: close endpoints
    ClockTime timer = absl::InfiniteDuration();      // key in timers_
  };
  struct PendingPull {
    EndpointId endpoint;
    Envelope envelope;
    PullBody body;
    ClockTime expiry;
  };
  using OfferMap = absl::flat_hash_map<TransferId, OfferState>;

  void OnPull(EndpointId from, const Envelope& envelope, const PullBody& body, ClockTime now,
              Actions& actions);
  // Fence checks of a pull against an offer; nullopt when it may be served.
  std::optional<Failure> Refuse(const OfferState& offer, const Envelope& envelope,
                                const PullBody& body);
  void Attach(OfferState& offer, EndpointId endpoint, const Envelope& envelope,
              const PullBody& body, ClockTime now, Actions& actions);
  void Pump(OfferState& offer, Actions& actions);
  void DetachReceiver(OfferState& offer, ClockTime now);
  void End(OfferState& offer, ReleaseReason reason, ClockTime now, Actions& actions);
  void ReleaseIfDrained(const TransferId& id, Actions& actions);
  bool FromReceiver(const OfferState& offer, EndpointId from, const Envelope& envelope) const;
  void Reply(EndpointId to, const Envelope& received, ControlBody body,
             Actions& actions) const;
  void Renew(OfferState& offer, ClockTime now);
  void Schedule(OfferState& offer);
  void Bury(const TransferId& id, ReleaseReason reason);

  const Config config_;
  TransferStats& stats_;
  OfferMap offers_;
  absl::flat_hash_map<TransferId, PendingPull> pending_pulls_;
  absl::flat_hash_map<OperationId, TransferId> operations_;
  std::multimap<ClockTime, TransferId> timers_;  // one entry per offer with a timer
  ClockTime next_pending_expiry_ = absl::InfiniteDuration();
  // The last ended offers, so that a repeated commit is acknowledged and an id is never used twice.
  absl::flat_hash_map<TransferId, ReleaseReason> buried_;
  std::deque<TransferId> burial_order_;
  OperationId next_operation_ = 1;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_OFFER_TABLE_H_
