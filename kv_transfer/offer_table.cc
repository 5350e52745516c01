#include "kv_transfer/offer_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hyserve::kv_transfer {
namespace {

constexpr size_t kMaxBuried = 16384;

bool NewerPull(const Envelope& pull, const Envelope& current) {
  return pull.sender_incarnation != current.receiver_incarnation ||
         pull.generation > current.generation;
}

}  // namespace

OfferTable::OfferTable(Config config, TransferStats* stats)
    : config_(std::move(config)), stats_(*stats) {}

void OfferTable::Offer(const OfferSpec& spec, ClockTime deadline, ClockTime now, Actions& actions) {
  if (buried_.contains(spec.id) || offers_.contains(spec.id)) {
    // Cancelled before it was offered, or an id used twice: never mix it with the earlier one.
    stats_.aborted.Add();
    actions.push_back(Released{spec.id, ReleaseReason::kAborted});
    return;
  }
  OfferState& offer = offers_[spec.id];
  offer.spec = spec;
  offer.breaks = config_.gather ? BreakMap::Whole(static_cast<int64_t>(spec.blocks.size()))
                                : BreakMap(spec.blocks);
  offer.ready_blocks.assign(config_.layout.full_layers.size(), 0);
  offer.deadline = deadline;
  stats_.started.Add();
  Schedule(offer);
  const auto pending = pending_pulls_.find(spec.id);
  if (pending == pending_pulls_.end()) return;
  const PendingPull pull = std::move(pending->second);
  pending_pulls_.erase(pending);
  OnPull(pull.endpoint, pull.envelope, pull.body, now, actions);
}

void OfferTable::LayerReady(const TransferId& id, int layer_slot, int64_t num_tokens,
                            Actions& actions) {
  const auto it = offers_.find(id);
  if (it == offers_.end() || it->second.ended) return;
  OfferState& offer = it->second;
  if (layer_slot < 0 || layer_slot >= static_cast<int>(offer.ready_blocks.size())) return;
  const int64_t whole = num_tokens / kv_cache::kTokensPerBlock;
  const int64_t ready =
      num_tokens >= offer.spec.num_tokens ? static_cast<int64_t>(offer.spec.blocks.size()) : whole;
  int64_t& current = offer.ready_blocks[static_cast<size_t>(layer_slot)];
  if (ready <= current) return;
  current = ready;
  if (!offer.receiver) return;
  offer.receiver->plan.LayerReady(layer_slot, ready);
  Pump(offer, actions);
}

void OfferTable::SlabReady(const TransferId& id, std::vector<int32_t> selection,
                           std::string trailer, ClockTime now, Actions& actions) {
  const auto it = offers_.find(id);
  if (it == offers_.end() || it->second.ended || it->second.slab_ready) return;
  OfferState& offer = it->second;
  if (selection.size() * sizeof(int32_t) != config_.layout.selection_bytes() ||
      trailer.size() > kMaxTrailerBytes) {
    End(offer, ReleaseReason::kAborted, now, actions);
    return;
  }
  offer.selection = std::move(selection);
  offer.trailer = std::move(trailer);
  offer.slab_ready = true;
  std::fill(offer.ready_blocks.begin(), offer.ready_blocks.end(),
            static_cast<int64_t>(offer.spec.blocks.size()));
  if (offer.receiver) {
    CopyPlan& plan = offer.receiver->plan;
    for (size_t slot = 0; slot < offer.ready_blocks.size(); ++slot) {
      plan.LayerReady(static_cast<int32_t>(slot), offer.ready_blocks[slot]);
    }
    plan.SlabReady();
  }
  Renew(offer, now);
  Pump(offer, actions);
}

void OfferTable::Abort(const TransferId& id, ClockTime now, Actions& actions) {
  const auto it = offers_.find(id);
  if (it == offers_.end() || it->second.ended) return;
  End(it->second, ReleaseReason::kAborted, now, actions);
}

void OfferTable::AbortAll(ClockTime now, Actions& actions) {
  std::vector<TransferId> ids;
  for (const auto& [id, offer] : offers_) ids.push_back(id);
  for (const TransferId& id : ids) {
    Abort(id, now, actions);
    const auto it = offers_.find(id);
    if (it == offers_.end()) continue;
    it->second.force_at = now;
    Schedule(it->second);
  }
  for (const auto& [id, pull] : pending_pulls_) {
    Reply(pull.endpoint, pull.envelope, FailedBody{Failure::kAborted}, actions);
  }
  pending_pulls_.clear();
  OnTimer(now, actions);
}

void OfferTable::OnControl(EndpointId from, const ControlMessage& message, ClockTime now,
                           Actions& actions) {
  const Envelope& envelope = message.envelope;
  if (config_.options.fences.incarnation && envelope.receiver_incarnation != config_.incarnation) {
    stats_.stale_messages.Add();
    if (std::holds_alternative<PullBody>(message.body)) {
      stats_.refused.Add();
      Reply(from, envelope, FailedBody{Failure::kStaleIncarnation}, actions);
    }
    return;
  }
  if (const auto* pull = std::get_if<PullBody>(&message.body)) {
    OnPull(from, envelope, *pull, now, actions);
    return;
  }
  const auto* cancel = std::get_if<CancelBody>(&message.body);
  const bool renew = std::holds_alternative<RenewBody>(message.body);
  const bool commit = std::holds_alternative<CommitBody>(message.body);
  if (cancel == nullptr && !renew && !commit) {
    stats_.malformed_messages.Add();  // not for an exporter
    return;
  }
  const auto it = offers_.find(envelope.id);
  if (it == offers_.end()) {
    const auto pending = pending_pulls_.find(envelope.id);
    if (pending != pending_pulls_.end()) {
      PendingPull& pull = pending->second;
      if (pull.endpoint != from || pull.envelope != envelope) {
        stats_.stale_messages.Add();
      } else if (renew) {
        pull.expiry = now + config_.options.pending_pull_hold;
        Reply(from, envelope, RenewAckBody{}, actions);
      } else if (cancel != nullptr) {
        if (cancel->release) Bury(envelope.id, ReleaseReason::kAborted);
        pending_pulls_.erase(pending);
      }
      return;
    }
    const auto grave = buried_.find(envelope.id);
    if (commit && grave != buried_.end() && grave->second == ReleaseReason::kCommitted) {
      stats_.duplicate_messages.Add();
      Reply(from, envelope, CommitAckBody{}, actions);
      return;
    }
    stats_.unknown_transfers.Add();
    if (!cancel) Reply(from, envelope, FailedBody{Failure::kUnknownTransfer}, actions);
    return;
  }
  OfferState& offer = it->second;
  if (offer.ended) {
    if (commit && *offer.ended == ReleaseReason::kCommitted) {
      Reply(from, envelope, CommitAckBody{}, actions);
    }
    return;
  }
  if (!FromReceiver(offer, from, envelope)) {
    stats_.stale_messages.Add();
    return;
  }
  if (renew) {
    Renew(offer, now);
    Reply(from, envelope, RenewAckBody{}, actions);
  } else if (commit) {
    if (!offer.receiver->final_sent || !offer.receiver->plan.Done()) {
      stats_.malformed_messages.Add();  // nobody can have verified what was not sent
      return;
    }
    Reply(from, envelope, CommitAckBody{}, actions);
    End(offer, ReleaseReason::kCommitted, now, actions);
  } else if (cancel->release) {
    offer.receiver.reset();
    End(offer, ReleaseReason::kAborted, now, actions);
  } else {
    DetachReceiver(offer, now);
  }
}

std::optional<Failure> OfferTable::Refuse(const OfferState& offer, const Envelope& envelope,
                                          const PullBody& body) {
  if (config_.options.fences.epoch && envelope.epoch != offer.spec.epoch) {
    stats_.stale_messages.Add();
    return Failure::kStaleEpoch;
  }
  const bool same_layout =
      !config_.options.fences.layout || body.layout_hash == config_.layout_hash;
  if (!same_layout || body.num_tokens != static_cast<uint64_t>(offer.spec.num_tokens) ||
      body.breaks.num_blocks() != static_cast<int64_t>(offer.spec.blocks.size())) {
    return Failure::kLayoutMismatch;
  }
  return std::nullopt;
}

void OfferTable::OnPull(EndpointId from, const Envelope& envelope, const PullBody& body,
                        ClockTime now, Actions& actions) {
  const auto it = offers_.find(envelope.id);
  if (it == offers_.end()) {
    std::optional<Failure> failure;
    if (buried_.contains(envelope.id)) failure = Failure::kUnknownTransfer;
    if (config_.options.fences.layout && body.layout_hash != config_.layout_hash) {
      failure = Failure::kLayoutMismatch;
    }
    if (!pending_pulls_.contains(envelope.id) &&
        pending_pulls_.size() >= static_cast<size_t>(config_.options.max_pending_pulls)) {
      failure = Failure::kOverloaded;
    }
    if (failure) {
      stats_.refused.Add();
      Reply(from, envelope, FailedBody{*failure}, actions);
      return;
    }
    const ClockTime expiry = now + config_.options.pending_pull_hold;
    pending_pulls_[envelope.id] = PendingPull{from, envelope, body, expiry};
    next_pending_expiry_ = std::min(next_pending_expiry_, expiry);
    return;
  }
  OfferState& offer = it->second;
  const std::optional<Failure> failure =
      offer.ended ? Failure::kUnknownTransfer : Refuse(offer, envelope, body);
  if (failure) {
    stats_.refused.Add();
    Reply(from, envelope, FailedBody{*failure}, actions);
    // Whom the ticket was made for can never take it: the memory waits for nobody.
    const bool useless = failure == Failure::kLayoutMismatch && !offer.receiver;
    if (useless) End(offer, ReleaseReason::kAborted, now, actions);
    return;
  }
  if (offer.receiver && !NewerPull(envelope, offer.receiver->reply)) {
    stats_.duplicate_messages.Add();
    return;
  }
  Attach(offer, from, envelope, body, now, actions);
}

void OfferTable::Attach(OfferState& offer, EndpointId endpoint, const Envelope& envelope,
                        const PullBody& body, ClockTime now, Actions& actions) {
  const Envelope reply{.id = envelope.id,
                       .epoch = offer.spec.epoch,
                       .sender_incarnation = config_.incarnation,
                       .receiver_incarnation = envelope.sender_incarnation,
                       .generation = envelope.generation};
  const CopyPlan::Geometry geometry{
      .num_layers = static_cast<int32_t>(config_.layout.full_layers.size()),
      .slice_bytes = config_.layout.slice_bytes(),
      .slab_bytes = config_.layout.slab_bytes,
      .max_message_bytes = config_.options.max_message_bytes,
      .max_message_blocks = config_.gather ? int64_t{DeviceMemory::kMaxParts}
                                           : kMaxBlocksPerTransfer};
  offer.receiver.emplace(
      Receiver{endpoint, reply, CopyPlan(geometry, offer.breaks, body.breaks)});
  for (size_t slot = 0; slot < offer.ready_blocks.size(); ++slot) {
    offer.receiver->plan.LayerReady(static_cast<int32_t>(slot), offer.ready_blocks[slot]);
  }
  if (offer.slab_ready) offer.receiver->plan.SlabReady();
  offer.grace_end = absl::InfiniteDuration();
  Renew(offer, now);
  Pump(offer, actions);
}

void OfferTable::Pump(OfferState& offer, Actions& actions) {
  if (!offer.receiver || offer.ended) return;
  Receiver& receiver = *offer.receiver;
  while (receiver.in_flight < config_.options.max_messages_in_flight) {
    const std::optional<CopyMessage> part = receiver.plan.Next();
    if (!part) break;
    const OperationId operation = next_operation_++;
    offer.sends[operation] = Send{receiver.endpoint, receiver.reply.generation};
    operations_[operation] = offer.spec.id;
    ++receiver.in_flight;
    stats_.messages_in_flight.Add();
    stats_.data_messages.Add();
    const bool slab = part->layer_slot < 0;
    (slab ? stats_.slab_bytes : stats_.block_bytes).Add(static_cast<int64_t>(part->length));
    DataHeader header{.envelope = receiver.reply,
                      .kind = slab ? MessageKind::kSlab : MessageKind::kBlocks,
                      .layer_slot = slab ? 0 : static_cast<uint32_t>(part->layer_slot),
                      .first_block = static_cast<uint32_t>(part->first_block),
                      .num_blocks = static_cast<uint32_t>(part->num_blocks),
                      .offset = part->offset,
                      .length = part->length};
    const int32_t physical =
        slab ? -1 : offer.spec.blocks[static_cast<size_t>(part->first_block)];
    actions.push_back(
        SendData{receiver.endpoint, operation, header, *part, physical, offer.spec.slab,
                 config_.gather && !slab ? &offer.spec.blocks[part->first_block] : nullptr});
  }
  if (offer.slab_ready && !receiver.final_sent) {
    // Said at once, before the data it speaks of: the receiver then knows what to wait for.
    receiver.final_sent = true;
    stats_.selection_bytes.Add(static_cast<int64_t>(offer.selection.size() * sizeof(int32_t)));
    actions.push_back(
        SendControl{receiver.endpoint,
                    {receiver.reply, FinalBody{config_.layout_hash,
                                               static_cast<uint64_t>(offer.spec.num_tokens),
                                               offer.selection, offer.trailer}}});
  }
}

void OfferTable::OnSent(OperationId operation, ClockTime now, Actions& actions, bool possible) {
  const auto op = operations_.find(operation);
  if (op == operations_.end()) return;
  const TransferId id = op->second;
  operations_.erase(op);
  stats_.messages_in_flight.Add(-1);
  const auto it = offers_.find(id);
  if (it == offers_.end()) return;  // only without the quiesce fence
  OfferState& offer = it->second;
  const auto send = offer.sends.find(operation);
  if (send == offer.sends.end()) return;
  const Send done = send->second;
  offer.sends.erase(send);
  if (offer.ended) {
    ReleaseIfDrained(id, actions);
    return;
  }
  if (!possible) return End(offer, ReleaseReason::kAborted, now, actions);
  if (offer.receiver && offer.receiver->endpoint == done.endpoint &&
      offer.receiver->reply.generation == done.generation) {
    --offer.receiver->in_flight;
    Pump(offer, actions);
  }
}

void OfferTable::OnEndpointClosed(EndpointId endpoint, ClockTime now, Actions& actions) {
  for (auto it = pending_pulls_.begin(); it != pending_pulls_.end();) {
    if (it->second.endpoint == endpoint) {
      pending_pulls_.erase(it++);
    } else {
      ++it;
    }
  }
  std::vector<TransferId> lost;
  for (auto& [id, offer] : offers_) {
    if (offer.receiver && offer.receiver->endpoint == endpoint && !offer.ended) lost.push_back(id);
  }
  for (const TransferId& id : lost) DetachReceiver(offers_.at(id), now);
  OnTimer(now, actions);
}

void OfferTable::DetachReceiver(OfferState& offer, ClockTime now) {
  offer.receiver.reset();
  offer.grace_end = now + config_.options.peer_loss_grace;
  Schedule(offer);
}

void OfferTable::End(OfferState& offer, ReleaseReason reason, ClockTime now, Actions& actions) {
  if (offer.receiver && reason != ReleaseReason::kCommitted) {
    const Failure failure = reason == ReleaseReason::kLeaseExpired ? Failure::kLeaseExpired
                                                                   : Failure::kAborted;
    actions.push_back(SendControl{offer.receiver->endpoint,
                                  {offer.receiver->reply, FailedBody{failure}}});
  }
  switch (reason) {
    case ReleaseReason::kCommitted: stats_.committed.Add(); break;
    case ReleaseReason::kAborted: stats_.aborted.Add(); break;
    case ReleaseReason::kLeaseExpired: stats_.lease_expired.Add(); break;
    case ReleaseReason::kPeerLost: stats_.peer_lost.Add(); break;
  }
  offer.receiver.reset();
  offer.ended = reason;
  offer.force_at = now + config_.options.quiesce_wait;
  stats_.draining_blocks.Add(static_cast<int64_t>(offer.spec.blocks.size()));
  Schedule(offer);
  ReleaseIfDrained(offer.spec.id, actions);
}

void OfferTable::ReleaseIfDrained(const TransferId& id, Actions& actions) {
  const auto it = offers_.find(id);
  OfferState& offer = it->second;
  if (!offer.sends.empty() && config_.options.fences.quiesce) return;
  const ReleaseReason reason = *offer.ended;
  stats_.draining_blocks.Add(-static_cast<int64_t>(offer.spec.blocks.size()));
  offer.deadline = offer.lease_end = offer.grace_end = offer.force_at = absl::InfiniteDuration();
  offer.ended.reset();
  Schedule(offer);  // takes the timer out
  const TransferId released = id;
  offers_.erase(it);
  Bury(released, reason);
  actions.push_back(Released{released, reason});
}

void OfferTable::OnTimer(ClockTime now, Actions& actions) {
  while (!timers_.empty() && timers_.begin()->first <= now) {
    OfferState& offer = offers_.at(timers_.begin()->second);
    if (offer.ended) {
      absl::flat_hash_set<EndpointId> stuck;
      for (const auto& [operation, send] : offer.sends) stuck.insert(send.endpoint);
      for (const EndpointId endpoint : stuck) {
        stats_.forced_closes.Add();
        actions.push_back(CloseEndpoint{endpoint});
      }
      offer.force_at =
          absl::InfiniteDuration();  // once is enough: the close will complete the sends
      Schedule(offer);
    } else if (offer.grace_end <= now) {
      End(offer, ReleaseReason::kPeerLost, now, actions);
    } else if (offer.lease_end <= now) {
      End(offer, ReleaseReason::kLeaseExpired, now, actions);
    } else {
      End(offer, ReleaseReason::kAborted, now, actions);  // the request's deadline
    }
  }
  if (next_pending_expiry_ > now) return;
  next_pending_expiry_ = absl::InfiniteDuration();
  for (auto it = pending_pulls_.begin(); it != pending_pulls_.end();) {
    if (it->second.expiry <= now) {
      stats_.refused.Add();
      Reply(it->second.endpoint, it->second.envelope, FailedBody{Failure::kUnknownTransfer},
            actions);
      pending_pulls_.erase(it++);
    } else {
      next_pending_expiry_ = std::min(next_pending_expiry_, it->second.expiry);
      ++it;
    }
  }
}

ClockTime OfferTable::NextTimer() const {
  return timers_.empty() ? next_pending_expiry_
                         : std::min(next_pending_expiry_, timers_.begin()->first);
}

bool OfferTable::FromReceiver(const OfferState& offer, EndpointId from,
                              const Envelope& envelope) const {
  if (!offer.receiver || offer.receiver->endpoint != from) return false;
  const Envelope& reply = offer.receiver->reply;
  return envelope.epoch == reply.epoch && envelope.generation == reply.generation &&
         envelope.sender_incarnation == reply.receiver_incarnation;
}

void OfferTable::Reply(EndpointId to, const Envelope& received, ControlBody body,
                       Actions& actions) const {
  Envelope reply = received;
  reply.sender_incarnation = config_.incarnation;
  reply.receiver_incarnation = received.sender_incarnation;
  actions.push_back(SendControl{to, {reply, std::move(body)}});
}

void OfferTable::Renew(OfferState& offer, ClockTime now) {
  offer.lease_end = now + config_.options.lease;
  Schedule(offer);
}

void OfferTable::Schedule(OfferState& offer) {
  const ClockTime next =
      offer.ended ? offer.force_at
                  : std::min({offer.deadline, offer.lease_end, offer.grace_end});
  if (next == offer.timer) return;
  if (offer.timer != absl::InfiniteDuration()) {
    auto [begin, end] = timers_.equal_range(offer.timer);
    while (begin != end && begin->second != offer.spec.id) ++begin;
    if (begin != end) timers_.erase(begin);
  }
  offer.timer = next;
  if (next != absl::InfiniteDuration()) timers_.emplace(next, offer.spec.id);
}

void OfferTable::Bury(const TransferId& id, ReleaseReason reason) {
  if (!buried_.emplace(id, reason).second) return;
  burial_order_.push_back(id);
  if (burial_order_.size() > kMaxBuried) {
    buried_.erase(burial_order_.front());
    burial_order_.pop_front();
  }
}

std::string OfferTable::CheckInvariants() const {
  size_t sends = 0;
  size_t timers = 0;
  for (const auto& [id, offer] : offers_) {
    sends += offer.sends.size();
    timers += offer.timer == absl::InfiniteDuration() ? 0 : 1;
    if (offer.receiver && offer.ended) return absl::StrCat(id.Short(), ": ended with a receiver");
    if (offer.ended && offer.sends.empty())
      return absl::StrCat(id.Short(), ": drained, not released");
    if (offer.receiver && static_cast<size_t>(offer.receiver->in_flight) > offer.sends.size()) {
      return absl::StrCat(id.Short(), ": more messages in flight than sends");
    }
    if (buried_.contains(id)) return absl::StrCat(id.Short(), ": live and buried");
  }
  if (config_.options.fences.quiesce && sends != operations_.size()) {
    return absl::StrCat("sends of offers ", sends, ", operations ", operations_.size());
  }
  if (timers != timers_.size())
    return absl::StrCat("offers with timer ", timers, " of ", timers_.size());
  if (buried_.size() != burial_order_.size()) return "buried offers and their order differ";
  return "";
}

}  // namespace hyserve::kv_transfer
