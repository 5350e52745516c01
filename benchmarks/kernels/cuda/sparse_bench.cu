// WindowSparseAttention's kernels: parity with a plain reference, then times.
//   cuda_sparse_bench check   every kernel on ragged steps; exit status 1 on a difference
//   cuda_sparse_bench tiny [0|1|2]   the same, small, of all head shapes or one: for
//                             compute-sanitizer --kernel-regex-exclude kns=Reference
//   cuda_sparse_bench time | prefill | decode [--json FILE --commit ID]
// The peers of `time` are in sparse_peer.py (fla's Triton kernel, cuDNN's full layer).
#include <algorithm>
#include <cstdlib>
#include <utility>

#include "benchmarks/kernels/cuda/sparse_case.cuh"
#include "engine/kernels/cuda/window_sparse_attention_by_block.h"

namespace hyserve::kernels::cuda::bench {
namespace {

using hyserve::bench::JsonRows;
using hyserve::bench::MicrosecondsEach;

constexpr double kTolerance = 6e-3;  // bf16 output and probabilities
constexpr int kAnyRows = 1 << 30;

constexpr SparseShape kWide = {64, 4, 192, 128, 128, 16};
constexpr SparseShape kGqa = {32, 8, 128, 128, 128, 16};
constexpr SparseShape kDemo = {8, 2, 64, 64, 128, 16};

int g_failures = 0;
int g_runs = 0;
int g_by_block = 0;  // cases with rows of that class
int g_num_sms = 132;

SparsePrefillWork Work(const SparseCase& test, int min_rows) {
  const int tokens = WindowSparsePrefillTileTokens(test.args());
  SparsePrefillWork work;
  work.min_rows = min_rows;
  for (const SparseRows& rows : test.sequences()) {
    if (rows.rows <= min_rows) continue;
    const int blocks = (rows.first + rows.rows + kSparseBlock - 1) / kSparseBlock;
    work.num_rows += rows.rows;
    work.num_tiles += (rows.rows + tokens - 1) / tokens;
    work.num_blocks += blocks;
    work.max_blocks = std::max(work.max_blocks, blocks);
  }
  return work;
}

// Grows as needed; what was in it is lost.
char* Workspace(size_t bytes) {
  static char* memory = nullptr;
  static size_t size = 0;
  if (bytes > size) {
    BENCH_CHECK(cudaDeviceSynchronize());
    BENCH_CHECK(cudaFree(memory));
    memory = hyserve::bench::DeviceArray<char>(bytes);
    BENCH_CHECK(cudaMemset(memory, 0xff, bytes));
    size = bytes;
  }
  return bytes == 0 ? nullptr : memory;
}

enum class Classes { kChosen, kTilesOnly };

cudaError_t Prefill(const SparseCase& test, const WindowSparseArgs& args, int min_rows,
                    Classes classes, cudaStream_t stream = nullptr) {
  const SparsePrefillWork work = Work(test, min_rows);
  char* workspace = classes == Classes::kTilesOnly
                        ? nullptr
                        : Workspace(WindowSparsePrefillWorkspaceBytes(args, work));
  return LaunchWindowSparsePrefill(args, work, workspace, g_num_sms, stream);
}

// Of the last call with Classes::kChosen: the part of (row, kv head) that went by block.
double ByBlockShare(const SparseCase& test) {
  size_t bytes = 0;
  const SparsePrefillWork work = Work(test, 0);
  window_sparse::MakeByBlockPlan(test.args(), work, nullptr, &bytes);
  if (bytes == 0) return 0.0;
  const window_sparse::ByBlockPlan plan =
      window_sparse::MakeByBlockPlan(test.args(), work, Workspace(bytes), &bytes);
  const size_t count = size_t(test.args().num_rows) * test.args().num_kv_heads;
  const std::vector<uint64_t> flags = hyserve::bench::Download(plan.by_block, count);
  return static_cast<double>(count - std::count(flags.begin(), flags.end(), 0)) / count;
}

int ShortRows(const SparseCase& test) {
  int most = 0;
  for (const SparseRows& rows : test.sequences()) {
    if (rows.rows <= kSparseDecodeRows) most = std::max(most, rows.rows);
  }
  return most;
}

void Expect(SparseCase& test, const std::vector<int>& rows, const std::string& what) {
  BENCH_CHECK(cudaDeviceSynchronize());
  if (rows.empty()) return;
  const double error = test.Error(rows);
  ++g_runs;
  if (!(error < kTolerance)) {
    ++g_failures;
    std::printf("FAIL %s: relative error %.2e\n", what.c_str(), error);
  }
}

void CheckKernels(SparseCase& test, const std::string& what) {
  const WindowSparseArgs& args = test.args();
  test.PoisonOutput();
  BENCH_CHECK(LaunchWindowSparseGeneric(args, nullptr));
  Expect(test, test.Sample(0, kAnyRows), "generic " + what);
  if (WindowSparseDecodeSupports(args)) {
    std::vector<uint16_t> outputs[2];
    for (DecodeKernel kernel : {DecodeKernel::kStream, DecodeKernel::kCluster}) {
      const bool cluster = kernel == DecodeKernel::kCluster;
      if (cluster && (args.selected_blocks > 16 || args.window > 128)) continue;
      test.PoisonOutput();
      BENCH_CHECK(LaunchWindowSparseDecode(args, ShortRows(test), kernel, nullptr));
      Expect(test, test.Sample(0, kSparseDecodeRows), (cluster ? "cluster " : "stream ") + what);
      outputs[cluster] = test.Output();
    }
    if (!outputs[1].empty() && outputs[0] != outputs[1]) {
      ++g_failures;
      std::printf("FAIL %s: the decode kernels' bits differ\n", what.c_str());
    }
  }
  if (WindowSparsePrefillSupports(args)) {
    for (int min_rows : {0, kSparseDecodeRows}) {
      test.PoisonOutput();
      BENCH_CHECK(Prefill(test, args, min_rows, Classes::kTilesOnly));
      Expect(test, test.Sample(min_rows, kAnyRows), "prefill " + what);
      test.PoisonOutput();
      BENCH_CHECK(Prefill(test, args, min_rows, Classes::kChosen));
      Expect(test, test.Sample(min_rows, kAnyRows), "prefill, two classes, " + what);
    }
    const std::vector<uint16_t> first = test.Output();
    BENCH_CHECK(Prefill(test, args, kSparseDecodeRows, Classes::kChosen));
    if (test.Output() != first) {
      ++g_failures;
      std::printf("FAIL %s: the bits differ from run to run\n", what.c_str());
    }
    BENCH_CHECK(Prefill(test, args, 0, Classes::kChosen));
    g_by_block += ByBlockShare(test) > 0;
  }
}

// `only`: the position of one shape, or -1.
void CheckAll(bool tiny, int only) {
  std::vector<SparseShape> shapes = {kDemo, kGqa, kWide};
  if (!tiny) {
    for (const SparseShape& shape :
         {SparseShape{6, 2, 64, 64, 100, 5}, {12, 1, 128, 128, 128, 7}, {4, 4, 192, 128, 33, 3},
          {64, 1, 64, 64, 200, 4}, {6, 2, 24, 40, 100, 3}, {4, 4, 10, 6, 1, 2},
          {2, 1, 255, 77, 64, 3}, {16, 1, 128, 128, 64, 20}}) {
      shapes.push_back(shape);
    }
  }
  if (only >= 0) shapes = {shapes.at(only)};
  std::vector<std::vector<SparseRows>> steps = {
      {{0, 200}, {999, 1}, {63, 1}, {190, 150}, {0, 1}, {2000, 8}, {64, 3}},
      {{0, 700}},
      {{1337, 333}},
      {{4095, 1}},
      {{100, 9}, {3, 8}, {5000, 5}, {128, 64}},
      {{5000, 301}, {0, 1}, {7777, 650}, {64, 40}, {4200, 7}},
      {{0, 8500}},
      {{19970, 1030}}};
  if (tiny) steps = {{{0, 70}, {999, 1}, {190, 40}, {300, 3}}, {{20000, 260}, {70, 2}}};
  const std::vector<SparseOptions> variants = {
      {GateKind::kHead, true, true, Pattern::kNeighbours},
      {GateKind::kElement, false, true, Pattern::kUniform},
      {GateKind::kNone, true, true, Pattern::kSame},
      {GateKind::kHead, true, false},
      {GateKind::kHead, true, true, Pattern::kUniform, 3}};
  for (const SparseShape& shape : shapes) {
    for (size_t step = 0; step < steps.size(); ++step) {
      // Long prompts: the common shapes, chosen alike and not.
      const bool is_long = steps[step][0].rows > 1000;
      if (is_long && shape.selected != 16) continue;
      for (size_t i = 0; i < (tiny || is_long ? 2 : variants.size()); ++i) {
        SparseOptions options = variants[i];
        options.seed = static_cast<uint32_t>(11 + i);
        SparseCase test(shape, steps[step], options);
        CheckKernels(test, shape.Name() + " window " + std::to_string(shape.window) + " step " +
                               std::to_string(step) + " variant " + std::to_string(i));
      }
    }
  }
  std::printf("parity: %d runs, %d failures; %d cases with rows by block\n", g_runs, g_failures,
              g_by_block);
  if (g_by_block == 0) ++g_failures;
}

const char* Name(Pattern pattern) {
  return pattern == Pattern::kNeighbours ? "neighbours"
         : pattern == Pattern::kSame     ? "same"
                                         : "uniform";
}

void TimePrefill(const SparseShape& shape, const SparseRows& rows, Pattern pattern,
                 JsonRows& json) {
  SparseOptions options;
  options.pattern = pattern;
  SparseCase test(shape, {rows}, options);
  cudaStream_t stream;
  BENCH_CHECK(cudaStreamCreate(&stream));
  const auto time = [&](const WindowSparseArgs& args, Classes classes) {
    test.PoisonOutput();
    BENCH_CHECK(Prefill(test, args, 0, classes, stream));
    BENCH_CHECK(cudaStreamSynchronize(stream));
    if (args.selection != nullptr) {
      Expect(test, test.Sample(0, kAnyRows), "prefill " + shape.Name());
    }
    return MicrosecondsEach(
               stream, 1, [&](int) { BENCH_CHECK(Prefill(test, args, 0, classes, stream)); }) /
           1e3;
  };
  const double tiles_ms = time(test.args(), Classes::kTilesOnly);
  const double ms = time(test.args(), Classes::kChosen);
  const double share = ByBlockShare(test);
  WindowSparseArgs sliding = test.args();
  sliding.selection = nullptr;
  const double sliding_ms = time(sliding, Classes::kTilesOnly);
  double keys = 0;
  for (int t = rows.first; t < rows.first + rows.rows; ++t) {
    keys += std::min(t + 1, shape.selected * kSparseBlock);
  }
  const double tflops = keys * 2 * shape.heads * (shape.dim + shape.v_dim) / ms / 1e9;
  const int tokens = WindowSparsePrefillTileTokens(test.args());
  const double blocks = test.MeanUnion(tokens);
  std::printf("prefill %-13s %6d+%-5d tokens %-10s %8.3f ms %5.0f TFLOP/s effective, %3.0f%% by "
              "block (tiles only %.3f ms, %.1f blocks for %d tokens; window alone %.3f ms)\n",
              shape.Name().c_str(), rows.first, rows.rows, Name(pattern), ms, tflops, share * 100,
              tiles_ms, blocks, tokens, sliding_ms);
  std::fflush(stdout);
  char fields[320];
  std::snprintf(fields, sizeof(fields),
                "\"shape\": \"%s\", \"first\": %d, \"tokens\": %d, \"pattern\": \"%s\", "
                "\"ms\": %.4f, \"effective_tflops\": %.1f, \"by_block\": %.3f, "
                "\"tiles_only_ms\": %.4f, \"union\": %.1f, \"window_ms\": %.4f",
                shape.Name().c_str(), rows.first, rows.rows, Name(pattern), ms, tflops, share,
                tiles_ms, blocks, sliding_ms);
  json.Add("window_sparse_prefill", fields);
  BENCH_CHECK(cudaStreamDestroy(stream));
}

// Launch i of `copies` is sequences [i * batch, (i + 1) * batch) of the case.
WindowSparseArgs Part(SparseCase& test, int i, int batch, const int* row_begin) {
  WindowSparseArgs args = test.args();
  const int first = i * batch;
  args.num_seqs = args.num_rows = batch;
  args.row_begin = row_begin;
  args.first_position += first;
  args.positions += first;
  args.slab_index += first;
  args.page_table += int64_t{first} * args.page_table_stride;
  args.q.data += first * args.q.stride;
  args.out += first * args.out_stride;
  args.step_k.data += first * args.step_k.stride;
  args.step_v.data += first * args.step_v.stride;
  args.window_gate.data += first * args.window_gate.stride;
  args.sparse_gate.data += first * args.sparse_gate.stride;
  args.selection += int64_t{first} * args.num_kv_heads * args.selected_blocks;
  return args;
}

void TimeDecode(const SparseShape& shape, int batch, double copy_rate, JsonRows& json) {
  // Enough sequences that nothing is in the L2 cache when its launch comes.
  const int copies = batch >= 128 ? 1 : std::max(2, 128 / batch);
  SparseOptions options;
  options.pattern = Pattern::kUniform;
  SparseCase test(shape, std::vector<SparseRows>(batch * copies, {8190, 1}), options);
  test.PoisonOutput();
  BENCH_CHECK(LaunchWindowSparseDecode(test.args(), 1, DecodeKernel::kStream, nullptr));
  Expect(test, test.Sample(0, kAnyRows), "decode " + shape.Name());
  std::vector<int> begin(batch + 1);
  std::iota(begin.begin(), begin.end(), 0);
  const int* row_begin = test.Upload(begin);
  cudaStream_t stream;
  BENCH_CHECK(cudaStreamCreate(&stream));
  const double bytes = test.DecodeBytes() / copies;
  for (DecodeKernel kernel : {DecodeKernel::kCluster, DecodeKernel::kStream}) {
    const auto time = [&](bool warm) {
      return MicrosecondsEach(stream, copies * 2, [&](int i) {
        const WindowSparseArgs args = Part(test, warm ? 0 : i % copies, batch, row_begin);
        BENCH_CHECK(LaunchWindowSparseDecode(args, 1, kernel, stream));
      });
    };
    const double us = time(false);
    const double warm_us = time(true);
    const char* name = kernel == DecodeKernel::kCluster ? "cluster" : "stream";
    std::printf("decode  %-13s batch %3d %-7s %8.2f us (%.2f in L2) %5.0f GB/s, %.2fx of the "
                "bytes' time\n",
                shape.Name().c_str(), batch, name, us, warm_us, bytes / us / 1e3,
                us * 1e-6 * copy_rate / bytes);
    std::fflush(stdout);
    char fields[256];
    std::snprintf(fields, sizeof(fields),
                  "\"shape\": \"%s\", \"batch\": %d, \"kernel\": \"%s\", \"us\": %.3f, "
                  "\"us_l2\": %.3f, \"gb_s\": %.0f",
                  shape.Name().c_str(), batch, name, us, warm_us, bytes / us / 1e3);
    json.Add("window_sparse_decode", fields);
  }
  BENCH_CHECK(cudaStreamDestroy(stream));
}

void TimeAll(const std::string& what, JsonRows& json) {
  cudaStream_t stream;
  BENCH_CHECK(cudaStreamCreate(&stream));
  const double copy_rate = hyserve::bench::CopyBytesPerSecond(stream);
  BENCH_CHECK(cudaStreamDestroy(stream));
  std::printf("%s, device copy %.0f GB/s\n", json.gpu().c_str(), copy_rate / 1e9);
  const bool all = what == "time";
  for (const SparseShape& shape : {kWide, kGqa, kDemo}) {
    if (!all && what != "prefill") break;
    // Whole prompts, then a chunk far into one.
    for (const SparseRows& rows : {SparseRows{0, 8192}, {0, 32768}, {122880, 8192}}) {
      for (Pattern pattern : {Pattern::kNeighbours, Pattern::kSame, Pattern::kUniform}) {
        if (pattern == Pattern::kSame && rows.rows < 32768) continue;
        TimePrefill(shape, rows, pattern, json);
      }
    }
  }
  for (const SparseShape& shape : {kWide, kGqa, kDemo}) {
    if (!all && what != "decode") break;
    for (int batch : {1, 8, 32, 128, 256}) TimeDecode(shape, batch, copy_rate, json);
  }
}

}  // namespace
}  // namespace hyserve::kernels::cuda::bench

int main(int argc, char** argv) {
  using namespace hyserve::kernels::cuda::bench;
  const std::string mode = argc > 1 ? argv[1] : "";
  cudaDeviceProp properties;
  BENCH_CHECK(cudaGetDeviceProperties(&properties, 0));
  g_num_sms = properties.multiProcessorCount;
  hyserve::bench::JsonRows json(argc, argv);
  if (mode == "check" || mode == "tiny") {
    CheckAll(mode == "tiny", argc > 2 ? std::clamp(std::atoi(argv[2]), 0, 2) : -1);
  } else if (mode == "time" || mode == "prefill" || mode == "decode") {
    TimeAll(mode, json);
  } else {
    std::printf("usage: cuda_sparse_bench check | tiny [0|1|2] | time | prefill | decode "
                "[--json FILE --commit ID]\n");
    return 64;
  }
  return g_failures == 0 ? 0 : 1;
}
