#include "engine/runtime/engine_loop.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/scheduler/chunk_policy.h"

namespace hyserve::runtime {
namespace {

using scheduler::Event;
using scheduler::SlabCopy;
using scheduler::StepPlan;

// Weight of the newest step in the moving averages.
constexpr double kAverageWeight = 0.1;

scheduler::Mode ToSchedulerMode(SequenceMode mode) {
  switch (mode) {
    case SequenceMode::kPrefill: return scheduler::Mode::kPrefill;
    case SequenceMode::kDecode: return scheduler::Mode::kDecode;
    case SequenceMode::kLocal: break;
  }
  return scheduler::Mode::kLocal;
}

int64_t MaxContext(const EngineOptions& options, const model::ModelConfig& config) {
  const int64_t of_model = config.max_position_embeddings;
  return options.max_context_tokens > 0 ? std::min(options.max_context_tokens, of_model) : of_model;
}

scheduler::SchedulerOptions ToSchedulerOptions(const EngineOptions& options,
                                               const KvBudget& budget, const model::Model& model,
                                               kv_cache::ReuseOrder reuse_order) {
  scheduler::SchedulerOptions result;
  result.num_blocks = budget.num_blocks;
  result.num_slabs = budget.num_slabs;
  result.has_window_layers = budget.num_slabs > 0;
  result.max_context_tokens = MaxContext(options, model.config());
  result.max_sequences = options.max_sequences;
  result.max_queue = options.max_queue;
  result.chunk_tokens = options.chunk_tokens;
  result.eos_token_ids = model.config().eos_token_ids;
  result.prefix_cache = options.prefix_cache;
  result.snapshot_interval_tokens = options.snapshot_interval_tokens;
  result.snapshot_slabs = budget.snapshot_slabs;
  result.layout_fingerprint = model.layout().Fingerprint();
  result.hash_key = kv_cache::RandomHashKey();
  result.reuse_order = reuse_order;
  return result;
}

void Average(double sample, double* average) {
  *average = *average == 0 ? sample : *average + kAverageWeight * (sample - *average);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> MakeEngine(const EngineOptions& options,
                                                   std::unique_ptr<tensor::Device> device,
                                                   std::unique_ptr<model::Model> model,
                                                   StepObserver observer,
                                                   kv_cache::ReuseOrder reuse_order) {
  if (absl::Status status = ValidateOptions(options); !status.ok()) return status;
  const model::StepLimits limits = {
      .num_rows = scheduler::MostRowsPerStep(options.chunk_tokens, options.max_sequences),
      .num_sequences = options.max_sequences,
      .context_tokens = MaxContext(options, model->config())};
  const absl::StatusOr<KvBudget> budget = PlanKvMemory(options, limits, *device, *model);
  if (!budget.ok()) return budget.status();
  auto pool = attention::KvPool::Create(*device, model->layout(), budget->num_blocks,
                                        budget->num_slabs);
  if (!pool.ok()) return pool.status();
  return std::make_unique<EngineLoop>(options, *budget, std::move(device), std::move(model),
                                      *std::move(pool), std::move(observer), reuse_order);
}

EngineLoop::EngineLoop(const EngineOptions& options, const KvBudget& budget,
                       std::unique_ptr<tensor::Device> device, std::unique_ptr<model::Model> model,
                       std::unique_ptr<attention::KvPool> pool, StepObserver observer,
                       kv_cache::ReuseOrder reuse_order)
    : max_context_tokens_(MaxContext(options, model->config())),
      observer_(std::move(observer)),
      device_(std::move(device)),
      model_(std::move(model)),
      pool_(std::move(pool)),
      queue_(options.max_queue),
      scheduler_(ToSchedulerOptions(options, budget, *model_, reuse_order)),
      runner_(model_.get(), pool_.get(), &scheduler_, &live_) {
  PublishLoad();
  thread_ = std::thread([this] { Run(); });
}

EngineLoop::~EngineLoop() {
  queue_.Stop();
  thread_.join();
}

EngineLoad EngineLoop::load() const {
  const CommandQueue::Pending pending = queue_.pending();
  absl::MutexLock lock(&load_mutex_);
  EngineLoad load = load_;
  load.waiting_sequences += pending.sequences;
  load.waiting_tokens += pending.prompt_tokens;
  return load;
}

std::string EngineLoop::Description() const {
  const model::ModelConfig& config = model_->config();
  const size_t pool_bytes = pool_->block_memory().size_bytes() + pool_->slab_memory().size_bytes();
  return absl::StrCat(config.model_type, " of ", config.num_layers(), " layers, ",
                      model_->num_parameters(), " parameters (", model_->weight_bytes() >> 20,
                      " MiB) on ", device_->Description(), "; KV pool of ", pool_->num_blocks(),
                      " blocks and ", pool_->num_slabs(), " slabs (", pool_bytes >> 20,
                      " MiB)");
}

absl::Status EngineLoop::health() const {
  absl::MutexLock lock(&load_mutex_);
  return health_;
}

absl::Status EngineLoop::ValidateRequest(const SequenceRequest& request) const {
  const int32_t vocab_size = model_->config().vocab_size;
  if (request.prompt.empty()) return absl::InvalidArgumentError("prompt: must not be empty");
  if (static_cast<int64_t>(request.prompt.size()) > max_context_tokens_) {
    return absl::InvalidArgumentError(absl::StrCat("prompt: ", request.prompt.size(),
                                                   " tokens are more than the context of ",
                                                   max_context_tokens_));
  }
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("prompt: token ", i, " is ",
                                                     request.prompt[i],
                                                     ", the vocabulary has ", vocab_size));
    }
  }
  if (request.num_prompt_logprobs < -1 || request.num_prompt_logprobs > sampling::kMaxLogprobs) {
    return absl::InvalidArgumentError(absl::StrCat("num_prompt_logprobs: must be in [-1, ",
                                                   sampling::kMaxLogprobs, "]; got ",
                                                   request.num_prompt_logprobs));
  }
  if (request.prior_generated_tokens < 0 ||
      request.prior_generated_tokens >= static_cast<int64_t>(request.prompt.size())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prior_generated_tokens: must be less than the prompt's ", request.prompt.size(),
        "; got ", request.prior_generated_tokens));
  }
  if (absl::Status status = sampling::Validate(request.sampling, vocab_size); !status.ok()) {
    return status;
  }
  return scheduler_.CanEverFit(ToSchedulerMode(request.mode),
                               static_cast<int64_t>(request.prompt.size()),
                               request.sampling.max_tokens);
}

absl::Status EngineLoop::Add(SequenceRequest request, std::shared_ptr<EventSink> sink) {
  if (absl::Status status = health(); !status.ok()) return status;
  if (absl::Status status = ValidateRequest(request); !status.ok()) return status;
  return queue_.Add(std::move(request), std::move(sink));
}

absl::Status EngineLoop::Submit(SequenceRequest request, std::shared_ptr<EventSink> sink) {
  if (request.mode == SequenceMode::kDecode) {
    return absl::InvalidArgumentError("a decode sequence is reserved, not submitted");
  }
  return Add(std::move(request), std::move(sink));
}

absl::Status EngineLoop::Reserve(SequenceRequest request, std::shared_ptr<EventSink> sink) {
  if (request.mode != SequenceMode::kDecode) {
    return absl::InvalidArgumentError("only a decode sequence is reserved");
  }
  if (request.num_prompt_logprobs >= 0) {
    return absl::InvalidArgumentError("num_prompt_logprobs: a decode sequence computes no prompt");
  }
  return Add(std::move(request), std::move(sink));
}

void EngineLoop::Resume(SequenceId id, int32_t first_token) { queue_.Resume(id, first_token); }
void EngineLoop::Cancel(SequenceId id) { queue_.Cancel(id); }
void EngineLoop::Release(SequenceId id) { queue_.Release(id); }

void EngineLoop::Run() {
  while (true) {
    CommandQueue::Batch batch =
        queue_.Take(scheduler_.HasWork() ? absl::InfinitePast() : scheduler_.NextDeadline());
    for (Command& command : batch.commands) Apply(std::move(command));
    if (batch.stop) break;
    FailAll();
    const StepPlan plan = scheduler_.PlanStep(absl::Now());
    PassOn();
    if (!batch.commands.empty()) PublishLoad();  // a step may be long: show what it works on
    if (!plan.rows.empty()) RunStep(plan);
    for (const auto& [id, status] : std::exchange(failed_restores_, {})) {
      scheduler_.Fail(id, status);
    }
    FailAll();
    PassOn();
    PublishLoad();
  }
  for (const SequenceId id : scheduler_.ids()) scheduler_.Cancel(id);
  PassOn();
  PublishLoad();
}

void EngineLoop::Apply(Command command) {
  switch (command.kind) {
    case Command::Kind::kAdd: AddSequence(std::move(command)); break;
    case Command::Kind::kResume: ResumeSequence(command.id, command.first_token); break;
    case Command::Kind::kCancel: scheduler_.Cancel(command.id); break;
    case Command::Kind::kRelease: scheduler_.Release(command.id); break;
  }
  PassOn();
}

void EngineLoop::AddSequence(Command command) {
  SequenceRequest& request = command.request;
  auto live = std::make_unique<LiveSequence>();
  live->sink = std::move(command.sink);
  live->mode = request.mode;
  live->num_prompt_logprobs = request.num_prompt_logprobs;
  live->prior_generated_tokens = request.prior_generated_tokens;
  const std::span<const int32_t> prompt(request.prompt);
  const size_t own_prompt = prompt.size() - static_cast<size_t>(request.prior_generated_tokens);
  live->penalties = sampling::PenaltyState(request.sampling, prompt.first(own_prompt));
  for (const int32_t token : prompt.subspan(own_prompt)) live->penalties.AddGenerated(token);

  scheduler::SequenceSpec spec;
  spec.id = request.id;
  spec.mode = ToSchedulerMode(request.mode);
  spec.prompt = std::move(request.prompt);
  spec.sampling = std::move(request.sampling);
  spec.wants_prompt_logprobs = request.num_prompt_logprobs >= 0;
  spec.use_prefix_cache = request.use_prefix_cache;
  spec.cache_scope = std::move(request.cache_scope);
  spec.deadline = request.deadline;
  const SequenceId id = spec.id;
  const absl::Status status = scheduler_.Add(std::move(spec));
  if (status.ok()) {
    live_.emplace(id, std::move(live));
    return;
  }
  // Everything was checked before the command was queued; an error here is still told, not lost.
  queue_.Forget(id);
  if (live->mode == SequenceMode::kDecode) {
    live->sink->OnReserved(status);
  } else {
    live->sink->OnFinished(status, sampling::FinishReason::kError, Usage{});
  }
}

void EngineLoop::ResumeSequence(SequenceId id, int32_t first_token) {
  const auto live = live_.find(id);
  if (live == live_.end() || live->second->mode != SequenceMode::kDecode) return;
  if (first_token < 0 || first_token >= model_->config().vocab_size) {
    scheduler_.Fail(id, absl::InvalidArgumentError(absl::StrCat(
                            "first token ", first_token, " is not in the vocabulary")));
    return;
  }
  live->second->penalties.AddGenerated(first_token);
  scheduler_.Resume(id, first_token);
}

void EngineLoop::PassOn() {
  for (const SlabCopy& copy : scheduler_.TakeSlabCopies()) {
    const absl::Status status =
        device_->CopyOnDevice(pool_->Slab(kv_cache::Index(copy.to)),
                              pool_->Slab(kv_cache::Index(copy.from)), layout().slab_bytes);
    if (status.ok()) continue;
    CheckDevice(status);
    if (copy.kind == SlabCopy::Kind::kRestore) {
      failed_restores_.emplace(copy.id, status);
    } else {
      scheduler_.SnapshotFailed(copy.to);
    }
  }
  const std::vector<Event> events = scheduler_.TakeEvents();
  // A sink may look at the load at once: it shows what the events say.
  if (!events.empty()) PublishLoad();
  for (const Event& event : events) Tell(event);
}

void EngineLoop::Tell(const Event& event) {
  const auto live = live_.find(event.id);
  if (live == live_.end()) return;
  const std::shared_ptr<EventSink> sink = live->second->sink;
  if (event.gone) {
    live_.erase(live);
    queue_.Forget(event.id);
  } else {
    queue_.LeftQueue(event.id);
  }
  switch (event.kind) {
    case Event::Kind::kAdmitted:
      sink->OnAdmitted({.blocks = event.blocks, .slab = event.slab}, event.cached_tokens);
      break;
    case Event::Kind::kReserved:
      sink->OnReserved(KvBlocks{.blocks = event.blocks, .slab = event.slab});
      break;
    case Event::Kind::kRefused:
      sink->OnReserved(event.status);
      break;
    case Event::Kind::kFinished:
      sink->OnFinished(event.status, event.reason,
                       {.prompt_tokens = event.prompt_tokens,
                        .cached_tokens = event.cached_tokens,
                        .generated_tokens = event.generated_tokens});
      break;
    case Event::Kind::kReleased:
      break;
  }
}

void EngineLoop::RunStep(const StepPlan& plan) {
  const absl::Time begin = absl::Now();
  std::vector<scheduler::RowOutcome> outcomes(plan.rows.size());
  if (health().ok()) outcomes = runner_.Run(plan, failed_restores_);
  for (const scheduler::RowOutcome& outcome : outcomes) {
    if (!outcome.status.ok()) CheckDevice(outcome.status);
  }
  // What a lost device has ended may be tried elsewhere, whatever the error said.
  if (const absl::Status lost = health(); !lost.ok()) {
    for (scheduler::RowOutcome& outcome : outcomes) outcome.status = lost;
  }
  const absl::Time end = absl::Now();
  scheduler_.CompleteStep(plan, outcomes);

  const double seconds = absl::ToDoubleSeconds(end - begin);
  ++working_load_.step_counter;
  working_load_.last_step = end;
  if (plan.prompt_tokens > 0 && seconds > 0) {
    Average(plan.prompt_tokens / seconds, &working_load_.prefill_tokens_per_second);
  }
  if (plan.decode_tokens > 0) Average(seconds * 1e3, &working_load_.decode_step_ms);
  if (!observer_) return;
  observer_({.prefill_tokens = plan.prompt_tokens,
             .decode_tokens = plan.decode_tokens,
             .num_sequences = static_cast<int32_t>(plan.rows.size()),
             .seconds = seconds,
             .prefix_query_tokens = plan.prefix_query_tokens,
             .prefix_hit_tokens = plan.prefix_hit_tokens});
}

void EngineLoop::CheckDevice(const absl::Status& error) {
  const absl::Status status = device_->Synchronize();
  if (status.ok() || !health().ok()) return;
  absl::MutexLock lock(&load_mutex_);
  health_ = absl::UnavailableError(absl::StrCat(kDeviceFailed, error.message(), " (",
                                                status.message(), ")"));
}

void EngineLoop::FailAll() {
  const absl::Status lost = health();
  if (lost.ok()) return;
  for (const SequenceId id : scheduler_.ids()) scheduler_.Fail(id, lost);
}

void EngineLoop::PublishLoad() {
  EngineLoad load = working_load_;
  const scheduler::SchedulerLoad counts = scheduler_.load();
  load.waiting_sequences = counts.waiting_sequences;
  load.waiting_tokens = counts.waiting_tokens;
  load.running_sequences = counts.running_sequences;
  load.context_tokens = counts.context_tokens;
  load.blocks_total = scheduler_.blocks().total();
  load.blocks_free = scheduler_.blocks().free();
  load.blocks_cached = scheduler_.blocks().cached();
  load.blocks_used = scheduler_.blocks().used();
  load.slabs_total = scheduler_.slabs().total();
  load.slabs_free = scheduler_.slabs().free();
  load.slabs_cached = scheduler_.slabs().cached();
  load.slabs_used = scheduler_.slabs().used();
  absl::MutexLock lock(&load_mutex_);
  load_ = load;
}

}  // namespace hyserve::runtime
