// Rotary embedding and cache writes against their formulas, on every device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/kernels/ops.h"
#include "tests/engine/kernels/attention_case.h"

namespace hyserve::kernels::testing {
namespace {

using tensor::DType;
using tensor::TensorView;

std::vector<double> InverseFrequencies(int rotary_dim, double theta) {
  std::vector<double> frequencies;
  for (int i = 0; i < rotary_dim / 2; ++i) {
    frequencies.push_back(std::pow(theta, -2.0 * i / rotary_dim));
  }
  return frequencies;
}

// One row of num_heads heads, rotated in double precision.
Doubles Rotated(const float* row, int num_heads, int head_dim, int rotary_dim, double theta,
                double position) {
  Doubles out(row, row + num_heads * head_dim);
  const int pairs = rotary_dim / 2;
  for (int h = 0; h < num_heads; ++h) {
    for (int i = 0; i < pairs; ++i) {
      const double angle = position * std::pow(theta, -2.0 * i / rotary_dim);
      const double a = row[h * head_dim + i];
      const double b = row[h * head_dim + i + pairs];
      out[h * head_dim + i] = a * std::cos(angle) - b * std::sin(angle);
      out[h * head_dim + i + pairs] = a * std::sin(angle) + b * std::cos(angle);
    }
  }
  return out;
}

class RotaryCacheParity : public ::testing::TestWithParam<tensor::DeviceOptions> {
 protected:
  RotaryCacheParity() : device_(GetParam()) {}
  bool exact() const { return device_.activation() == DType::kF32; }
  std::string Difference(const TensorView& got, const Doubles& want) const {
    const std::vector<float> values = device_.Download(got);
    return exact() ? FirstDifference(values, want, 2e-6, 2e-6)
                   : FirstRowDifference(values, want, got.cols, kBf16Tolerance);
  }
  mutable TestDevice device_;
};

TEST_P(RotaryCacheParity, RotatesTheFirstDimsOfEveryHead) {
  Random random(51);
  const std::vector<int32_t> positions = {0, 1, 63, 64, 1000, 131072, 1048575};
  const int64_t rows = static_cast<int64_t>(positions.size());
  for (const auto& [heads, dim, rotary] :
       {std::tuple{1, 2, 2}, {3, 16, 16}, {4, 40, 12}, {2, 192, 64}, {64, 128, 128}, {2, 10, 0}}) {
    device_.set_extra_stride(rotary % 16 == 0 ? 8 : 3);
    const std::vector<float> x =
        Rounded(random.Normal(rows * heads * dim), device_.activation());
    const TensorView view = device_.Activations(x, rows, heads * dim);
    ASSERT_TRUE(Rotary(device_.get(),
                       {.x = view,
                        .num_heads = heads,
                        .head_dim = dim,
                        .rotary_dim = rotary,
                        .inv_freq = device_.UploadArray(InverseFrequencies(rotary, 640000)),
                        .positions = device_.UploadArray(positions)})
                    .ok());
    Doubles want;
    for (int64_t row = 0; row < rows; ++row) {
      const Doubles one = Rotated(x.data() + row * heads * dim, heads, dim, rotary, 640000,
                                  positions[row]);
      want.insert(want.end(), one.begin(), one.end());
    }
    EXPECT_EQ(Difference(view, want), "");
  }
}

// A step over caches; what the ops write is read back slot by slot.
class CacheWrites : public RotaryCacheParity {
 protected:
  static constexpr float kValueScale = 0.707f;

  void Run(DType dtype, int dim, int v_dim, int rotary) {
    const AttentionShape shape = OnDevice(device_, {4, 2, dim, v_dim, 48, dtype});
    const int64_t k_cols = 2 * dim;
    const int64_t v_cols = 2 * v_dim;
    const AttentionWorld world(shape, {200, 1000, 65}, 52);
    AttentionStep step(device_, world, {{0, 0, 200}, {1, 990, 10}, {2, 64, 1}});
    const int64_t rows = step.num_rows();
    Random random(53);
    const std::vector<float> k = Rounded(random.Normal(rows * k_cols), device_.activation());
    const std::vector<float> v = Rounded(random.Normal(rows * v_cols), device_.activation());
    const std::vector<float> q = Rounded(random.Normal(rows * 4 * dim), device_.activation());
    const double* inv_freq = device_.UploadArray(InverseFrequencies(rotary, 10000));
    const double activation_tolerance = exact() ? 2e-6 : kBf16Tolerance;
    const double tolerance = dtype == DType::kBF16 ? kBf16Tolerance : 2e-6;

    const TensorView device_k = device_.Activations(k, rows, k_cols);
    const TensorView q_by_itself = device_.Activations(q, rows, 4 * dim);
    const TensorView q_of_append = device_.Activations(q, rows, 4 * dim);
    const TensorView q_of_prepare = device_.Activations(q, rows, 4 * dim);
    ASSERT_TRUE(Rotary(device_.get(), {.x = q_by_itself,
                                       .num_heads = 4,
                                       .head_dim = dim,
                                       .rotary_dim = rotary,
                                       .inv_freq = inv_freq,
                                       .positions = step.batch().positions})
                    .ok());
    ASSERT_TRUE(AppendPagedKv(device_.get(), {.q = q_of_append,
                                              .k = device_k,
                                              .v = device_.Activations(v, rows, v_cols),
                                              .rotary_dim = rotary,
                                              .inv_freq = inv_freq,
                                              .value_scale = kValueScale,
                                              .batch = &step.batch(),
                                              .kv = step.pages})
                    .ok());
    const TensorView step_k = device_.Output(rows, k_cols, dtype);
    const TensorView step_v = device_.Output(rows, v_cols, dtype);
    PrepareWindowKvParams prepare = WindowParams(step, k, v, rotary, inv_freq, step_k, step_v);
    prepare.q = q_of_prepare;
    ASSERT_TRUE(PrepareWindowKv(device_.get(), prepare).ok());
    ASSERT_TRUE(StoreWindowKv(device_.get(), {step_k, step_v, &step.batch(), step.ring}).ok());
    EXPECT_EQ(device_.Download(q_of_append), device_.Download(q_by_itself));
    EXPECT_EQ(device_.Download(q_of_prepare), device_.Download(q_by_itself));

    const std::vector<float> rotated = device_.Download(device_k);
    const std::vector<float> prepared_k = device_.Download(step_k);
    const std::vector<float> prepared_v = device_.Download(step_v);
    int64_t row = 0;
    for (size_t s = 0; s < step.rows().size(); ++s) {
      const StepRows& seq = step.rows()[s];
      for (int i = 0; i < seq.num_rows; ++i, ++row) {
        const int position = seq.first_position + i;
        const Doubles want_k = Rotated(k.data() + row * k_cols, 2, dim, rotary, 10000, position);
        Doubles want_v;
        for (int64_t d = 0; d < v_cols; ++d) {
          want_v.push_back(kValueScale * double{v[row * v_cols + d]});
        }
        const auto slice = [](const std::vector<float>& all, int64_t begin, int64_t count) {
          return std::vector<float>(all.begin() + begin, all.begin() + begin + count);
        };
        ASSERT_EQ(FirstRowDifference(slice(rotated, row * k_cols, k_cols), want_k, k_cols,
                                     activation_tolerance),
                  "");
        ASSERT_EQ(FirstRowDifference(slice(prepared_k, row * k_cols, k_cols), want_k, k_cols,
                                     tolerance),
                  "");
        ASSERT_EQ(FirstRowDifference(slice(prepared_v, row * v_cols, v_cols), want_v, v_cols,
                                     tolerance),
                  "");
        for (int g = 0; g < 2; ++g) {
          const std::vector<float> got_k = slice(prepared_k, row * k_cols + g * dim, dim);
          const std::vector<float> got_v = slice(prepared_v, row * v_cols + g * v_dim, v_dim);
          // Pages and rings hold the very bits of the step buffer.
          EXPECT_EQ(PageSlot(step, s, g, position, true), got_k);
          EXPECT_EQ(PageSlot(step, s, g, position, false), got_v);
          if (i >= seq.num_rows - shape.window) {
            EXPECT_EQ(RingSlot(step, s, g, position, true), got_k);
            EXPECT_EQ(RingSlot(step, s, g, position, false), got_v);
          }
        }
      }
      // A short step leaves the older ring slots alone.
      for (int t = seq.first_position + seq.num_rows - shape.window; t < seq.first_position; ++t) {
        const std::vector<float>& keys = world.window(seq.sequence, 1).keys;
        EXPECT_EQ(RingSlot(step, s, 1, t, true),
                  std::vector<float>(keys.begin() + t * dim, keys.begin() + (t + 1) * dim));
      }
    }
  }

  // Steps of one row per sequence: what two calls leave in buffers and rings, one call leaves too.
  void RunOneRowEach(DType dtype, int dim, int v_dim, int rotary) {
    const AttentionShape shape = OnDevice(device_, {4, 2, dim, v_dim, 48, dtype});
    const AttentionWorld world(shape, {200, 48, 1, 97}, 55);
    Random random(56);
    const int64_t rows = 4;
    const std::vector<float> k = Rounded(random.Normal(rows * 2 * dim), device_.activation());
    const std::vector<float> v = Rounded(random.Normal(rows * 2 * v_dim), device_.activation());
    const double* inv_freq = device_.UploadArray(InverseFrequencies(rotary, 10000));
    std::vector<float> got[2];
    for (const bool at_once : {false, true}) {
      AttentionStep step(device_, world, {{0, 199, 1}, {1, 47, 1}, {2, 0, 1}, {3, 96, 1}});
      const TensorView step_k = device_.Output(rows, 2 * dim, dtype);
      const TensorView step_v = device_.Output(rows, 2 * v_dim, dtype);
      PrepareWindowKvParams prepare = WindowParams(step, k, v, rotary, inv_freq, step_k, step_v);
      if (at_once) prepare.ring = step.ring;
      ASSERT_TRUE(PrepareWindowKv(device_.get(), prepare).ok());
      if (!at_once) {
        ASSERT_TRUE(StoreWindowKv(device_.get(), {step_k, step_v, &step.batch(), step.ring}).ok());
      }
      const auto keep = [&](const std::vector<float>& values) {
        got[at_once].insert(got[at_once].end(), values.begin(), values.end());
      };
      keep(device_.Download(step_k));
      keep(device_.Download(step_v));
      for (size_t s = 0; s < 4; ++s) {
        const int position = step.rows()[s].first_position;
        for (int t = std::max(0, position - shape.window + 1); t <= position; ++t) {
          for (const int g : {0, 1}) {
            keep(RingSlot(step, s, g, t, true));
            keep(RingSlot(step, s, g, t, false));
          }
        }
      }
    }
    EXPECT_EQ(got[0], got[1]);
  }

  // Without queries and ring. k, v: the rows of `step`, two heads each.
  PrepareWindowKvParams WindowParams(const AttentionStep& step, const std::vector<float>& k,
                                     const std::vector<float>& v, int rotary,
                                     const double* inv_freq, const TensorView& step_k,
                                     const TensorView& step_v) {
    return {.k = device_.Activations(k, step_k.rows, step_k.cols),
            .v = device_.Activations(v, step_v.rows, step_v.cols),
            .rotary_dim = rotary,
            .inv_freq = inv_freq,
            .value_scale = kValueScale,
            .batch = &step.batch(),
            .step_k = step_k,
            .step_v = step_v,
            .num_kv_heads = 2,
            .head_dim = static_cast<int>(step_k.cols / 2)};
  }

  std::vector<float> Read(const void* base, int64_t element, int count, DType dtype) {
    const TensorView view = {const_cast<char*>(static_cast<const char*>(base)) +
                                 element * static_cast<int64_t>(tensor::SizeOf(dtype)),
                             dtype, 1, count, count};
    return device_.Download(view);
  }
  std::vector<float> PageSlot(const AttentionStep& step, size_t s, int g, int position, bool key) {
    const PagedKv& kv = step.pages;
    const int64_t k_slice = int64_t{kv.num_kv_heads} * 64 * kv.head_dim;
    const int64_t slice = k_slice + int64_t{kv.num_kv_heads} * 64 * kv.v_head_dim;
    const int64_t entry = s * step.batch().page_table_stride + position / 64;
    const int64_t page = device_.DownloadArray(step.batch().page_table + entry, 1)[0];
    const int64_t slot = g * 64 + position % 64;
    return key ? Read(kv.data, page * slice + slot * kv.head_dim, kv.head_dim, kv.dtype)
               : Read(kv.data, page * slice + k_slice + slot * kv.v_head_dim, kv.v_head_dim,
                      kv.dtype);
  }
  std::vector<float> RingSlot(const AttentionStep& step, size_t s, int g, int position, bool key) {
    const WindowKv& ring = step.ring;
    const int64_t slab = device_.DownloadArray(step.batch().slab_index + s, 1)[0];
    const char* base = static_cast<const char*>(ring.data) + slab * ring.slab_stride_bytes +
                       (key ? ring.k_offset_bytes : ring.v_offset_bytes);
    const int dim = key ? ring.head_dim : ring.v_head_dim;
    return Read(base, (g * ring.window + position % ring.window) * int64_t{dim}, dim, ring.dtype);
  }
};

TEST_P(CacheWrites, PutRotatedKeysAndScaledValuesInTheirSlots) {
  if (exact()) Run(DType::kF32, 16, 24, 8);
  Run(DType::kBF16, 16, 24, 8);
  // Rows and dims that suit 16-byte accesses.
  device_.set_extra_stride(8);
  Run(DType::kBF16, 64, 32, 32);
  Run(DType::kBF16, 32, 40, 0);
}

TEST_P(CacheWrites, OneRowEachGoesToTheRingAtOnce) {
  if (exact()) RunOneRowEach(DType::kF32, 16, 24, 8);
  RunOneRowEach(DType::kBF16, 16, 24, 8);
  device_.set_extra_stride(8);
  RunOneRowEach(DType::kBF16, 64, 32, 32);
}

TEST_P(CacheWrites, RefusesToWriteARingAtOnceOverSeveralRows) {
  const DType dtype = exact() ? DType::kF32 : DType::kBF16;
  const AttentionWorld world(OnDevice(device_, {4, 2, 16, 16, 48, dtype}), {20}, 57);
  AttentionStep step(device_, world, {{0, 18, 2}});
  const TensorView k = device_.Output(2, 32, device_.activation());
  const TensorView kept = device_.Output(2, 32, dtype);
  const absl::Status status =
      PrepareWindowKv(device_.get(), {.k = k,
                                      .v = k,
                                      .batch = &step.batch(),
                                      .step_k = kept,
                                      .step_v = kept,
                                      .num_kv_heads = 2,
                                      .head_dim = 16,
                                      .ring = step.ring});
  EXPECT_EQ(status.message(),
            "PrepareWindowKv: a ring can be written at once only with one row per sequence");
}

TEST_P(CacheWrites, AGpuRefusesAnF32Cache) {
  if (exact()) GTEST_SKIP() << "the CPU has f32 caches";
  const AttentionWorld world({4, 2, 16, 24, 48, DType::kF32}, {20}, 54);
  AttentionStep step(device_, world, {{0, 0, 20}});
  const TensorView k = device_.Output(20, 32, DType::kBF16);
  const TensorView v = device_.Output(20, 48, DType::kBF16);
  const absl::Status status = AppendPagedKv(
      device_.get(), {.k = k, .v = v, .batch = &step.batch(), .kv = step.pages});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "AppendPagedKv: a cache on a GPU must be bf16, is f32");
}

INSTANTIATE_TEST_SUITE_P(Devices, RotaryCacheParity, ::testing::ValuesIn(TestDevices()),
                         [](const auto& info) { return DeviceName(info.param); });
INSTANTIATE_TEST_SUITE_P(Devices, CacheWrites, ::testing::ValuesIn(TestDevices()),
                         [](const auto& info) { return DeviceName(info.param); });

}  // namespace
}  // namespace hyserve::kernels::testing
