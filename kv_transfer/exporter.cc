#include "kv_transfer/exporter.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "kv_transfer/crc32c.h"
#include "kv_transfer/device_jobs.h"
#include "kv_transfer/offer_checksums.h"
#include "kv_transfer/offer_table.h"
#include "kv_transfer/regions.h"
#include "kv_transfer/table_timer.h"

namespace hyserve::kv_transfer {
namespace {

constexpr absl::Duration kJobsInterval = absl::Microseconds(100);

class ExporterImpl final : public Exporter, private TransportHandler {
 public:
  ExporterImpl(Transport* transport, const MemoryRegions& regions, const ExporterOptions& options,
               ReleasedCallback on_released)
      : transport_(*transport),
        regions_(regions),
        options_(options),
        on_released_(std::move(on_released)),
        table_({options, regions.layout, LayoutHash(regions.layout), transport->incarnation(),
                Gathers(*transport, regions)},
               &stats_),
        jobs_(transport->device(), transport),
        timer_(transport, [this] {
          Run([](OfferTable& table, ClockTime now, OfferTable::Actions& actions) {
            table.OnTimer(now, actions);
          });
        }) {
    stats_.paths = &transport_.paths();
    if (options_.checksum && regions_.kind == MemoryKind::kCuda) {
      checksums_.emplace(regions_, options_.max_message_bytes, transport_.device(), &jobs_);
    }
    transport_.SetHandler(Channel::kExporter, this);
  }

  ~ExporterImpl() override {
    transport_.Post([this] {
      Run([](OfferTable& table, ClockTime now, OfferTable::Actions& actions) {
        table.AbortAll(now, actions);
      });
    });
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(
          +[](absl::flat_hash_set<TransferId>* live) { return live->empty(); }, &live_));
    }
    absl::Notification disarmed;
    std::function<void()> disarm = [&] {
      if (!jobs_.idle()) {  // checksums of offers that have ended
        transport_.RunAt(transport_.Now() + kJobsInterval, disarm);
        return;
      }
      timer_.Disarm();
      disarmed.Notify();
    };
    transport_.Post(disarm);
    disarmed.WaitForNotification();
    transport_.SetHandler(Channel::kExporter, nullptr);
  }

  absl::Status Offer(OfferSpec spec) override {
    absl::Status valid =
        CheckMemory(regions_, spec.id, spec.num_tokens, spec.blocks, spec.slab);
    if (!valid.ok()) return valid;
    {
      absl::MutexLock lock(&mutex_);
      if (live_.contains(spec.id)) {
        return absl::AlreadyExistsError(absl::StrCat("transfer ", spec.id.Short(), " is offered"));
      }
      if (live_.size() >= static_cast<size_t>(options_.max_offers)) {
        return absl::ResourceExhaustedError("too many open offers");
      }
      live_.insert(spec.id);
      stats_.open_transfers.Set(static_cast<int64_t>(live_.size()));
    }
    transport_.Post([this, spec = std::move(spec)] {
      if (checksums_) checksums_->Offer(spec);
      Run([&](OfferTable& table, ClockTime now, OfferTable::Actions& actions) {
        table.Offer(spec, ToClockTime(spec.deadline, now), now, actions);
      });
    });
    return absl::OkStatus();
  }

  void LayerReady(const TransferId& id, int layer_slot, int64_t num_tokens) override {
    transport_.Post([this, id, layer_slot, num_tokens] {
      WhenKnown(id, [&](auto known) {
        checksums_->LayerReady(id, layer_slot, num_tokens, std::move(known));
      }, [=](OfferTable& table, ClockTime now, OfferTable::Actions& actions) {
        table.LayerReady(id, layer_slot, num_tokens, actions);
      });
    });
  }

  void SlabReady(const TransferId& id, std::vector<int32_t> selection,
                 std::string trailer) override {
    transport_.Post(
        [this, id, selection = std::move(selection), trailer = std::move(trailer)]() mutable {
          WhenKnown(id, [&](auto known) { checksums_->SlabReady(id, std::move(known)); },
                    [id, selection = std::move(selection), trailer = std::move(trailer)](
                        OfferTable& table, ClockTime now, OfferTable::Actions& actions) mutable {
                      table.SlabReady(id, std::move(selection), std::move(trailer), now, actions);
                    });
        });
  }

  void Abort(const TransferId& id) override {
    transport_.Post([this, id] {
      Run([&](OfferTable& table, ClockTime now, OfferTable::Actions& actions) {
        table.Abort(id, now, actions);
      });
    });
  }

  int64_t open_offers() const override {
    absl::MutexLock lock(&mutex_);
    return static_cast<int64_t>(live_.size());
  }
  const TransferStats& stats() const override { return stats_; }

 private:
  // Runs the event at once, or on a device when `start(callback)` has called back: the table hears
  // of what is final only when its checksums are known. Progress thread.
  template <typename Start, typename Event>
  void WhenKnown(const TransferId& id, Start start, Event event) {
    if (!checksums_) return Run(std::move(event));
    start([this, id, event = std::move(event)](const absl::Status& status) mutable {
      if (status.ok()) return Run(std::move(event));
      // The device failed: nothing of this offer can be trusted any more.
      Run([&](OfferTable& table, ClockTime now, OfferTable::Actions& actions) {
        table.Abort(id, now, actions);
      });
    });
  }

  // One event of the table and what follows from it. Progress thread.
  template <typename Event>
  void Run(Event event) {
    OfferTable::Actions actions;
    event(table_, transport_.Now(), actions);
    for (OfferTable::Action& action : actions) {
      std::visit([this](auto& a) { this->Do(a); }, action);
    }
    timer_.ArmBefore(table_.NextTimer());
  }

  void Do(const OfferTable::SendControl& action) {
    const std::string bytes = Encode(action.message);
    stats_.control_bytes_sent.Add(static_cast<int64_t>(bytes.size()));
    transport_.SendControl(action.endpoint, Channel::kImporter, bytes);
  }
  void Do(OfferTable::SendData& action) {
    const CopyMessage& part = action.part;
    char* data = part.layer_slot < 0
                     ? regions_.Slab(action.slab) + part.offset
                     : regions_.Slice(part.layer_slot, action.first_physical_block);
    std::vector<MemoryPart> parts = {{data, part.length}};
    if (action.blocks != nullptr) {
      parts = PartsOf(regions_, part.layer_slot,
                      {action.blocks, static_cast<size_t>(part.num_blocks)});
    }
    if (checksums_) {
      action.header.crc = checksums_->Of(action.header.envelope.id, part);
    } else if (options_.checksum) {
      action.header.crc = Crc32c(data, part.length);
    }
    Send(action, parts);
  }
  void Send(const OfferTable::SendData& action, const std::vector<MemoryPart>& parts) {
    const std::string header = Encode(action.header);
    stats_.control_bytes_sent.Add(static_cast<int64_t>(header.size()));
    if (parts.size() > 1) {
      transport_.SendParts(action.endpoint, Channel::kExporter, Channel::kImporter,
                           action.operation, header, parts);
    } else {
      transport_.SendData(action.endpoint, Channel::kExporter, Channel::kImporter,
                          action.operation, header, parts[0].data, parts[0].bytes);
    }
  }
  void Do(const OfferTable::CloseEndpoint& action) { transport_.Close(action.endpoint); }
  void Do(const OfferTable::Released& action) {
    if (checksums_) checksums_->Forget(action.id);
    // The callback first: the destructor waits for the id to go.
    on_released_(action.id, action.reason);
    absl::MutexLock lock(&mutex_);
    live_.erase(action.id);
    stats_.open_transfers.Set(static_cast<int64_t>(live_.size()));
  }

  void OnControl(EndpointId from, std::string_view message) override {
    stats_.control_bytes_received.Add(static_cast<int64_t>(message.size()));
    const absl::StatusOr<ControlMessage> decoded = DecodeControl(message);
    if (!decoded.ok()) {
      stats_.malformed_messages.Add();
      return;
    }
    Run([&](OfferTable& table, ClockTime now, OfferTable::Actions& actions) {
      table.OnControl(from, *decoded, now, actions);
    });
  }
  // Nobody sends data to an exporter.
  std::optional<ReceiveTarget> OnData(EndpointId, std::string_view, size_t) override {
    stats_.malformed_messages.Add();
    return std::nullopt;
  }
  void OnReceived(OperationId, const absl::Status&) override {}
  void OnSent(OperationId id, const absl::Status& status) override {
    // Not the peer's or the link's fault: another message would fare no better.
    const bool unsendable = absl::IsFailedPrecondition(status) ||
                            absl::IsResourceExhausted(status) || absl::IsInternal(status);
    Run([&](OfferTable& table, ClockTime now, OfferTable::Actions& actions) {
      table.OnSent(id, now, actions, !unsendable);
    });
  }
  void OnEndpointClosed(EndpointId endpoint, const absl::Status& status) override {
    Run([&](OfferTable& table, ClockTime now, OfferTable::Actions& actions) {
      table.OnEndpointClosed(endpoint, now, actions);
    });
  }

  Transport& transport_;
  const MemoryRegions regions_;
  const ExporterOptions options_;
  const ReleasedCallback on_released_;
  TransferStats stats_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_set<TransferId> live_ ABSL_GUARDED_BY(mutex_);  // offered, not yet released
  // Progress thread.
  OfferTable table_;
  DeviceJobs jobs_;
  std::optional<OfferChecksums> checksums_;  // of device memory
  TableTimer timer_;
};

absl::Status CheckOptions(const ExporterOptions& options) {
  if (options.lease <= absl::ZeroDuration() || options.pending_pull_hold <= absl::ZeroDuration() ||
      options.peer_loss_grace < absl::ZeroDuration() ||
      options.quiesce_wait < absl::ZeroDuration()) {
    return absl::InvalidArgumentError("exporter: durations must be positive");
  }
  if (options.max_offers <= 0 || options.max_pending_pulls <= 0 ||
      options.max_messages_in_flight <= 0) {
    return absl::InvalidArgumentError("exporter: limits must be positive");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Exporter>> Exporter::Create(Transport* transport,
                                                           const MemoryRegions& regions,
                                                           const ExporterOptions& options,
                                                           ReleasedCallback on_released) {
  absl::Status status = CheckOptions(options);
  if (status.ok()) status = RegisterRegions(*transport, regions);
  if (!status.ok()) return status;
  ExporterOptions resolved = options;
  if (resolved.max_message_bytes == 0) {
    resolved.max_message_bytes = transport->preferred_message_bytes();
  }
  return std::make_unique<ExporterImpl>(transport, regions, resolved, std::move(on_released));
}

}  // namespace hyserve::kv_transfer
