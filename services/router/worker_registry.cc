#include "services/router/worker_registry.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "base/strings.h"

namespace hyserve::router {
namespace {

constexpr uint32_t kProtocolVersion = 1;
constexpr size_t kMaxWorkers = 1000;
constexpr size_t kMaxGroups = 1024;

int64_t Blocks(int64_t tokens) { return (tokens + kTokensPerBlock - 1) / kTokensPerBlock; }

bool IsSane(const v1::LoadReport& load) {
  const auto ok = [](double value) { return std::isfinite(value) && value >= 0 && value < 1e15; };
  return load.waiting_sequences() >= 0 && load.waiting_tokens() >= 0 &&
         load.running_sequences() >= 0 && load.blocks_total() >= 0 && load.blocks_free() >= 0 &&
         load.blocks_free() <= load.blocks_total() && ok(load.prefill_tokens_per_second()) &&
         ok(load.decode_step_ms()) && ok(load.link_bytes_per_second());
}

// Known, going to stay, and able to compute.
bool IsUsable(const v1::LoadReport& load) {
  return load.blocks_total() > 0 && !load.draining() && load.failure().empty();
}

}  // namespace

WorkerRegistry::WorkerRegistry(RegistryOptions options)
    : options_(std::move(options)),
      prefixes_(options_.prefix_index_blocks),
      pairs_(options_.pair_quarantine) {}

absl::Status WorkerRegistry::Check(const v1::Registration& registration) const {
  const auto refuse = [](const std::string& why) { return absl::FailedPreconditionError(why); };
  if (registration.protocol_version() != kProtocolVersion) {
    return refuse(StrCat("protocol_version: the router speaks ", kProtocolVersion, "; got ",
                         registration.protocol_version()));
  }
  if (registration.name().empty() || registration.name().size() > 64) {
    return refuse("name: must have 1 to 64 bytes");
  }
  if (registration.role() < v1::WORKER_ROLE_PREFILL ||
      registration.role() > v1::WORKER_ROLE_MONOLITHIC) {
    return refuse("role: unknown");
  }
  if (registration.address().empty()) return refuse("address: missing");
  if (registration.vocab_size() < 1 || registration.max_context_tokens() < 1 ||
      registration.max_sequences() < 1 || registration.kv_bytes_per_block() < 0 ||
      registration.slab_bytes() < 0 || registration.selection_bytes() < 0 ||
      registration.full_attention_bytes_per_block() < 0) {
    return refuse("vocab_size, max_context_tokens, max_sequences or sizes: out of range");
  }
  const std::string& name = model_.has_value() ? model_->name : options_.model_name;
  if (!name.empty() && registration.model_name() != name) {
    return refuse(StrCat("model_name: the router serves \"", name, "\"; got \"",
                         registration.model_name(), "\""));
  }
  if (model_.has_value() && registration.vocab_size() != model_->vocab_size) {
    return refuse(StrCat("vocab_size: other workers have ", model_->vocab_size, "; got ",
                         registration.vocab_size()));
  }
  if (workers_.size() >= kMaxWorkers || groups_.size() >= kMaxGroups) {
    return refuse("too many workers");
  }
  return absl::OkStatus();
}

int32_t WorkerRegistry::GroupOf(const v1::Registration& registration) {
  const std::string key =
      StrCat(registration.layout_fingerprint(), "\n", registration.model_digest());
  return groups_.try_emplace(key, static_cast<int32_t>(groups_.size())).first->second;
}

absl::StatusOr<WorkerId> WorkerRegistry::Add(const v1::Registration& registration,
                                             std::shared_ptr<WorkerLink> link) {
  Lost lost;
  WorkerId id = 0;
  {
    absl::MutexLock lock(&mutex_);
    if (workers_.empty())
      model_.reset();  // another model may take over when the last worker is gone
    if (absl::Status status = Check(registration); !status.ok()) return status;
    for (const State& state : workers_) {
      if (state.worker->registration.name() != registration.name()) continue;
      if (state.worker->registration.transfer().incarnation() ==
          registration.transfer().incarnation()) {
        return absl::FailedPreconditionError(
            StrCat("name: \"", registration.name(), "\" is registered already"));
      }
      RemoveLocked(state.worker->id, &lost);
      break;
    }
    auto worker = std::make_shared<Worker>();
    worker->id = id = next_worker_++;
    worker->registration = registration;
    worker->link = std::move(link);
    State state;
    state.group = GroupOf(registration);
    state.worker = std::move(worker);
    workers_.push_back(std::move(state));
    if (!model_.has_value()) {
      model_ = ModelInfo{registration.model_name(),
                         registration.vocab_size(),
                         registration.max_context_tokens(),
                         {registration.eos_token_ids().begin(), registration.eos_token_ids().end()},
                         registration.kv_bytes_per_block(),
                         registration.full_attention_bytes_per_block(),
                         registration.slab_bytes(),
                         registration.selection_bytes()};
    } else {
      // The smallest context is the one that every worker can serve.
      model_->max_context_tokens =
          std::min(model_->max_context_tokens, registration.max_context_tokens());
    }
  }
  Tell(lost);
  return id;
}

void WorkerRegistry::UpdateLoad(WorkerId id, const v1::LoadReport& load) {
  if (!IsSane(load)) return;
  absl::MutexLock lock(&mutex_);
  for (State& state : workers_) {
    if (state.worker->id == id) state.load = load;
  }
}

bool WorkerRegistry::Remove(WorkerId id) {
  Lost lost;
  bool crashed = false;
  {
    absl::MutexLock lock(&mutex_);
    crashed = RemoveLocked(id, &lost);
  }
  Tell(lost);
  return crashed;
}

bool WorkerRegistry::RemoveLocked(WorkerId id, Lost* lost) {
  const auto found = std::find_if(workers_.begin(), workers_.end(),
                                  [id](const State& state) { return state.worker->id == id; });
  if (found == workers_.end()) return false;
  const bool crashed = !found->load.draining() || !found->load.failure().empty();
  workers_.erase(found);
  prefixes_.RemoveWorker(id);
  pairs_.RemoveWorker(id);
  for (const auto& [booking_id, booking] : bookings_) {
    if (booking.prefill_open && booking.prefill == id) {
      lost->emplace_back(booking.listener, booking_id, WorkerSide::kPrefill);
    }
    if (booking.decode_open && booking.decode == id) {
      lost->emplace_back(booking.listener, booking_id, WorkerSide::kDecode);
    }
  }
  return crashed;
}

void WorkerRegistry::Tell(const Lost& lost) {
  for (const auto& [weak, booking, side] : lost) {
    if (const std::shared_ptr<WorkerLostListener> listener = weak.lock()) {
      listener->OnWorkerLost(booking, side);
    }
  }
}

// A worker's own report and the router's open bookings describe the same load (bookings are newer,
// the report knows other routers); the larger of the two counts.
WorkerView WorkerRegistry::View(const State& state, const RouteRequest* request) const {
  const v1::Registration& registration = state.worker->registration;
  const v1::LoadReport& load = state.load;
  WorkerView view;
  view.id = state.worker->id;
  view.group = state.group;
  view.waiting_tokens =
      static_cast<double>(std::max<int64_t>(load.waiting_tokens(), state.booked_tokens));
  view.prefill_tokens_per_second = load.prefill_tokens_per_second();
  view.sequences =
      std::max(load.waiting_sequences() + load.running_sequences(), state.booked_sequences);
  view.max_sequences = registration.max_sequences();
  view.decode_step_ms = load.decode_step_ms();
  view.blocks_total = load.blocks_total();
  view.blocks_free = std::min(load.blocks_free(), load.blocks_total() - load.blocks_quarantined() -
                                                      state.booked_blocks);
  view.link_bytes_per_second = load.link_bytes_per_second();
  view.kv_bytes_per_token =
      static_cast<double>(registration.kv_bytes_per_block()) / kTokensPerBlock;
  view.slab_bytes = static_cast<double>(registration.slab_bytes());
  view.draining = load.draining();
  if (registration.role() != v1::WORKER_ROLE_DECODE) {
    view.cached_tokens =
        prefixes_.MatchedBlocks(view.id, request->block_hashes) * kTokensPerBlock;
  }
  return view;
}

AssignmentResult WorkerRegistry::Assign(const RouteRequest& request,
                                        std::weak_ptr<WorkerLostListener> listener,
                                        absl::Time now) {
  AssignmentResult result;
  absl::MutexLock lock(&mutex_);
  RoutingSnapshot snapshot;
  std::vector<State*> prefill, decode, monolithic;
  for (State& state : workers_) {
    // The memory of a worker that has not reported yet is unknown.
    if (state.load.blocks_total() == 0 || !state.load.failure().empty()) continue;
    switch (state.worker->registration.role()) {
      case v1::WORKER_ROLE_PREFILL:
        snapshot.prefill.push_back(View(state, &request));
        prefill.push_back(&state);
        break;
      case v1::WORKER_ROLE_DECODE:
        snapshot.decode.push_back(View(state, &request));
        decode.push_back(&state);
        break;
      default:
        snapshot.monolithic.push_back(View(state, &request));
        monolithic.push_back(&state);
        break;
    }
  }
  if (!pairs_.empty()) {
    for (const WorkerPair& pair : pairs_.Known()) {
      if (pairs_.IsBad(pair, now)) snapshot.bad_pairs.push_back(pair);
    }
  }
  const Pick pick = PickWorkers(snapshot, request.routing);
  result.result = pick.result;
  if (pick.result != PickResult::kPicked) return result;

  State& to = *(pick.prefill >= 0 ? decode : monolithic)[pick.decode];
  State& computes = pick.prefill >= 0 ? *prefill[pick.prefill] : to;
  const WorkerView& view =
      pick.prefill >= 0 ? snapshot.prefill[pick.prefill] : snapshot.monolithic[pick.decode];
  Booking booking;
  booking.prefill = computes.worker->id;
  booking.decode = to.worker->id;
  booking.prefill_open = booking.decode_open = true;
  booking.tokens = std::max(request.routing.prompt_tokens - view.cached_tokens, 1);
  booking.blocks = Blocks(int64_t{request.routing.prompt_tokens} + request.routing.max_tokens);
  booking.listener = std::move(listener);
  computes.booked_tokens += booking.tokens;
  if (pick.prefill >= 0) ++computes.booked_sequences;
  ++to.booked_sequences;
  to.booked_blocks += booking.blocks;
  prefixes_.Insert(computes.worker->id, request.block_hashes);

  Assignment& assignment = result.assignment;
  assignment.booking = next_booking_++;
  if (pick.prefill >= 0) assignment.prefill = computes.worker;
  assignment.decode = to.worker;
  assignment.predicted_ttft_ms = pick.predicted_ttft_ms;
  assignment.measured = pick.measured;
  assignment.cached_tokens = view.cached_tokens;
  bookings_.emplace(assignment.booking, std::move(booking));
  return result;
}

void WorkerRegistry::ReleaseLocked(BookingId id, WorkerSide side) {
  const auto found = bookings_.find(id);
  if (found == bookings_.end()) return;
  Booking& booking = found->second;
  bool& open = side == WorkerSide::kPrefill ? booking.prefill_open : booking.decode_open;
  if (!open) return;
  open = false;
  const WorkerId worker = side == WorkerSide::kPrefill ? booking.prefill : booking.decode;
  for (State& state : workers_) {
    if (state.worker->id != worker) continue;
    if (side == WorkerSide::kPrefill) {
      state.booked_tokens -= booking.tokens;
      if (booking.prefill != booking.decode) --state.booked_sequences;
    } else {
      --state.booked_sequences;
      state.booked_blocks -= booking.blocks;
    }
  }
  if (!booking.prefill_open && !booking.decode_open) bookings_.erase(found);
}

void WorkerRegistry::ReleasePrefill(BookingId booking) {
  absl::MutexLock lock(&mutex_);
  ReleaseLocked(booking, WorkerSide::kPrefill);
}

void WorkerRegistry::ReleaseDecode(BookingId booking) {
  absl::MutexLock lock(&mutex_);
  ReleaseLocked(booking, WorkerSide::kDecode);
}

void WorkerRegistry::RecordHandoff(WorkerId prefill, WorkerId decode, bool ok, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  if (ok) {
    pairs_.RecordSuccess({prefill, decode});
    return;
  }
  const auto live = [&](WorkerId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::any_of(workers_.begin(), workers_.end(),
                       [id](const State& state) { return state.worker->id == id; });
  };
  if (live(prefill) && live(decode)) pairs_.RecordFailure({prefill, decode}, now);
}

std::optional<ModelInfo> WorkerRegistry::model() const {
  absl::MutexLock lock(&mutex_);
  return model_;
}

WorkerRegistry::Stats WorkerRegistry::stats(absl::Time now) const {
  absl::MutexLock lock(&mutex_);
  Stats stats;
  stats.bookings = static_cast<int64_t>(bookings_.size());
  absl::flat_hash_map<WorkerId, const State*> by_id;
  std::vector<int32_t> prefill_groups;
  for (const State& state : workers_) {
    const v1::Registration& registration = state.worker->registration;
    by_id[state.worker->id] = &state;
    stats.workers.push_back({registration.name(), registration.role(), state.booked_sequences,
                             state.load.draining(), state.load.blocks_total() > 0});
    if (!IsUsable(state.load)) continue;
    if (registration.role() == v1::WORKER_ROLE_MONOLITHIC) stats.can_serve = true;
    if (registration.role() == v1::WORKER_ROLE_PREFILL) prefill_groups.push_back(state.group);
  }
  for (const State& state : workers_) {
    if (state.worker->registration.role() != v1::WORKER_ROLE_DECODE || !IsUsable(state.load)) {
      continue;
    }
    stats.can_serve |= std::find(prefill_groups.begin(), prefill_groups.end(), state.group) !=
                       prefill_groups.end();
  }
  for (const WorkerPair& pair : pairs_.Known()) {
    const auto prefill = by_id.find(pair.first), decode = by_id.find(pair.second);
    if (prefill == by_id.end() || decode == by_id.end()) continue;
    stats.pairs.emplace_back(StrCat(prefill->second->worker->registration.name(), "->",
                                    decode->second->worker->registration.name()),
                             !pairs_.IsBad(pair, now));
  }
  return stats;
}

}  // namespace hyserve::router
