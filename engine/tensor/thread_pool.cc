#include "engine/tensor/thread_pool.h"

#include <xmmintrin.h>

namespace hyserve::tensor {
namespace {

constexpr unsigned kFlushToZeroAndDenormalsAreZero = 0x8040;
constexpr int kWorkerSpins = 2000;  // some tens of microseconds
constexpr int kCallerSpins = 20000;
constexpr uint64_t kItemsMask = 0xffffffffu;

}  // namespace

ScopedFlushDenormals::ScopedFlushDenormals() : saved_(_mm_getcsr()) {
  _mm_setcsr(saved_ | kFlushToZeroAndDenormalsAreZero);
}

ScopedFlushDenormals::~ScopedFlushDenormals() { _mm_setcsr(saved_); }

ThreadPool::ThreadPool(int num_threads) {
  for (int thread = 1; thread < num_threads; ++thread) {
    workers_.emplace_back([this, thread] { Work(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_release);
  wake_count_.fetch_add(1, std::memory_order_release);
  wake_count_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::RunItems(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while ((ticket & kItemsMask) != 0) {
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
      continue;
    }
    const int64_t num_items = num_items_;
    (*body_)(num_items - static_cast<int64_t>(ticket & kItemsMask), thread);
    // After the last increment the caller may return, so nothing of the job is touched past it.
    if (items_done_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_items && thread != 0) {
      items_done_.notify_one();
    }
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadPool::ParallelFor(int64_t num_items, Body body) {
  const ScopedFlushDenormals flush_denormals;
  if (workers_.empty() || num_items <= 1) {
    for (int64_t item = 0; item < num_items; ++item) body(item, 0);
    return;
  }
  body_ = &body;
  num_items_ = num_items;
  items_done_.store(0, std::memory_order_relaxed);
  const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store(job << 32 | static_cast<uint64_t>(num_items), std::memory_order_release);
  wake_count_.fetch_add(1, std::memory_order_release);
  wake_count_.notify_all();
  RunItems(0);
  const uint32_t all = static_cast<uint32_t>(num_items);
  uint32_t done = items_done_.load(std::memory_order_acquire);
  for (int spin = 0; done != all; done = items_done_.load(std::memory_order_acquire)) {
    if (++spin < kCallerSpins) {
      _mm_pause();
    } else {
      items_done_.wait(done, std::memory_order_acquire);
    }
  }
}

void ThreadPool::Work(int thread) {
  const ScopedFlushDenormals flush_denormals;
  uint32_t seen = 0;
  while (!stopping_.load(std::memory_order_acquire)) {
    for (int spin = 0; spin < kWorkerSpins; ++spin) {
      if (wake_count_.load(std::memory_order_acquire) != seen) break;
      _mm_pause();
    }
    wake_count_.wait(seen, std::memory_order_acquire);
    seen = wake_count_.load(std::memory_order_acquire);
    RunItems(thread);
  }
}

}  // namespace hyserve::tensor
