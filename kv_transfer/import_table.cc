#include "kv_transfer/import_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hyserve::kv_transfer {
namespace {

absl::Status ToStatus(Failure failure) {
  switch (failure) {
    case Failure::kUnknownTransfer:
      return absl::UnavailableError("the prefill worker does not know this transfer");
    case Failure::kLayoutMismatch:
      return absl::FailedPreconditionError("the layouts of the two workers differ");
    case Failure::kStaleEpoch:
      return absl::FailedPreconditionError("the transfer belongs to another attempt");
    case Failure::kStaleIncarnation:
      return absl::FailedPreconditionError("the prefill worker was restarted");
    case Failure::kAborted: return absl::AbortedError("the prefill worker gave the hand-off up");
    case Failure::kOverloaded: return absl::UnavailableError("the prefill worker is overloaded");
    case Failure::kLeaseExpired: return absl::UnavailableError("the hand-off's lease has expired");
  }
  return absl::UnavailableError("hand-off refused");
}

}  // namespace

ImportTable::ImportTable(Config config, TransferStats* stats)
    : config_(std::move(config)), stats_(*stats) {}

void ImportTable::Pull(const PullSpec& spec, EndpointId endpoint, ClockTime deadline, ClockTime now,
                       Actions& actions) {
  committing_.erase(spec.id);
  Import& import = imports_[spec.id];
  import.spec = spec;
  import.endpoint = endpoint;
  import.envelope = Envelope{.id = spec.id,
                             .epoch = spec.epoch,
                             .sender_incarnation = config_.incarnation,
                             .receiver_incarnation = spec.source.incarnation,
                             .generation = next_generation_++};
  import.breaks = config_.scatter ? BreakMap::Whole(static_cast<int64_t>(spec.blocks.size()))
                                  : BreakMap(spec.blocks);
  import.claimed.assign(config_.layout.full_layers.size() * spec.blocks.size(), false);
  import.deadline = deadline;
  import.started = import.last_heard = import.last_progress = now;
  import.renew_at = now + config_.options.renew_interval;
  endpoint_progress_.emplace(endpoint, now);
  stats_.started.Add();
  Schedule(import);
  actions.push_back(SendControl{
      endpoint,
      {import.envelope,
       PullBody{config_.layout_hash, static_cast<uint64_t>(spec.num_tokens), import.breaks}}});
}

void ImportTable::Abort(const TransferId& id, ClockTime now, Actions& actions) {
  const auto it = imports_.find(id);
  if (it == imports_.end() || it->second.failure) return;
  Fail(it->second, absl::CancelledError("the pull was aborted"), Tell::kRelease, false, now,
       actions);
}

void ImportTable::AbortAll(ClockTime now, Actions& actions) {
  std::vector<TransferId> ids;
  for (const auto& [id, import] : imports_) ids.push_back(id);
  for (const TransferId& id : ids) {
    Abort(id, now, actions);
    const auto it = imports_.find(id);
    if (it == imports_.end()) continue;
    it->second.force_at = now;
    Schedule(it->second);
  }
  committing_.clear();
  next_commit_timer_ = absl::InfiniteDuration();
  OnTimer(now, actions);
}

bool ImportTable::Fenced(const Import& import, EndpointId from, const Envelope& envelope,
                         bool any_sender) {
  const Fences& fences = config_.options.fences;
  const bool ours = !fences.incarnation ||
                    (envelope.receiver_incarnation == config_.incarnation &&
                     (any_sender || envelope.sender_incarnation == import.spec.source.incarnation));
  const bool current = !fences.generation || (import.endpoint == from &&
                                              envelope.generation == import.envelope.generation);
  const bool attempt = !fences.epoch || envelope.epoch == import.spec.epoch;
  if (ours && current && attempt) return true;
  stats_.stale_messages.Add();
  return false;
}

void ImportTable::OnControl(EndpointId from, const ControlMessage& message, ClockTime now,
                            Actions& actions) {
  const Envelope& envelope = message.envelope;
  if (std::holds_alternative<CommitAckBody>(message.body)) {
    const auto it = committing_.find(envelope.id);
    if (it == committing_.end() || it->second.endpoint != from ||
        it->second.envelope.generation != envelope.generation) {
      stats_.stale_messages.Add();
      return;
    }
    committing_.erase(it);
    return;
  }
  const auto* final = std::get_if<FinalBody>(&message.body);
  const auto* failed = std::get_if<FailedBody>(&message.body);
  if (final == nullptr && failed == nullptr &&
      !std::holds_alternative<RenewAckBody>(message.body)) {
    stats_.malformed_messages.Add();  // not for an importer
    return;
  }
  const auto it = imports_.find(envelope.id);
  if (it == imports_.end()) {
    // The exporter no longer knows what it should commit: nothing to repeat.
    if (failed != nullptr) committing_.erase(envelope.id);
    stats_.unknown_transfers.Add();
    return;
  }
  Import& import = it->second;
  if (!Fenced(import, from, envelope, failed != nullptr) || import.failure) return;
  import.last_heard = now;
  if (final != nullptr) {
    OnFinal(import, *final, now, actions);
  } else if (failed != nullptr) {
    const absl::Status status = ToStatus(failed->failure);
    Fail(import, status, Tell::kNothing, false, now, actions);
  }
}

void ImportTable::OnFinal(Import& import, const FinalBody& body, ClockTime now, Actions& actions) {
  if (import.final) {
    stats_.duplicate_messages.Add();
    return;
  }
  if (config_.options.fences.layout &&
      (body.layout_hash != config_.layout_hash ||
       body.num_tokens != static_cast<uint64_t>(import.spec.num_tokens))) {
    Fail(import, ToStatus(Failure::kLayoutMismatch), Tell::kCancel, false, now, actions);
    return;
  }
  const auto num_blocks = static_cast<int32_t>(import.spec.blocks.size());
  const bool sane = body.selection.size() * sizeof(int32_t) == config_.layout.selection_bytes() &&
                    std::all_of(body.selection.begin(), body.selection.end(), [&](int32_t block) {
                      return block >= -1 && block < num_blocks;
                    });
  if (!sane) {
    FailIntegrity(import, "selection indices", now, actions);
    return;
  }
  import.final = body;
  import.final_at = import.last_progress = now;
  import.landed.selection = config_.layout.selection_bytes();
  stats_.selection_bytes.Add(static_cast<int64_t>(import.landed.selection));
  const double missing_bytes =
      static_cast<double>(BlocksBytes(import) + config_.layout.slab_bytes) -
      static_cast<double>(import.landed.blocks + import.landed.slab);
  import.transfer_deadline = now + config_.options.transfer_deadline +
                             absl::Seconds(missing_bytes / config_.options.min_bytes_per_second);
  Schedule(import);
  FinishIfComplete(import, now, actions);
}

std::optional<ImportTable::Landing> ImportTable::OnData(EndpointId from, const DataHeader& header,
                                                        size_t length, ClockTime now,
                                                        Actions& actions) {
  const auto it = imports_.find(header.envelope.id);
  if (it == imports_.end()) {
    stats_.unknown_transfers.Add();
    return std::nullopt;
  }
  Import& import = it->second;
  if (!Fenced(import, from, header.envelope, false) || import.failure) return std::nullopt;
  import.last_heard = now;
  if (header.length != length) {
    FailIntegrity(import, "length of a message", now, actions);
    return std::nullopt;
  }
  return header.kind == MessageKind::kSlab ? ClaimSlab(import, header, now, actions)
                                           : ClaimBlocks(import, header, now, actions);
}

std::optional<ImportTable::Landing> ImportTable::ClaimBlocks(Import& import,
                                                             const DataHeader& header,
                                                             ClockTime now, Actions& actions) {
  const auto total = static_cast<uint64_t>(import.spec.blocks.size());
  const uint64_t first = header.first_block;
  const uint64_t count = header.num_blocks;
  const uint64_t end = first + count;  // both have 32 bits
  if (header.layer_slot >= config_.layout.full_layers.size() || count == 0 || end > total ||
      header.length != count * config_.layout.slice_bytes()) {
    FailIntegrity(import, "range of blocks", now, actions);
    return std::nullopt;
  }
  const uint64_t base = header.layer_slot * total;
  uint64_t already = 0;
  for (uint64_t block = first; block < end; ++block) {
    if (block > first && import.breaks.BreakBefore(static_cast<int64_t>(block))) {
      FailIntegrity(import, "blocks that are not contiguous here", now, actions);
      return std::nullopt;
    }
    already += import.claimed[base + block] ? 1 : 0;
  }
  if (config_.scatter && count > DeviceMemory::kMaxParts) {
    FailIntegrity(import, "a message of too many blocks", now, actions);
    return std::nullopt;
  }
  if (already == count) {
    stats_.duplicate_messages.Add();
    return std::nullopt;
  }
  if (already != 0) {
    FailIntegrity(import, "overlapping blocks", now, actions);
    return std::nullopt;
  }
  for (uint64_t block = first; block < end; ++block) import.claimed[base + block] = true;
  Landing landing = Grant(import, header, now);
  landing.layer_slot = static_cast<int32_t>(header.layer_slot);
  landing.block = import.spec.blocks[first];
  if (config_.scatter) {
    const auto begin = import.spec.blocks.begin() + static_cast<std::ptrdiff_t>(first);
    landing.blocks.assign(begin, begin + static_cast<std::ptrdiff_t>(count));
  }
  return landing;
}

std::optional<ImportTable::Landing> ImportTable::ClaimSlab(Import& import, const DataHeader& header,
                                                           ClockTime now, Actions& actions) {
  const uint64_t slab_bytes = config_.layout.slab_bytes;
  if (header.length == 0 || header.offset > slab_bytes ||
      header.length > slab_bytes - header.offset) {
    FailIntegrity(import, "range of the slab", now, actions);
    return std::nullopt;
  }
  const auto next = import.slab_claimed.lower_bound(header.offset);
  if (next != import.slab_claimed.end() && next->first == header.offset &&
      next->second == header.length) {
    stats_.duplicate_messages.Add();
    return std::nullopt;
  }
  const bool overlaps_next =
      next != import.slab_claimed.end() && next->first - header.offset < header.length;
  const bool overlaps_previous =
      next != import.slab_claimed.begin() &&
      std::prev(next)->first + std::prev(next)->second > header.offset;
  if (overlaps_next || overlaps_previous) {
    FailIntegrity(import, "overlapping slab parts", now, actions);
    return std::nullopt;
  }
  import.slab_claimed.emplace(header.offset, header.length);
  Landing landing = Grant(import, header, now);
  landing.slab = import.spec.slab;
  landing.offset = header.offset;
  return landing;
}

ImportTable::Landing ImportTable::Grant(Import& import, const DataHeader& header, ClockTime now) {
  const OperationId operation = next_operation_++;
  const bool slab = header.kind == MessageKind::kSlab;
  receives_[operation] =
      Receive{import.spec.id, import.envelope.generation, slab, header.crc, header.length};
  stats_.data_messages.Add();
  stats_.messages_in_flight.Add();
  (slab ? stats_.slab_bytes : stats_.block_bytes).Add(static_cast<int64_t>(header.length));
  if (import.in_flight++ == 0) import.last_progress = now;
  if (import.first_byte == absl::InfiniteDuration()) import.first_byte = now;
  Schedule(import);
  return Landing{.operation = operation, .length = header.length};
}

void ImportTable::OnReceived(OperationId operation, const absl::Status& status, uint32_t crc,
                             ClockTime now, Actions& actions) {
  const auto op = receives_.find(operation);
  if (op == receives_.end()) return;
  const Receive receive = op->second;
  receives_.erase(op);
  stats_.messages_in_flight.Add(-1);
  const auto it = imports_.find(receive.id);
  if (it == imports_.end() || it->second.envelope.generation != receive.generation) return;
  Import& import = it->second;
  --import.in_flight;
  if (import.failure) {
    FinishIfQuiet(import, now, actions);
    return;
  }
  if (!status.ok()) {
    stats_.peer_lost.Add();
    Fail(import, absl::UnavailableError(absl::StrCat("receive: ", status.message())),
         Tell::kNothing, false, now, actions);
    return;
  }
  if (config_.options.checksum && config_.options.fences.checksum && crc != receive.crc) {
    FailIntegrity(import, "checksum", now, actions);
    return;
  }
  import.last_progress = now;
  endpoint_progress_[import.endpoint] = now;
  (receive.slab ? import.landed.slab : import.landed.blocks) += receive.length;
  FinishIfComplete(import, now, actions);
}

void ImportTable::OnEndpointClosed(EndpointId endpoint, const absl::Status& status, ClockTime now,
                                   Actions& actions) {
  endpoint_progress_.erase(endpoint);
  std::vector<TransferId> lost;
  for (const auto& [id, import] : imports_) {
    if (import.endpoint == endpoint && !import.failure) lost.push_back(id);
  }
  for (const TransferId& id : lost) {
    stats_.peer_lost.Add();
    Fail(imports_.at(id),
         absl::UnavailableError(absl::StrCat("connection lost: ", status.message())),
         Tell::kNothing, false, now, actions);
  }
  for (auto it = committing_.begin(); it != committing_.end();) {
    if (it->second.endpoint == endpoint) {
      committing_.erase(it++);  // the exporter's lease ends by itself
    } else {
      ++it;
    }
  }
}

void ImportTable::FailIntegrity(Import& import, const char* what, ClockTime now,
                                Actions& actions) {
  stats_.integrity_failures.Add();
  Fail(import, absl::DataLossError(absl::StrCat("hand-off failed its check: ", what)),
       Tell::kCancel, false, now, actions);
}

void ImportTable::Fail(Import& import, absl::Status status, Tell tell, bool close_now,
                       ClockTime now, Actions& actions) {
  switch (status.code()) {
    case absl::StatusCode::kDeadlineExceeded: stats_.deadline_exceeded.Add(); break;
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kAborted: stats_.aborted.Add(); break;
    case absl::StatusCode::kFailedPrecondition: stats_.refused.Add(); break;
    default: break;
  }
  import.failure = std::move(status);
  import.force_at = now + config_.options.quiesce_wait;
  stats_.quarantined_blocks.Add(static_cast<int64_t>(import.spec.blocks.size()));
  if (tell != Tell::kNothing) {
    actions.push_back(SendControl{import.endpoint,
                                  {import.envelope, CancelBody{tell == Tell::kRelease}}});
  }
  if (close_now) {
    stats_.forced_closes.Add();
    actions.push_back(CloseEndpoint{import.endpoint});
    import.force_at = absl::InfiniteDuration();
  }
  Schedule(import);
  FinishIfQuiet(import, now, actions);
}

void ImportTable::FinishIfQuiet(Import& import, ClockTime now, Actions& actions) {
  if (import.in_flight > 0 && config_.options.fences.quiesce) return;
  stats_.quarantined_blocks.Add(-static_cast<int64_t>(import.spec.blocks.size()));
  const absl::Status status = *import.failure;
  Finish(import, status, now, actions);
}

uint64_t ImportTable::BlocksBytes(const Import& import) const {
  return import.spec.blocks.size() * config_.layout.block_bytes();
}

void ImportTable::FinishIfComplete(Import& import, ClockTime now, Actions& actions) {
  if (!import.final || import.landed.blocks != BlocksBytes(import) ||
      import.landed.slab != config_.layout.slab_bytes) {
    return;
  }
  const ClockTime retry_at = now + config_.options.commit_retry;
  committing_[import.spec.id] = Committing{import.endpoint, import.envelope, retry_at,
                                           now + config_.options.commit_give_up};
  next_commit_timer_ = std::min(next_commit_timer_, retry_at);
  actions.push_back(SendControl{import.endpoint, {import.envelope, CommitBody{}}});
  stats_.committed.Add();
  Finish(import, absl::OkStatus(), now, actions);
}

void ImportTable::Finish(Import& import, absl::Status status, ClockTime now, Actions& actions) {
  Finished finished{import.spec.id, import.endpoint, {}};
  PullResult& result = finished.result;
  result.status = std::move(status);
  result.seconds = absl::ToDoubleSeconds(now - import.started);
  result.payload = import.landed;
  if (result.status.ok()) {
    result.selection = std::move(import.final->selection);
    result.trailer = std::move(import.final->trailer);
    result.exposed_seconds = absl::ToDoubleSeconds(now - import.final_at);
    if (import.first_byte != absl::InfiniteDuration()) {
      result.transfer_seconds = absl::ToDoubleSeconds(now - import.first_byte);
    }
    if (result.transfer_seconds > 0) {
      const auto sample = static_cast<int64_t>(static_cast<double>(result.payload.total()) /
                                               result.transfer_seconds);
      const int64_t old = stats_.link_bytes_per_second.value();
      stats_.link_bytes_per_second.Set(old == 0 ? sample : old + (sample - old) / 8);
    }
  }
  import.failure.reset();
  import.deadline = import.renew_at = import.transfer_deadline = import.force_at =
      absl::InfiniteDuration();
  if (import.timer != absl::InfiniteDuration()) {
    auto [begin, end] = timers_.equal_range(import.timer);
    while (begin != end && begin->second != import.spec.id) ++begin;
    if (begin != end) timers_.erase(begin);
  }
  imports_.erase(finished.id);
  actions.push_back(std::move(finished));
}

}  // namespace hyserve::kv_transfer
