// Full attention with oracle output, prefill: checks against the definition, then times.
//   full_prefill_bench check | time [tokens] | one VARIANT (one launch at 8k tokens, to profile)
// full_prefill_peers.py times it in turns with the peer; for that it is also built as a library.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <vector>

#include "benchmarks/kernels/cuda/prefill_case.h"
#include "benchmarks/kernels/cuda/prefill_reference.h"
#include "engine/kernels/cuda/full_attention_prefill_tile.h"

namespace hyserve::benchmarks {
namespace {

using kernels::cuda::kPrefillScoreBytes;
using kernels::cuda::PrefillLaunch;
using kernels::cuda::prefill::LaunchTraits;
using kernels::cuda::prefill::Schedule;
using kernels::cuda::prefill::Traits;

int g_num_sms = 0;
int g_failures = 0;

constexpr HeadShape kShape128{32, 8, 128, 128};
constexpr HeadShape kShape192{64, 4, 192, 128};
constexpr HeadShape kShape256{64, 1, 256, 256};

struct Variant {
  const char* name;
  HeadShape shape;
  cudaError_t (*launch)(const PrefillLaunch&, int, cudaStream_t);
};

template <typename T>
cudaError_t LaunchVariant(const PrefillLaunch& launch, int num_sms, cudaStream_t stream) {
  return launch.raw_scores != nullptr ? LaunchTraits<T, true>(launch, num_sms, stream)
                                      : LaunchTraits<T, false>(launch, num_sms, stream);
}

cudaError_t LaunchProduct(const PrefillLaunch& launch, int dim, int v_dim) {
  return LaunchFullAttentionPrefill(launch, dim, v_dim, g_num_sms, nullptr);
}

const Variant kVariants[] = {
    {"128 pp", kShape128, LaunchVariant<Traits<128, 128, 128, 2, Schedule::kPingPong>>},
    {"128 free", kShape128, LaunchVariant<Traits<128, 128, 128, 2, Schedule::kFree>>},
    {"128 free q2", kShape128, LaunchVariant<Traits<128, 128, 128, 2, Schedule::kFree, 2>>},
    {"192 pp", kShape192, LaunchVariant<Traits<192, 128, 128, 2, Schedule::kPingPong>>},
    {"192 free", kShape192, LaunchVariant<Traits<192, 128, 128, 2, Schedule::kFree>>},
    {"192 pp q1", kShape192, LaunchVariant<Traits<192, 128, 128, 2, Schedule::kPingPong, 1>>},
    {"256 pp q1", kShape256, LaunchVariant<Traits<256, 256, 64, 2, Schedule::kPingPong, 1>>},
    {"256 free q1", kShape256, LaunchVariant<Traits<256, 256, 64, 2, Schedule::kFree, 1>>},
};

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
    Check(cudaMemset(test.out(), 0xff, test.rows() * test.out_stride() * 2), "poison");
    test.Run([&](const PrefillLaunch& l) { return LaunchProduct(l, shape.dim, shape.v_dim); },
             g_num_sms);
    Check(cudaDeviceSynchronize(), what);
    return ToHost(test.out(), test.rows() * test.out_stride());
  };
  const auto same = [&](const auto& a, const auto& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
  };
  test.Plan(true, selected, true, g_num_sms, score_bytes);
  const auto out = run();
  Report(what, detail, reference.Compare());
  const size_t count = static_cast<size_t>(test.rows()) * shape.kv_heads * selected;
  const auto selection = ToHost(test.selection(), count);
  test.Plan(true, selected, false, g_num_sms, kPrefillScoreBytes, 3);
  const bool cut = same(out, run()) && same(selection, ToHost(test.selection(), count));
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
  for (const Variant& v : kVariants) {
    PrefillCase test(v.shape, {{1500, 300}}, 0, 3);
    PrefillReference reference(test, 40);
    test.Plan(true, 16, true, g_num_sms, kPrefillScoreBytes);
    test.Run([&](const PrefillLaunch& l) { return v.launch(l, g_num_sms, nullptr); }, g_num_sms);
    Check(cudaDeviceSynchronize(), v.name);
    Report(v.name, "variant", reference.Compare());
  }
}

template <typename F>
double MedianMs(F&& run, int repeats) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int i = 0; i < repeats + 2; ++i) {
    cudaEventRecord(begin);
    run();
    cudaEventRecord(end);
    Check(cudaEventSynchronize(end), "timing");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i >= 2) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void RunTimes(int tokens, int repeats) {
  std::printf("%-16s %8s %10s %8s %10s %8s %10s %8s\n", "variant", "tokens", "plain ms", "TF/s",
              "scores ms", "TF/s", "+select ms", "TF/s");
  for (const Variant& v : kVariants) {
    PrefillCase test(v.shape, {{tokens, 0}}, 0, 11);
    const auto launch = [&](const PrefillLaunch& l) { return v.launch(l, g_num_sms, nullptr); };
    double ms[3];
    for (int mode = 0; mode < 3; ++mode) {
      test.Plan(mode > 0, 16, false, g_num_sms, kPrefillScoreBytes);
      ms[mode] = MedianMs([&] { test.Run(launch, g_num_sms, mode == 2); }, repeats);
    }
    const double flops = test.Flops();
    std::printf("%-16s %8d %10.3f %8.0f %10.3f %8.0f %10.3f %8.0f  (%d launches)\n", v.name, tokens,
                ms[0], flops / ms[0] * 1e-9, ms[1], flops / ms[1] * 1e-9, ms[2],
                flops / ms[2] * 1e-9, test.num_steps());
    std::fflush(stdout);
  }
}

void RunOne(int variant) {
  PrefillCase test(kVariants[variant].shape, {{8192, 0}}, 0, 11);
  test.Plan(true, 16, false, g_num_sms, kPrefillScoreBytes);
  test.Run([&](const PrefillLaunch& l) { return kVariants[variant].launch(l, g_num_sms, nullptr); },
           g_num_sms);
  Check(cudaDeviceSynchronize(), "one");
}

}  // namespace
}  // namespace hyserve::benchmarks

// For full_prefill_peers.py, which times these beside its own.
extern "C" {

int prefill_num_variants() { return std::size(hyserve::benchmarks::kVariants); }
const char* prefill_variant_name(int variant) {
  return hyserve::benchmarks::kVariants[variant].name;
}
// mode 0: no scores; 1: with oracle output.
void* prefill_create(int variant, int tokens, int mode) {
  using namespace hyserve::benchmarks;
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0), "device");
  g_num_sms = properties.multiProcessorCount;
  auto* test = new PrefillCase(kVariants[variant].shape, {{tokens, 0}}, 0, 11);
  test->Plan(mode > 0, 16, false, g_num_sms, kPrefillScoreBytes);
  return test;
}
// select 0: without the selection of blocks.
void prefill_run(void* test, int variant, int select) {
  using namespace hyserve::benchmarks;
  static_cast<PrefillCase*>(test)->Run(
      [&](const PrefillLaunch& l) { return kVariants[variant].launch(l, g_num_sms, nullptr); },
      g_num_sms, select != 0);
}
void prefill_destroy(void* test) { delete static_cast<hyserve::benchmarks::PrefillCase*>(test); }

}  // extern "C"

int main(int argc, char** argv) {
  using namespace hyserve::benchmarks;
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0), "device");
  g_num_sms = properties.multiProcessorCount;
  const char* mode = argc > 1 ? argv[1] : "check";
  if (std::strcmp(mode, "time") == 0) {
    RunTimes(argc > 2 ? std::atoi(argv[2]) : 32768, 10);
  } else if (std::strcmp(mode, "one") == 0) {
    RunOne(argc > 2 ? std::atoi(argv[2]) : 0);
  } else {
    RunChecks(std::strcmp(mode, "small") == 0);
    std::printf("%s: %d failures\n", properties.name, g_failures);
  }
  return g_failures != 0;
}
