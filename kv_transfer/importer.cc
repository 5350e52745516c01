#include "kv_transfer/importer.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "kv_transfer/crc32c.h"
#include "kv_transfer/device_jobs.h"
#include "kv_transfer/import_table.h"
#include "kv_transfer/peer_lanes.h"
#include "kv_transfer/regions.h"
#include "kv_transfer/table_timer.h"

namespace hyserve::kv_transfer {
namespace {

class ImporterImpl final : public Importer, private TransportHandler {
 public:
  ImporterImpl(Transport* transport, const MemoryRegions& regions, const ImporterOptions& options)
      : transport_(*transport),
        regions_(regions),
        options_(options),
        table_({options, regions.layout, LayoutHash(regions.layout), transport->incarnation(),
                Gathers(*transport, regions)},
               &stats_),
        lanes_(transport, options.lanes_per_peer),
        jobs_(transport->device(), transport),
        timer_(transport, [this] {
          Run([](ImportTable& table, ClockTime now, ImportTable::Actions& actions) {
            table.OnTimer(now, actions);
          });
        }) {
    stats_.paths = &transport_.paths();
    transport_.SetHandler(Channel::kImporter, this);
  }

  ~ImporterImpl() override {
    transport_.Post([this] {
      Run([](ImportTable& table, ClockTime now, ImportTable::Actions& actions) {
        table.AbortAll(now, actions);
      });
    });
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(
          +[](CallbackMap* callbacks) { return callbacks->empty(); }, &callbacks_));
    }
    absl::Notification done;
    transport_.Post([&] {
      timer_.Disarm();
      lanes_.CloseAll();
      done.Notify();
    });
    done.WaitForNotification();
    transport_.SetHandler(Channel::kImporter, nullptr);
  }

  absl::Status Pull(PullSpec spec, PullCallback callback) override {
    absl::Status valid =
        CheckMemory(regions_, spec.id, spec.num_tokens, spec.blocks, spec.slab);
    if (!valid.ok()) return valid;
    if (spec.source.transport_address.empty() || spec.source.incarnation == 0) {
      return absl::InvalidArgumentError("pull without a source address");
    }
    {
      absl::MutexLock lock(&mutex_);
      if (callbacks_.contains(spec.id)) {
        return absl::AlreadyExistsError(
            absl::StrCat("transfer ", spec.id.Short(), " is being pulled"));
      }
      if (callbacks_.size() >= static_cast<size_t>(options_.max_pulls)) {
        return absl::ResourceExhaustedError("too many open pulls");
      }
      callbacks_.emplace(spec.id, std::move(callback));
      stats_.open_transfers.Set(static_cast<int64_t>(callbacks_.size()));
    }
    transport_.Post([this, spec = std::move(spec)] { StartPull(spec); });
    return absl::OkStatus();
  }

  void Abort(const TransferId& id) override {
    transport_.Post([this, id] {
      Run([&](ImportTable& table, ClockTime now, ImportTable::Actions& actions) {
        table.Abort(id, now, actions);
      });
    });
  }

  void WarmUp(const PeerAddress& peer) override {
    transport_.Post([this, peer] {
      const absl::StatusOr<EndpointId> lane = lanes_.Acquire(peer);
      if (lane.ok()) lanes_.Release(*lane);
    });
  }

  int64_t open_pulls() const override {
    absl::MutexLock lock(&mutex_);
    return static_cast<int64_t>(callbacks_.size());
  }
  const TransferStats& stats() const override { return stats_; }

 private:
  using CallbackMap = absl::flat_hash_map<TransferId, PullCallback>;

  void StartPull(const PullSpec& spec) {
    const absl::StatusOr<EndpointId> lane = lanes_.Acquire(spec.source);
    if (!lane.ok()) {
      PullResult result;
      result.status = absl::UnavailableError(
          absl::StrCat("cannot connect to the prefill worker: ", lane.status().message()));
      stats_.peer_lost.Add();
      CallBack(spec.id, std::move(result));
      return;
    }
    Run([&](ImportTable& table, ClockTime now, ImportTable::Actions& actions) {
      table.Pull(spec, *lane, ToClockTime(spec.deadline, now), now, actions);
    });
  }

  // One event of the table and what follows from it. Progress thread.
  template <typename Event>
  void Run(Event event) {
    ImportTable::Actions actions;
    event(table_, transport_.Now(), actions);
    for (ImportTable::Action& action : actions) {
      std::visit([this](auto& a) { this->Do(a); }, action);
    }
    timer_.ArmBefore(table_.NextTimer());
  }

  void Do(const ImportTable::SendControl& action) {
    const std::string bytes = Encode(action.message);
    stats_.control_bytes_sent.Add(static_cast<int64_t>(bytes.size()));
    transport_.SendControl(action.endpoint, Channel::kExporter, bytes);
  }
  void Do(const ImportTable::CloseEndpoint& action) {
    lanes_.Forget(action.endpoint);  // no new pull on a lane that is being closed
    transport_.Close(action.endpoint);
  }
  void Do(ImportTable::Finished& action) {
    lanes_.Release(action.endpoint);
    CallBack(action.id, std::move(action.result));
  }

  void CallBack(const TransferId& id, PullResult result) {
    PullCallback callback;
    {
      absl::MutexLock lock(&mutex_);
      callback = std::move(callbacks_.at(id));
      callbacks_.at(id) = nullptr;
    }
    // The id stays taken during the callback: the destructor waits for it to go.
    callback(id, std::move(result));
    absl::MutexLock lock(&mutex_);
    callbacks_.erase(id);
    stats_.open_transfers.Set(static_cast<int64_t>(callbacks_.size()));
  }

  void OnControl(EndpointId from, std::string_view message) override {
    stats_.control_bytes_received.Add(static_cast<int64_t>(message.size()));
    const absl::StatusOr<ControlMessage> decoded = DecodeControl(message);
    if (!decoded.ok()) {
      stats_.malformed_messages.Add();
      return;
    }
    Run([&](ImportTable& table, ClockTime now, ImportTable::Actions& actions) {
      table.OnControl(from, *decoded, now, actions);
    });
  }

  std::optional<ReceiveTarget> OnData(EndpointId from, std::string_view header,
                                      size_t length) override {
    stats_.control_bytes_received.Add(static_cast<int64_t>(header.size()));
    const absl::StatusOr<DataHeader> decoded = DecodeDataHeader(header);
    if (!decoded.ok()) {
      stats_.malformed_messages.Add();
      return std::nullopt;
    }
    std::optional<ImportTable::Landing> landing;
    Run([&](ImportTable& table, ClockTime now, ImportTable::Actions& actions) {
      landing = table.OnData(from, *decoded, length, now, actions);
    });
    if (!landing) return std::nullopt;
    char* data = landing->slab >= 0 ? regions_.Slab(landing->slab) + landing->offset
                                    : regions_.Slice(landing->layer_slot, landing->block);
    std::vector<MemoryPart> parts = {{data, landing->length}};
    if (!landing->blocks.empty()) parts = PartsOf(regions_, landing->layer_slot, landing->blocks);
    ReceiveTarget target{data, landing->operation};
    if (parts.size() > 1) target.parts = parts;
    landing_[landing->operation] = std::move(parts);
    return target;
  }

  void OnReceived(OperationId id, const absl::Status& status) override {
    const auto it = landing_.find(id);
    if (it == landing_.end()) return;
    const std::vector<MemoryPart> parts = std::move(it->second);
    landing_.erase(it);
    if (!status.ok() || !options_.checksum) {
      Landed(id, status, 0);
    } else if (regions_.kind == MemoryKind::kHost) {
      Landed(id, status, Crc32c(parts[0].data, parts[0].bytes));
    } else {
      // The landing has not ended for the table until then, so its blocks stay taken.
      jobs_.Add(transport_.device()->StartChecksum(parts, nullptr),
                [this, id](const absl::Status& checked, uint32_t crc) {
                  Landed(id, checked, crc);
                });
    }
  }
  void Landed(OperationId id, const absl::Status& status, uint32_t crc) {
    Run([&](ImportTable& table, ClockTime now, ImportTable::Actions& actions) {
      table.OnReceived(id, status, crc, now, actions);
    });
  }
  void OnSent(OperationId, const absl::Status&) override {}
  void OnEndpointClosed(EndpointId endpoint, const absl::Status& status) override {
    lanes_.Forget(endpoint);
    Run([&](ImportTable& table, ClockTime now, ImportTable::Actions& actions) {
      table.OnEndpointClosed(endpoint, status, now, actions);
    });
  }

  Transport& transport_;
  const MemoryRegions regions_;
  const ImporterOptions options_;
  TransferStats stats_;
  mutable absl::Mutex mutex_;
  CallbackMap callbacks_ ABSL_GUARDED_BY(mutex_);  // of every open pull
  // Progress thread.
  ImportTable table_;
  PeerLanes lanes_;
  DeviceJobs jobs_;  // checksums of device memory
  absl::flat_hash_map<OperationId, std::vector<MemoryPart>> landing_;
  TableTimer timer_;
};

absl::Status CheckOptions(const ImporterOptions& options) {
  for (const absl::Duration duration :
       {options.renew_interval, options.progress_timeout, options.silence_timeout,
        options.transfer_deadline, options.commit_retry, options.commit_give_up}) {
    if (duration <= absl::ZeroDuration()) {
      return absl::InvalidArgumentError("importer: durations must be positive");
    }
  }
  if (options.quiesce_wait < absl::ZeroDuration() || options.max_pulls <= 0 ||
      options.lanes_per_peer <= 0 || !(options.min_bytes_per_second > 0)) {
    return absl::InvalidArgumentError("importer: limits must be positive");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Importer>> Importer::Create(Transport* transport,
                                                           const MemoryRegions& regions,
                                                           const ImporterOptions& options) {
  absl::Status status = CheckOptions(options);
  if (status.ok()) status = RegisterRegions(*transport, regions);
  if (!status.ok()) return status;
  return std::make_unique<ImporterImpl>(transport, regions, options);
}

}  // namespace hyserve::kv_transfer
