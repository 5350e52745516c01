// The engine as built from its parts; see engine.h. Internal to the runtime and its tests.
//
// The loop: take commands, plan, copy slabs, tell events, compute, repeat. It sleeps on the command
// queue while there is nothing to compute, at most until the next deadline.
#ifndef HYSERVE_ENGINE_RUNTIME_ENGINE_LOOP_H_
#define HYSERVE_ENGINE_RUNTIME_ENGINE_LOOP_H_

#include <memory>
#include <string>
#include <thread>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/attention/kv_pool.h"
#include "engine/model/model.h"
#include "engine/runtime/command_queue.h"
#include "engine/runtime/engine.h"
#include "engine/runtime/kv_budget.h"
#include "engine/runtime/step_runner.h"
#include "engine/scheduler/scheduler.h"
#include "engine/tensor/device.h"

namespace hyserve::runtime {

// An engine around a given model, for Engine::Create and for tests with a model of their own.
// options.device, model_directory and random_* are not looked at. Errors as PlanKvMemory
// and KvPool::Create, and INVALID_ARGUMENT for options.
absl::StatusOr<std::unique_ptr<Engine>> MakeEngine(
    const EngineOptions& options, std::unique_ptr<tensor::Device> device,
    std::unique_ptr<model::Model> model, StepObserver observer,
    kv_cache::ReuseOrder reuse_order = kv_cache::ReuseOrder::kFifo);

class EngineLoop final : public Engine {
 public:
  EngineLoop(const EngineOptions& options, const KvBudget& budget,
             std::unique_ptr<tensor::Device> device, std::unique_ptr<model::Model> model,
             std::unique_ptr<attention::KvPool> pool, StepObserver observer,
             kv_cache::ReuseOrder reuse_order);
  ~EngineLoop() override;

  const model::ModelConfig& config() const override { return model_->config(); }
  const kv_cache::KvLayout& layout() const override { return model_->layout(); }
  int64_t max_context_tokens() const override { return max_context_tokens_; }
  const attention::KvPool& kv_pool() const override { return *pool_; }
  EngineLoad load() const override;
  std::string Description() const override;
  absl::Status health() const override;
  absl::Status Submit(SequenceRequest request, std::shared_ptr<EventSink> sink) override;
  absl::Status Reserve(SequenceRequest request, std::shared_ptr<EventSink> sink) override;
  void Resume(SequenceId id, int32_t first_token) override;
  void Cancel(SequenceId id) override;
  void Release(SequenceId id) override;

 private:
  absl::Status Add(SequenceRequest request, std::shared_ptr<EventSink> sink);
  absl::Status ValidateRequest(const SequenceRequest& request) const;

  // ---- Engine thread.
  void Run();
  void Apply(Command command);
  void AddSequence(Command command);
  void ResumeSequence(SequenceId id, int32_t first_token);
  // Carries out slab copies, then passes events on to sinks.
  void PassOn();
  void Tell(const scheduler::Event& event);
  void RunStep(const scheduler::StepPlan& plan);
  // Says whether the device outlived an error; if not, health() tells.
  void CheckDevice(const absl::Status& error);
  // After the device is lost.
  void FailAll();
  void PublishLoad();

  const int64_t max_context_tokens_;
  const StepObserver observer_;
  // Destroyed in reverse: the device last.
  const std::unique_ptr<tensor::Device> device_;
  const std::unique_ptr<model::Model> model_;
  const std::unique_ptr<attention::KvPool> pool_;

  CommandQueue queue_;

  // Engine thread only (CanEverFit of the scheduler: any thread).
  scheduler::Scheduler scheduler_;
  LiveSequences live_;
  StepRunner runner_;
  absl::flat_hash_map<SequenceId, absl::Status> failed_restores_;
  EngineLoad working_load_;  // counters and averages that outlive a step

  mutable absl::Mutex load_mutex_;
  EngineLoad load_ ABSL_GUARDED_BY(load_mutex_);
  absl::Status health_ ABSL_GUARDED_BY(load_mutex_);  // written by the engine thread

  std::thread thread_;
};

}  // namespace hyserve::runtime

#endif  // HYSERVE_ENGINE_RUNTIME_ENGINE_LOOP_H_
