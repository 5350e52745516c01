// What every worker has: the loaded engine, its metrics, its timers, and the fence between
// attempts.
#ifndef HYSERVE_SERVICES_WORKER_WORKER_CORE_H_
#define HYSERVE_SERVICES_WORKER_WORKER_CORE_H_

#include <atomic>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/runtime/engine.h"
#include "hyserve/v1/worker.pb.h"
#include "kv_transfer/stats.h"
#include "kv_transfer/transport.h"
#include "services/common/config.h"
#include "services/common/stream_writer.h"
#include "services/common/timer_queue.h"
#include "services/worker/attempt_table.h"
#include "services/worker/live_count.h"
#include "services/worker/worker_metrics.h"

namespace hyserve::worker {

class WorkerCore {
 public:
  // Loads the model and starts the engine; may take minutes. Errors as Engine::Create: all of them
  // are the configuration's or the checkpoint's.
  static absl::StatusOr<std::unique_ptr<WorkerCore>> Create(const common::Config& config,
                                                            const common::WorkerSettings& settings);
  // With an engine that `make_engine` makes, given what it must report to.
  using MakeEngine =
      absl::FunctionRef<absl::StatusOr<std::unique_ptr<runtime::Engine>>(runtime::StepObserver)>;
  static absl::StatusOr<std::unique_ptr<WorkerCore>> Create(const common::Config& config,
                                                            const common::WorkerSettings& settings,
                                                            MakeEngine make_engine);

  const common::Config& config() const { return config_; }
  const common::WorkerSettings& settings() const { return settings_; }
  runtime::Engine& engine() { return *engine_; }
  const runtime::Engine& engine() const { return *engine_; }
  WorkerMetrics& metrics() { return *metrics_; }
  common::TimerQueue& timers() { return timers_; }
  AttemptTable& attempts() { return attempts_; }
  LiveCount& sequences() { return sequences_; }  // of calls, until nothing of them is held
  LiveCount& streams() { return streams_; }      // calls that gRPC has not ended
  runtime::SequenceId NextSequenceId() { return next_sequence_id_.fetch_add(1); }

  // UNAVAILABLE "draining: ..." once SetDraining() was called, "device_failed: ..." once the device
  // is lost.
  absl::Status CheckAcceptsWork() const;
  void SetDraining() { draining_ = true; }
  bool draining() const { return draining_; }

  // Bounds of what waits for a router that does not read: the engine does not pause a sequence, so
  // the stream is ended instead.
  common::StreamWriterOptions StreamOptions();

  // Everything but the address of the gRPC server. `transport` is null for a worker without one.
  v1::Registration Describe(const kv_transfer::Transport* transport) const;
  // `stats` of the exporter or importer, or null.
  v1::LoadReport Load(const kv_transfer::TransferStats* stats) const;
  v1::GetInvariantsResponse Invariants(const kv_transfer::TransferStats* stats) const;

 private:
  WorkerCore(const common::Config& config, const common::WorkerSettings& settings);

  const common::Config config_;
  const common::WorkerSettings settings_;
  std::unique_ptr<WorkerMetrics> metrics_;
  common::TimerQueue timers_;
  AttemptTable attempts_;
  LiveCount sequences_;
  LiveCount streams_;
  std::atomic<bool> draining_{false};
  std::atomic<runtime::SequenceId> next_sequence_id_{1};
  std::unique_ptr<runtime::Engine> engine_;
};

}  // namespace hyserve::worker

#endif  // HYSERVE_SERVICES_WORKER_WORKER_CORE_H_
