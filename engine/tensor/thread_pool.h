// Threads that share the work of one op at a time.
//
// ParallelFor may be called by one thread at a time (the engine loop's); the caller works too.
// Workers spin for a moment after a job, then sleep, so that back-to-back ops start at once and an
// idle engine costs no CPU. A worker that is slow to wake is not waited for: the caller and the
// others do its share. All threads, the caller during a job included, flush denormals to zero.
#ifndef HYSERVE_ENGINE_TENSOR_THREAD_POOL_H_
#define HYSERVE_ENGINE_TENSOR_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace hyserve::tensor {

// Sets flush-to-zero and denormals-are-zero of the calling thread, and restores them.
class ScopedFlushDenormals {
 public:
  ScopedFlushDenormals();
  ~ScopedFlushDenormals();
  ScopedFlushDenormals(const ScopedFlushDenormals&) = delete;
  ScopedFlushDenormals& operator=(const ScopedFlushDenormals&) = delete;

 private:
  const unsigned saved_;
};

class ThreadPool {
 public:
  using Body = absl::FunctionRef<void(int64_t item, int thread)>;

  // num_threads >= 1, the caller of ParallelFor included.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(item, thread) for every item in [0, num_items), each exactly once; items are taken
  // in ascending order, one at a time; thread in [0, num_threads()). Returns when all are done.
  // REQUIRES: num_items < 2^32.
  void ParallelFor(int64_t num_items, Body body);

 private:
  void Work(int thread);
  // Takes items of the job that the ticket names until none are left.
  void RunItems(int thread);

  std::vector<std::thread> workers_;
  // The job. Written by the caller before the ticket; may be read by a thread that took an item,
  // because the caller does not return before that item is done.
  const Body* body_ = nullptr;
  int64_t num_items_ = 0;
  // High half: number of the job. Low half: items not yet taken.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<uint32_t> items_done_{0};
  alignas(64) std::atomic<uint32_t> wake_count_{0};  // what sleeping workers wait on
  std::atomic<bool> stopping_{false};
};

}  // namespace hyserve::tensor

#endif  // HYSERVE_ENGINE_TENSOR_THREAD_POOL_H_
