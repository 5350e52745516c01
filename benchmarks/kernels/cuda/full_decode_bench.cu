// Full attention of decode steps: parity with a plain reference, then bandwidth.
//   cuda_full_decode_bench check [large]  every kernel on ragged batches; exit status 1 on a
//                                         difference
//   cuda_full_decode_bench tiny           the same, small: for compute-sanitizer
//   cuda_full_decode_bench time [--json FILE --commit ID]
// `time` prints microseconds per step, without and with the selection, and GB/s of K and V read;
// its peer is torch's attention (full_decode_peer.py).
#include <functional>

#include "benchmarks/kernels/cuda/full_decode_case.cuh"

namespace hyserve::kernels::cuda::bench {
namespace {

using hyserve::bench::JsonRows;

int g_failures = 0;
int g_num_sms = 132;

using FirstKernel = std::function<cudaError_t(const SplitAttentionArgs&)>;

cudaError_t Decode(const SplitAttentionArgs& args) {
  return LaunchDecodeAttention(args, g_num_sms, nullptr);
}
cudaError_t Generic(const SplitAttentionArgs& args) {
  return LaunchGenericAttention(args, g_num_sms, nullptr);
}

// Workspace of one launch, filled with NaN.
class Workspace {
 public:
  Workspace(const SplitSize& size, const Shape& shape, int sequences, int rows)
      : maxima_(size.block_maxima + 4),
        partial_(size.partial_rows * shape.v_dim + 4),
        state_(size.partial_rows * 2 + 4),
        offsets_(sequences),
        tickets_(int64_t{sequences} * rows * shape.kv_heads) {
    tickets_.Fill(0);
    maxima_.Fill(0xff);
    partial_.Fill(0xff);
    state_.Fill(0xff);
  }
  void Bind(SplitAttentionArgs& args) const {
    const bool wanted = args.selection != nullptr || args.block_scores != nullptr;
    args.block_maxima = wanted ? maxima_.get() : nullptr;
    args.partial_out = partial_.get();
    args.partial_state = state_.get();
    args.offsets = offsets_.get();
    args.tickets = tickets_.get();
  }
  bool TicketsAreZero() const {
    const std::vector<int32_t> tickets = tickets_.Download();
    return std::count(tickets.begin(), tickets.end(), 0) == tickets_.count();
  }

 private:
  OwnedArray<float> maxima_;
  OwnedArray<float> partial_;
  OwnedArray<float> state_;
  OwnedArray<SplitOffsets> offsets_;
  OwnedArray<int32_t> tickets_;
};

// In windows of window_rows rows, as the engine does when the workspace is small.
void Run(const DecodeCase& test, const FirstKernel& first, int tile_rows, bool with_blocks,
         int window_rows) {
  SplitAttentionArgs args = test.Args(0, with_blocks, with_blocks);
  const int most = args.window_rows;
  args.window_rows = std::min(window_rows, most);
  for (args.window_begin = 0; args.window_begin < most; args.window_begin += args.window_rows) {
    test.SetMost(args);
    const Workspace workspace(test.Size(args, tile_rows), test.shape(), test.NumSequences(),
                              args.window_rows);
    workspace.Bind(args);
    BENCH_CHECK(first(args));
    BENCH_CHECK(LaunchMergeSplits(args, nullptr));
    BENCH_CHECK(cudaDeviceSynchronize());
    if (!workspace.TicketsAreZero()) {
      std::printf("FAIL tickets are not zero\n");
      ++g_failures;
    }
  }
}

std::vector<int32_t> BestBlocks(const float* scores, int count, int selected) {
  std::vector<int32_t> order(count);
  for (int i = 0; i < count; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return scores[a] > scores[b]; });
  order.resize(std::min(count, selected));
  std::sort(order.begin(), order.end());
  order.resize(selected, -1);
  return order;
}

struct Difference {
  double out_error = 0;    // |difference| / |reference|
  double worst_score = 0;  // absolute
  int wrong_sets = 0;      // against the device's own scores
  int unwritten = 0;
};

// Rows [begin, end) of the step.
Difference Compare(const DecodeCase& test, int begin, int end) {
  const Shape& shape = test.shape();
  const SplitAttentionArgs args = test.Args(0, false, false);
  const int64_t logit_stride = int64_t{test.max_pages()} * 64;
  const int64_t units = shape.heads;
  OwnedArray<float> logits(units * logit_stride), out(units * shape.v_dim),
      maxima(units * test.max_pages()), lse(units);
  const std::vector<__nv_bfloat16> got = test.Out();
  const std::vector<float> scores = test.Scores();
  const std::vector<int32_t> selection = test.Selection();
  Difference difference;
  double square = 0;
  double wanted_square = 0;
  const int group = shape.heads / shape.kv_heads;
  for (int row = begin; row < end; ++row) {
    ReferenceKernel<<<static_cast<int>(units), 256>>>(args, row, logits.get(), logit_stride,
                                                      out.get(), maxima.get(), lse.get());
    BENCH_CHECK(cudaDeviceSynchronize());
    const std::vector<float> want = out.Download(), want_max = maxima.Download(),
                             want_lse = lse.Download();
    for (int64_t i = 0; i < units * shape.v_dim; ++i) {
      const float value = __bfloat162float(got[row * test.OutStride() + i]);
      if (std::isnan(value)) ++difference.unwritten;
      square += (value - want[i]) * (value - want[i]);
      wanted_square += want[i] * want[i];
    }
    int sequence = 0;
    while (test.RowOf(sequence) + test.sequences()[sequence].rows <= row) ++sequence;
    const Sequence& s = test.sequences()[sequence];
    const int blocks = (s.context - s.rows + row - test.RowOf(sequence)) / 64 + 1;
    for (int g = 0; g < shape.kv_heads; ++g) {
      const int64_t place = int64_t{row} * shape.kv_heads + g;
      const float* own = scores.data() + place * test.ScoresStride();
      for (int b = 0; b < test.ScoresStride(); ++b) {
        float score = -INFINITY;
        for (int h = g * group; b < blocks && h < (g + 1) * group; ++h) {
          score = std::max(score, want_max[int64_t{h} * test.max_pages() + b] - want_lse[h]);
        }
        if (std::isnan(own[b])) {
          ++difference.unwritten;
        } else if (b >= blocks) {
          difference.unwritten += own[b] == -INFINITY ? 0 : 1;
        } else {
          difference.worst_score =
              std::max<double>(difference.worst_score, std::abs(own[b] - score));
        }
      }
      const std::vector<int32_t> set(selection.begin() + place * test.selected(),
                                     selection.begin() + (place + 1) * test.selected());
      if (set != BestBlocks(own, blocks, test.selected())) ++difference.wrong_sets;
    }
  }
  difference.out_error = std::sqrt(square / std::max(wanted_square, 1e-30));
  return difference;
}

void Verdict(const std::string& what, bool passed, const std::string& detail) {
  std::printf("%-4s %-58s %s\n", passed ? "ok" : "FAIL", what.c_str(), detail.c_str());
  std::fflush(stdout);
  if (!passed) ++g_failures;
}

std::vector<uint16_t> OutBits(const DecodeCase& test, int sequence) {
  const std::vector<__nv_bfloat16> all = test.Out();
  std::vector<uint16_t> bits;
  for (int r = 0; r < test.sequences()[sequence].rows; ++r) {
    const int64_t row = test.RowOf(sequence) + r;
    for (int64_t i = 0; i < int64_t{test.shape().heads} * test.shape().v_dim; ++i) {
      bits.push_back(__bfloat16_as_ushort(all[row * test.OutStride() + i]));
    }
  }
  return bits;
}

void CheckCase(const std::string& name, const Shape& shape, const std::vector<Sequence>& sequences,
               bool fast, int window_rows = INT32_MAX, int selected = 16) {
  DecodeCase test(shape, sequences, selected);
  const int tile_rows = fast ? kDecodeTileRows : kGenericTileRows;
  const FirstKernel first = fast ? Decode : Generic;
  test.PoisonOutputs();
  Run(test, first, tile_rows, true, window_rows);
  Difference all;
  for (int s = 0; s < test.NumSequences(); ++s) {
    // All rows of short cases, first and last rows of long ones.
    const int rows = test.sequences()[s].rows;
    for (int r = 0; r < rows; ++r) {
      if (rows > 10 && r > 2 && r < rows - 3) continue;
      const Difference d = Compare(test, test.RowOf(s) + r, test.RowOf(s) + r + 1);
      all.out_error = std::max(all.out_error, d.out_error);
      all.worst_score = std::max(all.worst_score, d.worst_score);
      all.wrong_sets += d.wrong_sets;
      all.unwritten += d.unwritten;
    }
  }
  char detail[160];
  std::snprintf(detail, sizeof(detail), "out %.1e  scores %.1e  wrong sets %d  unwritten %d",
                all.out_error, all.worst_score, all.wrong_sets, all.unwritten);
  Verdict(shape.Name() + (fast ? " decode, " : " generic, ") + name,
          all.out_error < 8e-3 && all.worst_score < 2e-4 && all.wrong_sets == 0 &&
              all.unwritten == 0,
          detail);
  // Without oracle output, and alone: the same bits.
  std::vector<std::vector<uint16_t>> bits;
  for (int s = 0; s < test.NumSequences(); ++s) bits.push_back(OutBits(test, s));
  test.PoisonOutputs();
  Run(test, first, tile_rows, false, INT32_MAX);
  bool same = true;
  for (int s = 0; s < test.NumSequences(); ++s) same &= bits[s] == OutBits(test, s);
  if (!same) Verdict(shape.Name() + " " + name, false, "bits differ without selection");
}

// A sequence's rows have the same bits whatever else is in the step. Content is by page id, so the
// first sequence must keep its pages: the other batch only drops what follows it.
void CheckInvariance(const Shape& shape, bool fast) {
  const int tile_rows = fast ? kDecodeTileRows : kGenericTileRows;
  const FirstKernel first = fast ? Decode : Generic;
  DecodeCase test(shape, {{3000, 1}, {70, 1}, {9000, 2}, {500, 1}}, 16);
  SplitAttentionArgs args = test.Args(0, true, false);
  std::vector<std::vector<uint16_t>> together, alone;
  Run(test, first, tile_rows, true, INT32_MAX);
  for (int s = 0; s < 4; ++s) together.push_back(OutBits(test, s));
  const std::vector<int32_t> selection = test.Selection();
  test.PoisonOutputs();
  for (int s = 0; s < 4; ++s) {
    args.first_sequence = s;
    args.num_sequences = 1;
    const Workspace workspace(test.Size(test.Args(0, true, false), tile_rows), shape, 4, 2);
    workspace.Bind(args);
    BENCH_CHECK(first(args));
    BENCH_CHECK(LaunchMergeSplits(args, nullptr));
    BENCH_CHECK(cudaDeviceSynchronize());
  }
  for (int s = 0; s < 4; ++s) alone.push_back(OutBits(test, s));
  Verdict(shape.Name() + (fast ? " decode" : " generic"),
          together == alone && selection == test.Selection(), "bits in a batch and alone");
}

void CheckTies(const Shape& shape, int context) {
  DecodeCase test(shape, {{context, 1}}, 16, 1, true);
  Run(test, Decode, kDecodeTileRows, true, INT32_MAX);
  const std::vector<int32_t> got = test.Selection();
  bool right = true;
  for (int i = 0; i < shape.kv_heads * 16; ++i) right &= got[i] == i % 16;
  Verdict(shape.Name() + " equal blocks, " + std::to_string(context / 64), right,
          "lowest indices");
}

const Shape kGqa = {32, 8, 128, 128};
const Shape kWide = {64, 4, 192, 128};
const Shape kMqa = {64, 1, 256, 256};
const Shape kDemo = {8, 2, 64, 64};

void CheckSmall() {
  const std::vector<Sequence> ragged = {{1, 1}, {63, 1}, {64, 1}, {65, 1}, {130, 1}, {1000, 1},
                                        {4097, 1}};
  for (const Shape& shape : {kGqa, kWide, kMqa, kDemo}) {
    CheckCase("ragged decode", shape, ragged, true);
    CheckCase("several rows", shape, {{5, 5}, {130, 3}, {700, 8}, {66, 2}, {2100, 7}}, true);
    CheckCase("many rows", shape, {{40, 40}, {1000, 50}, {100, 100}}, true);
    CheckCase("windows of rows", shape, {{700, 40}, {100, 9}}, true, 7);
    CheckInvariance(shape, true);
  }
  CheckCase("odd group", {9, 3, 64, 64}, ragged, true);
  CheckCase("heads beyond a tile", {80, 1, 128, 128}, ragged, true);
  for (const Shape& shape : {Shape{3, 1, 10, 6}, Shape{6, 3, 24, 40}, Shape{2, 2, 80, 50},
                             Shape{4, 2, 33, 7}, kDemo, Shape{5, 1, 256, 256}}) {
    CheckCase("ragged decode", shape, ragged, false);
    CheckCase("mixed rows", shape, {{130, 130}, {1099, 1}, {63, 1}, {257, 67}}, false);
    CheckInvariance(shape, false);
  }
  CheckCase("windows of rows", {6, 3, 24, 40}, {{700, 40}, {100, 9}}, false, 7);
  for (int selected : {1, 4, 64}) {
    CheckCase("selected " + std::to_string(selected), kGqa, {{5000, 1}, {300, 2}}, true, INT32_MAX,
              selected);
  }
  CheckTies(kGqa, 64 * 100);
  CheckTies(kWide, 64 * 700);
}

void CheckLarge() {
  for (const Shape& shape : {kGqa, kWide, kMqa, kDemo}) {
    CheckCase("40k and 140k", shape, {{40000, 1}, {140001, 2}}, true);
    CheckCase("1M", shape, {{1048576, 1}}, true);
  }
  CheckCase("2M", {4, 1, 64, 64}, {{2097100, 1}}, true);
  CheckTies(kDemo, 64 * 9000);
  CheckTies({4, 1, 64, 64}, 64 * 20000);
  std::vector<Sequence> many;
  for (int i = 0; i < 256; ++i) many.push_back({17 + i * 31, 1 + i % 3 / 2});
  CheckCase("256 sequences", kGqa, many, true);
}

// ---- Timing -------------------------------------------------------------------------------------

void Time(const Shape& shape, int batch, int context, double copy_rate, JsonRows& json) {
  std::vector<Sequence> sequences(batch, Sequence{context, 1});
  const int64_t bytes =
      int64_t{batch} * context * shape.kv_heads * (shape.dim + shape.v_dim) * 2;
  const int copies = static_cast<int>(std::max<int64_t>(1, (int64_t{400} << 20) / bytes));
  DecodeCase test(shape, sequences, 16, copies);
  const Workspace workspace(test.Size(test.Args(0, true, false), kDecodeTileRows), shape, batch,
                            1);
  const int steps = bytes > (int64_t{1} << 29) ? 4 : 20;
  double us[3];  // first kernel alone; both; both with selection
  for (int mode = 0; mode < 3; ++mode) {
    int step = 0;
    const auto run = [&] {
      for (int i = 0; i < steps; ++i) {
        SplitAttentionArgs args = test.Args(step++, mode == 2, false);
        workspace.Bind(args);
        BENCH_CHECK(Decode(args));
        if (mode > 0) BENCH_CHECK(LaunchMergeSplits(args, nullptr));
      }
    };
    us[mode] = hyserve::bench::MedianMicroseconds(nullptr, 11, run) / steps;
  }
  const double rate = bytes / us[2] * 1e6;
  std::printf("%-14s b%-3d %8d  first %7.1f  all %7.1f  all+blocks %7.1f us  %6.0f GB/s, %.0f%%\n",
              shape.Name().c_str(), batch, context, us[0], us[1], us[2], rate / 1e9,
              100 * rate / copy_rate);
  std::fflush(stdout);
  char fields[256];
  std::snprintf(fields, sizeof(fields),
                "\"shape\": \"%s\", \"batch\": %d, \"tokens\": %d, \"attention_us\": %.2f, "
                "\"with_selection_us\": %.2f, \"kv_gigabytes_per_second\": %.0f, "
                "\"of_copy\": %.4f",
                shape.Name().c_str(), batch, context, us[1], us[2], rate / 1e9, rate / copy_rate);
  json.Add("full_decode", fields);
}

void TimeAll(JsonRows& json) {
  const double copy_rate = hyserve::bench::CopyBytesPerSecond(nullptr);
  std::printf("device copy %.0f GB/s\n", copy_rate / 1e9);
  for (const auto& [batch, context] : std::vector<std::pair<int, int>>{
           {8, 131072}, {1, 32768}, {32, 8192}, {1, 131072}, {1, 1048576}, {256, 1024}}) {
    for (const Shape& shape : {kGqa, kWide, kMqa}) Time(shape, batch, context, copy_rate, json);
  }
  Time(kDemo, 8, 131072, copy_rate, json);
  Time(kDemo, 1, 32768, copy_rate, json);
}

}  // namespace
}  // namespace hyserve::kernels::cuda::bench

int main(int argc, char** argv) {
  using namespace hyserve::kernels::cuda::bench;
  const std::string mode = argc > 1 ? argv[1] : "";
  cudaDeviceProp properties;
  BENCH_CHECK(cudaGetDeviceProperties(&properties, 0));
  g_num_sms = properties.multiProcessorCount;
  std::printf("%s, %d SMs\n", properties.name, g_num_sms);
  if (mode == "check") {
    CheckSmall();
    if (argc > 2) CheckLarge();
    std::printf("%d failures\n", g_failures);
    return g_failures == 0 ? 0 : 1;
  }
  if (mode == "time") {
    JsonRows json(argc, argv);
    TimeAll(json);
    return 0;
  }
  if (mode == "tiny") {
    CheckCase("tiny", kGqa, {{130, 1}, {2700, 2}}, true);
    CheckCase("tiny", kWide, {{130, 1}, {300, 9}}, true);
    CheckCase("tiny", kMqa, {{70, 1}, {600, 1}}, true);
    CheckCase("tiny", {3, 1, 10, 6}, {{130, 1}, {100, 20}}, false);
    return g_failures == 0 ? 0 : 1;
  }
  std::printf("usage: cuda_full_decode_bench check [large] | tiny | time "
              "[--json FILE --commit ID]\n");
  return 64;
}
