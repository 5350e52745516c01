// Commands from any thread to the engine loop. Bounded: at most `max_waiting` sequences wait, and
// of each live sequence at most one command of each kind is queued; commands for ids that are not
// live are dropped. Producers never wait for the consumer.
#ifndef HYSERVE_ENGINE_RUNTIME_COMMAND_QUEUE_H_
#define HYSERVE_ENGINE_RUNTIME_COMMAND_QUEUE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/runtime/engine.h"

namespace hyserve::runtime {

struct Command {
  enum class Kind : uint8_t { kAdd, kResume, kCancel, kRelease } kind = Kind::kAdd;
  SequenceId id = 0;
  int32_t first_token = 0;          // kResume
  SequenceRequest request = {};     // kAdd
  std::shared_ptr<EventSink> sink = nullptr;  // kAdd
};

class CommandQueue {
 public:
  explicit CommandQueue(int32_t max_waiting) : max_waiting_(max_waiting) {}

  // ---- Producers, any thread.
  // ALREADY_EXISTS, RESOURCE_EXHAUSTED (queue full), UNAVAILABLE (stopped).
  absl::Status Add(SequenceRequest request, std::shared_ptr<EventSink> sink);
  void Resume(SequenceId id, int32_t first_token);
  void Cancel(SequenceId id);
  void Release(SequenceId id);
  void Stop();

  struct Pending {
    int32_t sequences = 0;
    int64_t prompt_tokens = 0;
  };
  // Added, not yet taken.
  Pending pending() const;

  // ---- Consumer, one thread.
  struct Batch {
    std::vector<Command> commands;
    bool stop = false;
  };
  // Waits until there are commands, a stop, or `until` has come.
  Batch Take(absl::Time until);
  // The sequence waits no longer (idempotent).
  void LeftQueue(SequenceId id);
  // The sequence is gone: its id may be used again.
  void Forget(SequenceId id);

 private:
  struct Live {
    bool waiting = true;
    bool resumed = false, cancelled = false, released = false;
  };

  void Push(Command command) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int32_t max_waiting_;
  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  absl::flat_hash_map<SequenceId, Live> live_ ABSL_GUARDED_BY(mutex_);
  std::vector<Command> commands_ ABSL_GUARDED_BY(mutex_);
  Pending pending_ ABSL_GUARDED_BY(mutex_);
  int32_t waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace hyserve::runtime

#endif  // HYSERVE_ENGINE_RUNTIME_COMMAND_QUEUE_H_
