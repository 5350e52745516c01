// Every pull of an importer as a pure state machine: events in, actions out, no threads, no clock
// of its own, no memory touched. The Importer runs it on the transport's progress thread.
//
//   PULLING --all verified--> finished OK, COMMITTING (the commit is repeated until acked)
//   PULLING --abort, failure, timeout, lost peer--> QUIESCING --last receive--> failed
//
// QUIESCING: the pull has failed but receives into its memory are posted. They end by themselves,
// or, after quiesce_wait, because their endpoint is closed by force. Until then the blocks are
// quarantined.
#ifndef HYSERVE_KV_TRANSFER_IMPORT_TABLE_H_
#define HYSERVE_KV_TRANSFER_IMPORT_TABLE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "kv_transfer/handoff_message.h"
#include "kv_transfer/importer.h"
#include "kv_transfer/stats.h"
#include "kv_transfer/transport.h"

namespace hyserve::kv_transfer {

class ImportTable {
 public:
  struct Config {
    ImporterOptions options;
    kv_cache::KvLayout layout;
    uint64_t layout_hash = 0;
    uint64_t incarnation = 0;
    bool scatter = false;  // messages may land in scattered blocks
  };

  struct SendControl {
    EndpointId endpoint;
    ControlMessage message;
  };
  struct CloseEndpoint {
    EndpointId endpoint;
  };
  struct Finished {
    TransferId id;
    EndpointId endpoint;
    PullResult result;
  };
  using Action = std::variant<SendControl, CloseEndpoint, Finished>;
  using Actions = std::vector<Action>;

  // Where an announced part lands, in this side's own terms. `slab` < 0: blocks of a layer slot
  // starting at physical block `block`, which are contiguous, or with Config::scatter at `blocks`;
  // else bytes from `offset` of that slab.
  struct Landing {
    OperationId operation = 0;
    int32_t layer_slot = 0;
    int32_t block = 0;
    int32_t slab = -1;
    size_t offset = 0;
    size_t length = 0;
    std::vector<int32_t> blocks = {};
  };

  ImportTable(Config config, TransferStats* stats);

  // Events. `spec` was validated and its id is not being pulled; `deadline` in clock time.
  void Pull(const PullSpec& spec, EndpointId endpoint, ClockTime deadline, ClockTime now,
            Actions& actions);
  void Abort(const TransferId& id, ClockTime now, Actions& actions);
  // Ends every pull and closes its endpoint at once.
  void AbortAll(ClockTime now, Actions& actions);
  void OnControl(EndpointId from, const ControlMessage& message, ClockTime now, Actions& actions);
  // A data message is announced; nullopt drops it. `length` as the transport says.
  std::optional<Landing> OnData(EndpointId from, const DataHeader& header, size_t length,
                                ClockTime now, Actions& actions);
  // A landing has ended. `crc`: of the bytes that lie there now; ignored with a bad status.
  void OnReceived(OperationId operation, const absl::Status& status, uint32_t crc, ClockTime now,
                  Actions& actions);
  void OnEndpointClosed(EndpointId endpoint, const absl::Status& status, ClockTime now,
                        Actions& actions);
  void OnTimer(ClockTime now, Actions& actions);

  // When OnTimer must be called next; InfiniteDuration when nothing waits. May be early.
  ClockTime NextTimer() const;

  int64_t num_imports() const { return static_cast<int64_t>(imports_.size()); }
  int64_t num_committing() const { return static_cast<int64_t>(committing_.size()); }
  std::string CheckInvariants() const;

 private:
  struct Import {
    PullSpec spec;
    EndpointId endpoint = 0;
    Envelope envelope;  // as our messages carry it
    BreakMap breaks;
    std::vector<bool> claimed;              // [layer slot][block]: a landing was granted
    std::map<uint64_t, uint64_t> slab_claimed;  // offset -> length
    PayloadBytes landed;  // verified
    int32_t in_flight = 0;
    std::optional<FinalBody> final;
    std::optional<absl::Status> failure;  // set: QUIESCING
    ClockTime deadline;
    ClockTime started;
    ClockTime first_byte = absl::InfiniteDuration();
    ClockTime final_at = absl::InfiniteDuration();
    ClockTime last_heard;
    ClockTime last_progress;
    ClockTime renew_at;
    ClockTime transfer_deadline = absl::InfiniteDuration();
    ClockTime force_at = absl::InfiniteDuration();  // QUIESCING
    ClockTime timer = absl::InfiniteDuration();     // key in timers_
  };
  struct Receive {
    TransferId id;
    uint64_t generation = 0;
    bool slab = false;
    uint32_t crc = 0;
    uint64_t length = 0;
  };
  struct Committing {
    EndpointId endpoint;
    Envelope envelope;
    ClockTime retry_at;
    ClockTime give_up;
  };

  // True when the message is for this pull and of now; counts it as stale otherwise.
  bool Fenced(const Import& import, EndpointId from, const Envelope& envelope, bool any_sender);
  void OnFinal(Import& import, const FinalBody& body, ClockTime now, Actions& actions);
  std::optional<Landing> ClaimBlocks(Import& import, const DataHeader& header, ClockTime now,
                                     Actions& actions);
  std::optional<Landing> ClaimSlab(Import& import, const DataHeader& header, ClockTime now,
                                   Actions& actions);
  Landing Grant(Import& import, const DataHeader& header, ClockTime now);
  enum class Tell { kNothing, kCancel, kRelease };  // the exporter
  void Fail(Import& import, absl::Status status, Tell tell, bool close_now, ClockTime now,
            Actions& actions);
  void FailIntegrity(Import& import, const char* what, ClockTime now, Actions& actions);
  void FinishIfComplete(Import& import, ClockTime now, Actions& actions);
  void FinishIfQuiet(Import& import, ClockTime now, Actions& actions);
  void Finish(Import& import, absl::Status status, ClockTime now, Actions& actions);
  void CheckClocks(Import& import, ClockTime now, Actions& actions);
  ClockTime StuckAt(const Import& import) const;
  void Schedule(Import& import);
  uint64_t BlocksBytes(const Import& import) const;

  const Config config_;
  TransferStats& stats_;
  absl::flat_hash_map<TransferId, Import> imports_;
  absl::flat_hash_map<OperationId, Receive> receives_;
  absl::flat_hash_map<TransferId, Committing> committing_;
  // Last completed receive per endpoint that has pulls: a pull that waits behind others is not
  // stuck.
  absl::flat_hash_map<EndpointId, ClockTime> endpoint_progress_;
  std::multimap<ClockTime, TransferId> timers_;
  ClockTime next_commit_timer_ = absl::InfiniteDuration();
  OperationId next_operation_ = 1;
  uint64_t next_generation_ = 1;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_IMPORT_TABLE_H_
