#include "engine/model/host_parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace hyserve::model {
namespace {

int UsableCores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0) return 1;
  return std::max(1, CPU_COUNT(&cores));
}

}  // namespace

absl::Status ParallelPieces(int64_t count, absl::FunctionRef<absl::Status(int64_t)> body) {
  constexpr int64_t kMaxThreads = 32;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  int64_t first_failed = std::numeric_limits<int64_t>::max();
  absl::Status error;
  const auto work = [&] {
    while (!failed.load(std::memory_order_relaxed)) {
      const int64_t piece = next.fetch_add(1);
      if (piece >= count) return;
      absl::Status status = body(piece);
      if (status.ok()) continue;
      failed = true;
      const std::lock_guard<std::mutex> lock(mutex);
      if (piece < first_failed) {
        first_failed = piece;
        error = std::move(status);
      }
    }
  };
  std::vector<std::thread> helpers;
  const int64_t num_threads = std::min<int64_t>({count, UsableCores(), kMaxThreads});
  for (int64_t i = 1; i < num_threads; ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  return error;
}

}  // namespace hyserve::model
