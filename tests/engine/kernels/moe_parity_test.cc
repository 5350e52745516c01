// The mixture of experts against plain double-precision loops, on every device.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "engine/kernels/ops.h"
#include "tests/engine/kernels/reference_ops.h"
#include "tests/engine/kernels/test_device.h"

namespace hyserve::kernels::testing {
namespace {

using tensor::DType;
using tensor::TensorView;

struct MoeCase {
  int64_t rows;
  int experts;
  int per_token;
  bool bias;
  bool normalize;
  DType dtype;
};

class MoeParity : public ::testing::TestWithParam<tensor::DeviceOptions> {
 protected:
  MoeParity() : device_(GetParam()) {}

  void Build(int experts, DType dtype, Random& random) {
    const DType kept = WeightDType(GetParam(), dtype);
    gate_up_.clear();
    down_.clear();
    gate_up_values_.clear();
    down_values_.clear();
    for (int e = 0; e < experts; ++e) {
      gate_up_values_.push_back(Rounded(random.Normal(2 * intermediate_ * hidden_, 0.2f), kept));
      down_values_.push_back(Rounded(random.Normal(hidden_ * intermediate_, 0.2f), kept));
      const HostMatrix gate_up(gate_up_values_[e], 2 * intermediate_, hidden_, dtype);
      const HostMatrix down(down_values_[e], hidden_, intermediate_, dtype);
      gate_up_.push_back(*PackMatrix(device_.get(), {{gate_up.view()}}));
      down_.push_back(*PackMatrix(device_.get(), {{down.view()}}));
    }
  }

  // Experts of a row, ascending, and their weights.
  std::vector<std::pair<int, double>> Route(const float* logits, const std::vector<float>& bias,
                                            const MoeCase& c, double scaling) {
    std::vector<double> s(c.experts), biased(c.experts);
    for (int e = 0; e < c.experts; ++e) {
      s[e] = ReferenceSigmoid(logits[e]);
      biased[e] = s[e] + (c.bias ? bias[e] : 0.0);
    }
    std::vector<int> order(c.experts);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return biased[a] > biased[b]; });
    order.resize(c.per_token);
    std::sort(order.begin(), order.end());
    double sum = 0;
    for (int e : order) sum += s[e];
    std::vector<std::pair<int, double>> chosen;
    for (int e : order) chosen.push_back({e, s[e] / (c.normalize ? sum : 1.0) * scaling});
    return chosen;
  }

  Doubles Expert(int e, const std::vector<float>& x) {
    const Doubles h = ReferenceLinear(x, gate_up_values_[e], 1, 2 * intermediate_, hidden_);
    Doubles out(hidden_, 0.0);
    for (int64_t i = 0; i < intermediate_; ++i) {
      const double act = h[i] * ReferenceSigmoid(h[i]) * h[intermediate_ + i];
      for (int64_t d = 0; d < hidden_; ++d) out[d] += act * down_values_[e][d * intermediate_ + i];
    }
    return out;
  }

  // Runs the case on random rows and compares with the formula.
  void Check(const MoeCase& c, Random& random) {
    const std::vector<float> x = Rounded(random.Normal(c.rows * hidden_), device_.activation());
    std::vector<float> logits = random.Normal(c.rows * c.experts);
    // The first row's logits tie, so the lower indices must win.
    std::fill(logits.begin(), logits.begin() + c.experts, 0.25f);
    const std::vector<float> bias = random.Normal(c.experts, 0.3f);
    const double scaling = 1.5;
    const TensorView out = device_.Output(c.rows, hidden_, device_.activation());
    ASSERT_TRUE(MixtureOfExperts(
                    device_.get(),
                    {.x = device_.Activations(x, c.rows, hidden_),
                     .router_logits = device_.Upload(logits, c.rows, c.experts, DType::kF32),
                     .correction_bias = c.bias ? device_.UploadArray(bias) : nullptr,
                     .gate_up = gate_up_,
                     .down = down_,
                     .experts_per_token = c.per_token,
                     .normalize = c.normalize,
                     .scaling_factor = static_cast<float>(scaling),
                     .out = out})
                    .ok());
    Doubles want;
    for (int64_t row = 0; row < c.rows; ++row) {
      const std::vector<float> row_x(x.begin() + row * hidden_, x.begin() + (row + 1) * hidden_);
      Doubles sum(hidden_, 0.0);
      for (const auto& [e, weight] : Route(logits.data() + row * c.experts, bias, c, scaling)) {
        const Doubles y = Expert(e, row_x);
        for (int64_t d = 0; d < hidden_; ++d) sum[d] += weight * y[d];
      }
      want.insert(want.end(), sum.begin(), sum.end());
    }
    const bool rounds =
        device_.activation() != DType::kF32 || RoundsActivations(GetParam(), c.dtype);
    const std::vector<float> got = device_.Download(out);
    const double tolerance = 5e-7 * static_cast<double>(hidden_);
    EXPECT_EQ(rounds ? FirstRowDifference(got, want, hidden_, 2 * kBf16Tolerance)
                     : FirstDifference(got, want, tolerance, tolerance),
              "");
  }

  void CheckAll(const std::vector<MoeCase>& cases, Random& random) {
    for (const MoeCase& c : cases) {
      SCOPED_TRACE(::testing::Message() << c.rows << " rows, " << c.experts << " experts");
      Build(c.experts, c.dtype, random);
      Check(c, random);
    }
  }

  TestDevice device_;
  int64_t hidden_ = 40;
  int64_t intermediate_ = 24;
  std::vector<std::unique_ptr<PackedMatrix>> gate_up_;
  std::vector<std::unique_ptr<PackedMatrix>> down_;
  std::vector<std::vector<float>> gate_up_values_;
  std::vector<std::vector<float>> down_values_;
};

TEST_P(MoeParity, SumsTheChosenExpertsByTheirWeights) {
  Random random(11);
  CheckAll({{1, 8, 2, false, true, DType::kF32},
            {7, 8, 3, true, true, DType::kBF16},
            {50, 5, 5, true, false, DType::kF32},
            {33, 16, 1, false, false, DType::kBF16}},
           random);
}

TEST_P(MoeParity, FewAndManyRowsOfLargerExperts) {
  Random random(13);
  hidden_ = 264;
  intermediate_ = 136;
  device_.set_extra_stride(8);
  CheckAll({{1, 40, 6, true, true, DType::kBF16},
            {4, 40, 6, false, true, DType::kBF16},
            {31, 40, 2, true, true, DType::kBF16},
            {60, 40, 3, true, false, DType::kBF16},
            {300, 3, 2, true, true, DType::kBF16}},
           random);
}

TEST_P(MoeParity, AnExpertMayBeReplacedBetweenCalls) {
  Random random(14);
  const MoeCase c = {6, 4, 4, false, true, DType::kBF16};
  Build(c.experts, c.dtype, random);
  Check(c, random);
  for (int e : {2, 0}) {
    gate_up_values_[e] = Rounded(random.Normal(2 * intermediate_ * hidden_, 0.2f), c.dtype);
    const HostMatrix gate_up(gate_up_values_[e], 2 * intermediate_, hidden_, c.dtype);
    gate_up_[e].reset();  // so that the new matrix may take the old one's place in memory
    gate_up_[e] = *PackMatrix(device_.get(), {{gate_up.view()}});
    Check(c, random);
  }
}

TEST_P(MoeParity, ARowIsTheSameAloneAndAmongOthers) {
  Random random(12);
  const int64_t rows = 40;
  const int experts = 4;
  Build(experts, DType::kBF16, random);
  const std::vector<float> x = Rounded(random.Normal(rows * hidden_), device_.activation());
  const std::vector<float> logits = random.Normal(rows * experts);
  const auto run = [&](int64_t begin, int64_t count) {
    const TensorView out = device_.Output(count, hidden_, device_.activation());
    const std::vector<float> xs(x.begin() + begin * hidden_, x.begin() + (begin + count) * hidden_);
    const std::vector<float> ls(logits.begin() + begin * experts,
                                logits.begin() + (begin + count) * experts);
    EXPECT_TRUE(MixtureOfExperts(device_.get(),
                                 {.x = device_.Activations(xs, count, hidden_),
                                  .router_logits = device_.Upload(ls, count, experts, DType::kF32),
                                  .gate_up = gate_up_,
                                  .down = down_,
                                  .experts_per_token = 2,
                                  .out = out})
                    .ok());
    return device_.Download(out);
  };
  const std::vector<float> all = run(0, rows);
  std::vector<float> pieces;
  for (int64_t begin = 0; begin < rows;) {
    const int64_t count = std::min<int64_t>(begin == 0 ? 1 : 13, rows - begin);
    const std::vector<float> piece = run(begin, count);
    pieces.insert(pieces.end(), piece.begin(), piece.end());
    begin += count;
  }
  if (IsCuda(GetParam())) {
    // Few rows and many rows may take different kernels.
    EXPECT_EQ(FirstRowDifference(pieces, Doubles(all.begin(), all.end()), hidden_, kBf16Tolerance),
              "");
  } else {
    EXPECT_TRUE(SameBits(all, pieces));
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, MoeParity, ::testing::ValuesIn(TestDevices()),
                         [](const auto& info) { return DeviceName(info.param); });

}  // namespace
}  // namespace hyserve::kernels::testing
