// The dense ops against plain double-precision loops, on every device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/kernels/ops.h"
#include "tests/engine/kernels/reference_ops.h"
#include "tests/engine/kernels/test_device.h"

namespace hyserve::kernels::testing {
namespace {

using tensor::DType;
using tensor::TensorView;

class DenseParity : public ::testing::TestWithParam<tensor::DeviceOptions> {
 protected:
  DenseParity() : device_(GetParam()) {}
  bool exact() const { return device_.activation() == DType::kF32; }
  // Of f32 sums, relative to the size of the result's terms.
  double tolerance() const { return exact() ? 3e-6 : 2e-5; }
  // Of activations in rows of cols.
  std::string Difference(const TensorView& got, const Doubles& want) const {
    const std::vector<float> values = device_.Download(got);
    return exact() ? FirstDifference(values, want, 3e-6, 3e-6)
                   : FirstRowDifference(values, want, got.cols, kBf16Tolerance);
  }
  std::vector<float> Input(const std::vector<float>& values) const {
    return Rounded(values, device_.activation());
  }
  // Weights and x of a product, as the device takes them.
  std::vector<float> Weights(const std::vector<float>& values, DType dtype) const {
    return Rounded(values, WeightDType(GetParam(), dtype));
  }
  std::vector<float> Factor(const std::vector<float>& values, DType weight_dtype) const {
    return RoundsActivations(GetParam(), weight_dtype) ? Rounded(values, DType::kBF16)
                                                       : Input(values);
  }

  mutable TestDevice device_;
};

struct LinearCase {
  int64_t m, n, k;
};

TEST_P(DenseParity, LinearIsTheMatrixProduct) {
  Random random(1);
  for (const LinearCase& c : {LinearCase{1, 1, 1}, {1, 33, 7}, {2, 64, 128}, {3, 100, 50},
                              {4, 31, 300}, {5, 32, 64}, {12, 96, 257}, {13, 65, 512},
                              {64, 130, 600}, {125, 72, 513}, {250, 40, 700}, {3, 33, 4101},
                              {70, 40, 2049}, {14, 70, 4100}, {16, 264, 1024}, {33, 200, 4104},
                              {128, 136, 264}, {129, 264, 520}, {300, 128, 72}}) {
    // Rows that begin anywhere, and rows that begin where vectors do.
    device_.set_extra_stride(c.k % 8 == 0 ? 8 : 3);
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(::testing::Message() << c.m << " x " << c.n << " x " << c.k << " "
                                        << tensor::Name(dtype));
      const std::vector<float> x = Factor(random.Normal(c.m * c.k), dtype);
      const std::vector<float> w = Weights(random.Normal(c.n * c.k), dtype);
      const HostMatrix host(w, c.n, c.k, dtype);
      const auto packed = PackMatrix(device_.get(), {{host.view()}});
      ASSERT_TRUE(packed.ok()) << packed.status();
      EXPECT_EQ((*packed)->out_features(), c.n);
      EXPECT_EQ((*packed)->in_features(), c.k);
      EXPECT_EQ((*packed)->dtype(), WeightDType(GetParam(), dtype));
      const TensorView y = device_.Output(c.m, c.n, DType::kF32);
      ASSERT_TRUE(Linear(device_.get(), {device_.Activations(x, c.m, c.k), packed->get(), y}).ok());
      const double scale = std::sqrt(static_cast<double>(c.k));
      EXPECT_EQ(FirstDifference(device_.Download(y), ReferenceLinear(x, w, c.m, c.n, c.k), 0,
                                tolerance() * std::max(3 * scale, 0.14 * static_cast<double>(c.k))),
                "");
    }
  }
}

TEST_P(DenseParity, RoundsActivationsToNearestEvenWhereItRoundsThem) {
  // One weight of 1: the product is the activation as the device takes it.
  Random random(9);
  const HostMatrix one({1.0f}, 1, 1, DType::kBF16);
  const auto packed = PackMatrix(device_.get(), {{one.view()}});
  ASSERT_TRUE(packed.ok());
  const std::vector<float> x = Input(random.Normal(100));
  for (int64_t rows : {1, 100}) {
    const std::vector<float> some(x.begin(), x.begin() + rows);
    const TensorView y = device_.Output(rows, 1, DType::kF32);
    ASSERT_TRUE(
        Linear(device_.get(), {device_.Activations(some, rows, 1), packed->get(), y}).ok());
    EXPECT_EQ(device_.Download(y), Factor(some, DType::kBF16));
  }
}

TEST_P(DenseParity, StackedPartsGiveTheirOutputsSideBySide) {
  Random random(2);
  const int64_t m = 6, k = 40;
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const std::vector<int64_t> sizes = {48, 5, 31, 16};
    std::vector<float> all;
    std::vector<HostMatrix> parts;
    std::vector<TensorView> views;
    for (int64_t n : sizes) {
      const std::vector<float> w = Weights(random.Normal(n * k), dtype);
      all.insert(all.end(), w.begin(), w.end());
      parts.emplace_back(w, n, k, dtype);
    }
    for (const HostMatrix& part : parts) views.push_back(part.view());
    const auto packed = PackMatrix(device_.get(), views);
    ASSERT_TRUE(packed.ok()) << packed.status();
    const std::vector<float> x = Factor(random.Normal(m * k), dtype);
    const TensorView y = device_.Output(m, 100, DType::kF32);
    ASSERT_TRUE(Linear(device_.get(), {device_.Activations(x, m, k), packed->get(), y}).ok());
    EXPECT_EQ(FirstDifference(device_.Download(y), ReferenceLinear(x, all, m, 100, k), 0, 1e-4),
              "");
  }
}

TEST_P(DenseParity, HalfPrecisionWeightsKeepEveryBitOrRoundOnce) {
  // All 16-bit patterns of finite f16 through a 1-wide product with x = 1.
  std::vector<uint16_t> bits;
  std::vector<float> values;
  for (uint32_t pattern = 0; pattern < 0x10000; ++pattern) {
    const int exponent = (pattern >> 10) & 31;
    const int mantissa = pattern & 1023;
    if (exponent == 31) continue;
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(1024 + mantissa, exponent - 25);
    bits.push_back(static_cast<uint16_t>(pattern));
    values.push_back(static_cast<float>(pattern & 0x8000 ? -magnitude : magnitude));
  }
  const int64_t n = static_cast<int64_t>(bits.size());
  const auto packed =
      PackMatrix(device_.get(), {{TensorView{bits.data(), DType::kF16, n, 1, 1}}});
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_EQ((*packed)->dtype(), WeightDType(GetParam(), DType::kF16));
  const TensorView y = device_.Output(1, n, DType::kF32);
  ASSERT_TRUE(Linear(device_.get(), {device_.Activations({1.0f}, 1, 1), packed->get(), y}).ok());
  const std::vector<float> want = Weights(values, DType::kF16);
  EXPECT_EQ(FirstDifference(device_.Download(y), Doubles(want.begin(), want.end()), 0, 0), "");
}

TEST_P(DenseParity, EmbeddingCopiesTheRowsOfItsTokens) {
  Random random(3);
  const int64_t vocab = 50, cols = 37;
  const std::vector<int32_t> ids = {0, 49, 7, 7, 23};
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const std::vector<float> table = Rounded(random.Normal(vocab * cols), dtype);
    const TensorView out = device_.Output(5, cols, device_.activation());
    ASSERT_TRUE(EmbedTokens(device_.get(), {device_.UploadArray(ids),
                                            device_.Upload(table, vocab, cols, dtype), out})
                    .ok());
    std::vector<float> want;
    for (int32_t id : ids) {
      want.insert(want.end(), table.begin() + id * cols, table.begin() + (id + 1) * cols);
    }
    EXPECT_EQ(device_.Download(out), Input(want));
  }
}

TEST_P(DenseParity, RmsNormFollowsItsFormula) {
  Random random(4);
  for (int64_t cols : {1, 5, 16, 64, 100, 1030, 4096, 9000}) {
    for (bool with_delta : {false, true}) {
      for (bool with_out : {false, true}) {
        device_.set_extra_stride(with_delta && cols % 8 == 0 ? 8 : 3);
        const int64_t rows = 9;
        const double epsilon = 1e-5;
        std::vector<float> hidden = Input(random.Normal(rows * cols));
        const std::vector<float> delta = Input(random.Normal(rows * cols));
        const std::vector<float> weight = random.Normal(cols);
        const TensorView device_hidden = device_.Activations(hidden, rows, cols);
        AddRmsNormParams params = {.hidden = device_hidden,
                                   .delta = {},
                                   .weight = device_.UploadArray(weight),
                                   .epsilon = static_cast<float>(epsilon),
                                   .out = {}};
        if (with_delta) params.delta = device_.Activations(delta, rows, cols);
        if (with_out) params.out = device_.Output(rows, cols, device_.activation());
        ASSERT_TRUE(AddRmsNorm(device_.get(), params).ok());
        std::vector<double> sums, normed;
        for (int64_t row = 0; row < rows; ++row) {
          double squares = 0;
          for (int64_t i = 0; i < cols; ++i) {
            const double x = static_cast<double>(hidden[row * cols + i]) +
                             (with_delta ? static_cast<double>(delta[row * cols + i]) : 0.0);
            sums.push_back(x);
            squares += x * x;
          }
          const double factor = 1.0 / std::sqrt(squares / cols + epsilon);
          for (int64_t i = 0; i < cols; ++i) {
            normed.push_back(sums[row * cols + i] * factor * weight[i]);
          }
        }
        EXPECT_EQ(Difference(device_hidden, sums), "");
        if (with_out) {
          EXPECT_EQ(Difference(params.out, normed), "");
        }
      }
    }
  }
}

TEST_P(DenseParity, SwiGluFollowsItsFormulaAtEverySize) {
  Random random(5);
  for (int64_t cols : {1, 15, 64, 100, 2056}) {  // the last with rows that suit 16-byte accesses
    std::vector<float> gate_up = Input(random.Normal(4 * 2 * cols, 4.0f));
    device_.set_extra_stride(cols == 2056 ? 8 : 3);
    gate_up[0] = -200.0f;  // saturates
    gate_up[1] = 200.0f;
    const TensorView out = device_.Output(4, cols, device_.activation());
    ASSERT_TRUE(SwiGlu(device_.get(), {device_.Activations(gate_up, 4, 2 * cols), out}).ok());
    std::vector<double> want;
    for (int row = 0; row < 4; ++row) {
      for (int64_t i = 0; i < cols; ++i) {
        const double gate = gate_up[row * 2 * cols + i];
        const double up = gate_up[row * 2 * cols + cols + i];
        want.push_back(gate * ReferenceSigmoid(gate) * up);
      }
    }
    EXPECT_EQ(Difference(out, want), "");
  }
}

TEST_P(DenseParity, LinearSwiGluHasTheBitsOfTheTwoOps) {
  Random random(6);
  for (const LinearCase& c : {LinearCase{1, 1, 1}, {1, 24, 64}, {3, 100, 512}, {8, 129, 1032},
                              {9, 40, 2056}, {16, 1100, 4096}, {2, 37, 50}, {17, 64, 128}}) {
    device_.set_extra_stride(c.k % 8 == 0 ? 8 : 3);
    SCOPED_TRACE(::testing::Message() << c.m << " x " << c.n << " x " << c.k);
    const HostMatrix host(Weights(random.Normal(2 * c.n * c.k), DType::kBF16), 2 * c.n, c.k,
                          DType::kBF16);
    const auto packed = PackMatrix(device_.get(), {{host.view()}});
    ASSERT_TRUE(packed.ok()) << packed.status();
    const TensorView x = device_.Activations(Factor(random.Normal(c.m * c.k, 0.2f), DType::kBF16),
                                             c.m, c.k);
    const TensorView gate_up = device_.Output(c.m, 2 * c.n, device_.activation());
    const TensorView want = device_.Output(c.m, c.n, device_.activation());
    ASSERT_TRUE(Linear(device_.get(), {x, packed->get(), gate_up}).ok());
    ASSERT_TRUE(SwiGlu(device_.get(), {gate_up, want}).ok());
    const TensorView room = device_.Output(c.m, 2 * c.n, device_.activation());
    const TensorView out = device_.Output(c.m, c.n, device_.activation());
    ASSERT_TRUE(LinearSwiGlu(device_.get(), {x, packed->get(), room, out}).ok());
    EXPECT_EQ(device_.Download(out), device_.Download(want));
  }
}

TEST_P(DenseParity, GatherTakesTheNamedRows) {
  Random random(6);
  const std::vector<float> x = Input(random.Normal(10 * 21));
  const std::vector<int32_t> rows = {9, 0, 4, 4};
  const TensorView out = device_.Output(4, 21, device_.activation());
  ASSERT_TRUE(GatherRows(device_.get(), {device_.Activations(x, 10, 21), device_.UploadArray(rows),
                                         out})
                  .ok());
  std::vector<float> want;
  for (int32_t row : rows) {
    want.insert(want.end(), x.begin() + row * 21, x.begin() + (row + 1) * 21);
  }
  EXPECT_EQ(device_.Download(out), want);
}

INSTANTIATE_TEST_SUITE_P(Devices, DenseParity, ::testing::ValuesIn(TestDevices()),
                         [](const auto& info) { return DeviceName(info.param); });

}  // namespace
}  // namespace hyserve::kernels::testing
