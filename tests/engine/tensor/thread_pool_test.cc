#include "engine/tensor/thread_pool.h"

#include <gtest/gtest.h>
#include <xmmintrin.h>

#include <atomic>
#include <vector>

namespace hyserve::tensor {
namespace {

TEST(ThreadPool, RunsEveryItemExactlyOnce) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(count);
      pool.ParallelFor(count, [&](int64_t item, int thread) {
        runs[item].fetch_add(1);
        EXPECT_GE(thread, 0);
        EXPECT_LT(thread, threads);
      });
      for (const auto& run : runs) EXPECT_EQ(run.load(), 1);
    }
  }
}

TEST(ThreadPool, WhatItemsWroteIsThereWhenItReturns) {
  ThreadPool pool(4);
  std::vector<int64_t> values(97);
  for (int64_t round = 0; round < 5000; ++round) {
    pool.ParallelFor(97, [&](int64_t item, int) { values[item] = round * 100 + item; });
    for (int64_t item = 0; item < 97; ++item) ASSERT_EQ(values[item], round * 100 + item);
  }
}

TEST(ThreadPool, AJobMayBeAsShortAsOneItemPerThread) {
  ThreadPool pool(2);
  int64_t sum = 0;
  for (int round = 0; round < 20000; ++round) {
    std::atomic<int64_t> job{0};
    pool.ParallelFor(2, [&](int64_t item, int) { job.fetch_add(item + 1); });
    sum += job.load();
  }
  EXPECT_EQ(sum, 3 * 20000);
}

TEST(ThreadPool, FlushesDenormalsInJobsAndRestoresTheCaller) {
  const unsigned before = _mm_getcsr();
  ThreadPool pool(3);
  pool.ParallelFor(50, [&](int64_t, int) { EXPECT_EQ(_mm_getcsr() & 0x8040u, 0x8040u); });
  EXPECT_EQ(_mm_getcsr(), before);
}

}  // namespace
}  // namespace hyserve::tensor
