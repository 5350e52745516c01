#include "kv_transfer/offer_checksums.h"

#include <algorithm>
#include <utility>

namespace hyserve::kv_transfer {

OfferChecksums::OfferChecksums(const MemoryRegions& regions, size_t max_message_bytes,
                               DeviceMemory* device, DeviceJobs* jobs)
    : regions_(regions),
      max_message_bytes_(std::max<size_t>(1, max_message_bytes)),
      device_(device),
      jobs_(jobs),
      append_block_(regions.layout.slice_bytes()) {}

void OfferChecksums::Offer(const OfferSpec& spec) {
  auto state = std::make_shared<OfferState>();
  const size_t layers = regions_.layout.full_layers.size();
  state->blocks = spec.blocks;
  state->slab = spec.slab;
  state->num_tokens = spec.num_tokens;
  state->started.assign(layers, 0);
  state->block_crcs.assign(layers * spec.blocks.size(), 0);
  const size_t slab_bytes = regions_.layout.slab_bytes;
  state->slab_crcs.assign((slab_bytes + max_message_bytes_ - 1) / max_message_bytes_, 0);
  offers_[spec.id] = std::move(state);
}

OfferChecksums::StatePtr OfferChecksums::Find(const TransferId& id) const {
  const auto it = offers_.find(id);
  return it == offers_.end() ? nullptr : it->second;
}

void OfferChecksums::LayerReady(const TransferId& id, int layer_slot, int64_t num_tokens,
                                Done done) {
  const StatePtr state = Find(id);
  if (state == nullptr || layer_slot < 0 ||
      static_cast<size_t>(layer_slot) >= state->started.size()) {
    return;
  }
  const int64_t ready = num_tokens >= state->num_tokens
                            ? static_cast<int64_t>(state->blocks.size())
                            : num_tokens / kv_cache::kTokensPerBlock;
  if (ready <= state->started[static_cast<size_t>(layer_slot)]) return;
  auto group = std::make_shared<Group>();
  group->done = std::move(done);
  state->groups.push_back(group);
  StartLayer(state, layer_slot, ready, group);
}

void OfferChecksums::SlabReady(const TransferId& id, Done done) {
  const StatePtr state = Find(id);
  if (state == nullptr || state->slab_started) return;
  state->slab_started = true;
  auto group = std::make_shared<Group>();
  group->done = std::move(done);
  state->groups.push_back(group);
  for (size_t slot = 0; slot < state->started.size(); ++slot) {
    StartLayer(state, static_cast<int>(slot), static_cast<int64_t>(state->blocks.size()), group);
  }
  const size_t slab_bytes = regions_.layout.slab_bytes;
  std::vector<MemoryPart> parts;
  size_t first = 0;
  for (size_t i = 0; i < state->slab_crcs.size(); ++i) {
    const size_t offset = i * max_message_bytes_;
    parts.push_back({regions_.Slab(state->slab) + offset,
                     std::min(max_message_bytes_, slab_bytes - offset)});
    if (parts.size() < DeviceMemory::kMaxParts && i + 1 < state->slab_crcs.size()) continue;
    Start(state, parts, &state->slab_crcs[first], group);
    first = i + 1;
    parts.clear();
  }
  // With nothing left to compute, at the next poll all the same: never inside this call.
  if (group->running == 0) Start(state, {}, nullptr, group);
}

void OfferChecksums::StartLayer(const StatePtr& state, int layer_slot, int64_t ready,
                                const std::shared_ptr<Group>& group) {
  int64_t& started = state->started[static_cast<size_t>(layer_slot)];
  const auto total = static_cast<int64_t>(state->blocks.size());
  while (started < ready) {
    const int64_t end = std::min<int64_t>(ready, started + DeviceMemory::kMaxParts);
    uint32_t* crcs = &state->block_crcs[static_cast<size_t>(layer_slot * total + started)];
    std::vector<MemoryPart> parts;
    for (; started < end; ++started) {
      parts.push_back({regions_.Slice(layer_slot, state->blocks[static_cast<size_t>(started)]),
                       regions_.layout.slice_bytes()});
    }
    Start(state, parts, crcs, group);
  }
}

void OfferChecksums::Start(const StatePtr& state, const std::vector<MemoryPart>& parts,
                           uint32_t* crcs, const std::shared_ptr<Group>& group) {
  ++group->running;
  // The state outlives the job, which writes into it.
  jobs_->Add(device_->StartChecksum(parts, crcs),
             [state, group](const absl::Status& status, uint32_t) {
               --group->running;
               group->status.Update(status);
               while (!state->groups.empty() && state->groups.front()->running == 0) {
                 const std::shared_ptr<Group> ended = state->groups.front();
                 state->groups.pop_front();
                 ended->done(ended->status);
               }
             });
}

uint32_t OfferChecksums::Of(const TransferId& id, const CopyMessage& message) const {
  const OfferState& state = *offers_.at(id);
  if (message.layer_slot < 0) return state.slab_crcs[message.offset / max_message_bytes_];
  const size_t first = static_cast<size_t>(message.layer_slot) * state.blocks.size() +
                       static_cast<size_t>(message.first_block);
  uint32_t crc = state.block_crcs[first];
  for (size_t i = 1; i < static_cast<size_t>(message.num_blocks); ++i) {
    crc = append_block_(crc, state.block_crcs[first + i]);
  }
  return crc;
}

}  // namespace hyserve::kv_transfer
