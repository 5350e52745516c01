// Full attention with oracle output, prefill: checks against the definition, then times.
//   cuda_full_prefill_bench check | small | time [TOKENS] | far | one [SHAPE]
//                           [--json FILE --commit ID]
// small: few checks, for compute-sanitizer. far: chunks far out in a long context. one: a single
// call, for a profiler. full_prefill_peers.py times it in turns with the peer; for that it is also
// built as a library.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "benchmarks/kernels/cuda/full_prefill_case.cuh"
#include "benchmarks/kernels/cuda/full_prefill_reference.cuh"
#include "engine/kernels/cuda/full_attention_prefill_kernel.h"

namespace hyserve::bench {
namespace {

using kernels::cuda::kPrefillScoreBytes;
using kernels::cuda::PrefillLaunch;

int g_num_sms = 0;
int g_failures = 0;

struct BenchShape {
  const char* name;
  HeadShape shape;
};
const BenchShape kShapes[] = {{"32/8 128/128", {32, 8, 128, 128}},
                              {"64/4 192/128", {64, 4, 192, 128}},
                              {"64/1 256/256", {64, 1, 256, 256}},
                              {"64/8 64/64", {64, 8, 64, 64}}};

cudaError_t Launch(const PrefillLaunch& launch, HeadShape shape) {
  return LaunchFullAttentionPrefill(launch, shape.dim, shape.v_dim, g_num_sms, nullptr);
}

void Report(const char* what, const char* detail, const Comparison& c) {
  if (!c.ok) ++g_failures;
  std::printf("%-6s %-16s %-34s out %.1e score %.1e rank %lld other %lld\n",
              c.ok ? "ok" : "FAILED", what, detail, c.out_error, c.score_error,
              static_cast<long long>(c.wrong_rank), static_cast<long long>(c.other_selection));
}

// Everything on one case: results, cutting and the score-free kernel give the same bits.
void CheckCase(HeadShape shape, std::vector<SequenceShape> sequences, int selected, int padding,
               int64_t score_bytes, const char* detail) {
  char what[64];
  std::snprintf(what, sizeof(what), "%d/%d %d/%d", shape.heads, shape.kv_heads, shape.dim,
                shape.v_dim);
  PrefillCase test(shape, sequences, padding, 7);
  PrefillReference reference(test, 150);
  const auto run = [&] {
    BENCH_CHECK(cudaMemset(test.out(), 0xff, test.rows() * test.out_stride() * 2));
    test.Run([&](const PrefillLaunch& l) { return Launch(l, shape); }, g_num_sms);
    BENCH_CHECK(cudaDeviceSynchronize());
    return Download(test.out(), test.rows() * test.out_stride());
  };
  const auto same = [&](const auto& a, const auto& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
  };
  test.Plan(true, selected, true, g_num_sms, score_bytes);
  const auto out = run();
  Report(what, detail, reference.Compare());
  const size_t count = static_cast<size_t>(test.rows()) * shape.kv_heads * selected;
  const auto selection = Download(test.selection(), count);
  test.Plan(true, selected, false, g_num_sms, kPrefillScoreBytes, 3);
  const bool cut = same(out, run()) && same(selection, Download(test.selection(), count));
  test.Plan(false, selected, false, g_num_sms, kPrefillScoreBytes);
  const bool plain = same(out, run());
  if (!cut || !plain) {
    ++g_failures;
    std::printf("FAILED %s %s: bits differ:%s%s\n", what, detail, cut ? "" : " cut in three",
                plain ? "" : " without scores");
  }
}

void RunChecks(bool small) {
  const HeadShape shapes[] = {
      {4, 2, 64, 64}, {8, 2, 128, 128}, {16, 1, 192, 128}, {6, 2, 256, 256}};
  for (const HeadShape& shape : shapes) {
    CheckCase(shape, {{200, 0}}, 16, 0, kPrefillScoreBytes, "200 rows");
    if (small) continue;
    CheckCase(shape, {{1000, 0}}, 4, 8, kPrefillScoreBytes, "1000 rows, padded strides");
    CheckCase(shape, {{1100, 0}, {64, 1}, {300, 777}, {128, 4096}}, 16, 8, kPrefillScoreBytes,
              "four sequences");
    CheckCase(shape, {{3000, 5000}}, 16, 0, int64_t{6} << 20, "late chunk, many launches");
    CheckCase(shape, {{500, 9000}}, 64, 0, kPrefillScoreBytes, "64 selected");
  }
  if (small) return;
  CheckCase({64, 4, 192, 128}, {{2048, 6000}}, 16, 0, kPrefillScoreBytes, "2048 rows");
  CheckCase({64, 1, 256, 256}, {{1024, 7000}}, 16, 0, kPrefillScoreBytes, "1024 rows");
  CheckCase({40, 8, 128, 128}, {{1024, 7001}}, 16, 0, kPrefillScoreBytes, "group of 5");
  CheckCase({64, 4, 192, 128}, {{128, 200000}}, 16, 0, kPrefillScoreBytes, "far context");
}

// A case's three times: without scores, with raw scores stored, and with the selection.
void TimeCase(const BenchShape& shape, SequenceShape sequence, int repeats, JsonRows& json) {
  PrefillCase test(shape.shape, {sequence}, 0, 11);
  std::printf("%-12s %7d rows from %7d:", shape.name, sequence.rows, sequence.first_position);
  double ms[3];
  for (int mode = 0; mode < 3; ++mode) {
    test.Plan(mode > 0, 16, false, g_num_sms, kPrefillScoreBytes);
    ms[mode] = MedianMicroseconds(nullptr, repeats, [&] {
                 test.Run([&](const PrefillLaunch& l) { return Launch(l, shape.shape); }, g_num_sms,
                          mode == 2);
               }) / 1e3;
    const char* names[] = {"plain", "scores", "oracle"};
    std::printf("  %s %9.3f ms %4.0f TF/s", names[mode], ms[mode], test.Flops() / ms[mode] * 1e-9);
  }
  std::printf("  (%d launches)\n", test.num_steps());
  std::fflush(stdout);
  char fields[256];
  std::snprintf(fields, sizeof(fields),
                "\"shape\": \"%s\", \"rows\": %d, \"first_position\": %d, \"plain_ms\": %.4f, "
                "\"scores_ms\": %.4f, \"oracle_ms\": %.4f, \"oracle_tflops\": %.0f",
                shape.name, sequence.rows, sequence.first_position, ms[0], ms[1], ms[2],
                test.Flops() / ms[2] * 1e-9);
  json.Add("full_prefill", fields);
}

void RunTimes(int tokens, JsonRows& json) {
  for (const BenchShape& shape : kShapes) TimeCase(shape, {tokens, 0}, 10, json);
}

// Chunks far out in a long context, as a prompt of up to a million tokens is served.
void RunFar(JsonRows& json) {
  constexpr int k128k = 131072, k1M = 1048576;
  TimeCase(kShapes[0], {2048, k128k - 2048}, 5, json);
  TimeCase(kShapes[0], {8192, k128k - 8192}, 5, json);
  TimeCase(kShapes[1], {2048, k128k - 2048}, 5, json);
  TimeCase(kShapes[1], {256, k1M - 256}, 5, json);
  TimeCase(kShapes[2], {2048, k128k - 2048}, 5, json);
}

// One call at 8k tokens, for a profiler.
void RunOne(const BenchShape& shape) {
  PrefillCase test(shape.shape, {{8192, 0}}, 0, 11);
  test.Plan(true, 16, false, g_num_sms, kPrefillScoreBytes);
  test.Run([&](const PrefillLaunch& l) { return Launch(l, shape.shape); }, g_num_sms);
  BENCH_CHECK(cudaDeviceSynchronize());
}

}  // namespace
}  // namespace hyserve::bench

// For full_prefill_peers.py, which times these beside its own; shape: index into kShapes.
extern "C" {

int prefill_num_shapes() { return static_cast<int>(std::size(hyserve::bench::kShapes)); }
// heads, KV heads, head size, value size
void prefill_shape(int shape, int* sizes) {
  const hyserve::bench::HeadShape& s = hyserve::bench::kShapes[shape].shape;
  sizes[0] = s.heads;
  sizes[1] = s.kv_heads;
  sizes[2] = s.dim;
  sizes[3] = s.v_dim;
}
// oracle: whether prefill_run stores raw scores.
void* prefill_create(int shape, int tokens, int oracle) {
  using namespace hyserve::bench;
  cudaDeviceProp properties;
  BENCH_CHECK(cudaGetDeviceProperties(&properties, 0));
  g_num_sms = properties.multiProcessorCount;
  auto* test = new PrefillCase(kShapes[shape].shape, {{tokens, 0}}, 0, 11);
  test->Plan(oracle != 0, 16, false, g_num_sms, kPrefillScoreBytes);
  return test;
}
// Enqueues on the default stream. select 0: without the selection of blocks.
void prefill_run(void* test, int select) {
  using namespace hyserve::bench;
  const auto* prefill = static_cast<const PrefillCase*>(test);
  prefill->Run([&](const PrefillLaunch& l) { return Launch(l, prefill->shape()); }, g_num_sms,
               select != 0);
}
void prefill_destroy(void* test) { delete static_cast<hyserve::bench::PrefillCase*>(test); }

}  // extern "C"

int main(int argc, char** argv) {
  using namespace hyserve::bench;
  cudaDeviceProp properties;
  BENCH_CHECK(cudaGetDeviceProperties(&properties, 0));
  g_num_sms = properties.multiProcessorCount;
  const std::string mode = argc > 1 ? argv[1] : "";
  const int number = argc > 2 ? std::atoi(argv[2]) : 0;
  JsonRows json(argc, argv);
  if (mode == "check" || mode == "small") {
    RunChecks(mode == "small");
    std::printf("%s: %d failures\n", properties.name, g_failures);
  } else if (mode == "time") {
    RunTimes(number > 0 ? number : 32768, json);
  } else if (mode == "far") {
    RunFar(json);
  } else if (mode == "one") {
    RunOne(kShapes[number % std::size(kShapes)]);
  } else {
    std::printf("usage: cuda_full_prefill_bench check | small | time [TOKENS] | far | one [SHAPE] "
                "[--json FILE --commit ID]\n");
    return 64;
  }
  return g_failures == 0 ? 0 : 1;
}
