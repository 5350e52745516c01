// What Linear promises on a GPU beyond the formula: up to 16 rows a row's bits do not depend on the
// rows beside it, and equal calls give equal bits.
#include <gtest/gtest.h>

#include <vector>

#include "engine/kernels/ops.h"
#include "tests/engine/kernels/test_device.h"

namespace hyserve::kernels::testing {
namespace {

using tensor::DType;
using tensor::TensorView;

class LinearCuda : public ::testing::TestWithParam<int> {
 protected:
  LinearCuda() : device_({"cuda", 1, "auto"}) { device_.set_extra_stride(GetParam()); }

  // y of the first rows of x.
  std::vector<float> Run(const PackedMatrix& weight, const std::vector<float>& x, int64_t rows,
                         DType dtype) {
    const int64_t k = weight.in_features();
    const TensorView y = device_.Output(rows, weight.out_features(), dtype);
    const std::vector<float> some(x.begin(), x.begin() + rows * k);
    EXPECT_TRUE(Linear(device_.get(), {device_.Activations(some, rows, k), &weight, y}).ok());
    return device_.Download(y);
  }

  TestDevice device_;
};

TEST_P(LinearCuda, FewRowsDoNotDependOnTheirCompany) {
  Random random(91);
  struct Sizes {
    int64_t n, k;
  };
  for (const Sizes& sizes : {Sizes{200, 264}, {520, 1032}, {264, 2056}, {136, 8192}, {33, 77}}) {
    SCOPED_TRACE(::testing::Message() << sizes.n << " x " << sizes.k);
    const HostMatrix host(random.Normal(sizes.n * sizes.k), sizes.n, sizes.k, DType::kBF16);
    const auto weight = PackMatrix(device_.get(), {{host.view()}});
    ASSERT_TRUE(weight.ok()) << weight.status();
    const std::vector<float> x = random.Normal(700 * sizes.k);
    const std::vector<float> most = Run(**weight, x, 16, DType::kF32);
    for (int64_t rows : {1, 2, 8, 9, 13}) {
      const std::vector<float> want(most.begin(), most.begin() + rows * sizes.n);
      EXPECT_TRUE(SameBits(Run(**weight, x, rows, DType::kF32), want)) << rows << " rows";
    }
    const std::vector<float> many = Run(**weight, x, 700, DType::kF32);
    EXPECT_TRUE(SameBits(Run(**weight, x, 700, DType::kF32), many));
  }
}

TEST_P(LinearCuda, Bf16OutputsAreTheRoundedF32Outputs) {
  Random random(92);
  const int64_t n = 137, k = 520;
  const HostMatrix host(random.Normal(n * k), n, k, DType::kBF16);
  const auto weight = PackMatrix(device_.get(), {{host.view()}});
  ASSERT_TRUE(weight.ok()) << weight.status();
  const std::vector<float> x = random.Normal(300 * k);
  for (int64_t rows : {1, 8, 12, 16}) {
    EXPECT_TRUE(SameBits(Run(**weight, x, rows, DType::kBF16),
                         Rounded(Run(**weight, x, rows, DType::kF32), DType::kBF16)))
        << rows << " rows";
  }
  // Above, the library chooses by dtype; the sum may be one of another order.
  const std::vector<float> f32 = Run(**weight, x, 300, DType::kF32);
  EXPECT_EQ(FirstRowDifference(Run(**weight, x, 300, DType::kBF16),
                               std::vector<double>(f32.begin(), f32.end()), n, kBf16Tolerance),
            "");
}

INSTANTIATE_TEST_SUITE_P(Strides, LinearCuda, ::testing::Values(3, 8));

}  // namespace
}  // namespace hyserve::kernels::testing
