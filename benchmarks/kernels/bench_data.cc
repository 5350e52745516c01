#include "benchmarks/kernels/bench_data.h"

#include <sys/mman.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "engine/tensor/convert.h"

namespace hyserve::bench {

using tensor::DType;

void HostArray::Free::operator()(void* memory) const { std::free(memory); }

HostArray::HostArray(int64_t rows, int64_t cols, DType dtype, uint64_t seed) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t bytes = (rows * cols * tensor::SizeOf(dtype) + kHugePage) / kHugePage * kHugePage;
  memory_.reset(std::aligned_alloc(kHugePage, bytes));
  if (memory_ == nullptr) Must(absl::ResourceExhaustedError("benchmark data"));
  madvise(memory_.get(), bytes, MADV_HUGEPAGE);
  view_ = {memory_.get(), dtype, rows, cols, cols};
  // Sums of four uniform numbers: close to normal, and quick to make.
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (int64_t i = 0; i < rows * cols; ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    float sum = 0;
    for (int part = 0; part < 4; ++part) {
      sum += static_cast<float>((state >> (16 * part)) & 0xffff) / 65536.0f - 0.5f;
    }
    const float value = sum * 1.732f;
    if (dtype == DType::kF32) {
      static_cast<float*>(view_.data)[i] = value;
    } else {
      static_cast<uint16_t*>(view_.data)[i] = tensor::FloatToBf16(value);
    }
  }
}

float HostArray::At(int64_t row, int64_t col) const {
  return view_.dtype == DType::kF32 ? view_.Row<const float>(row)[col]
                                    : tensor::Bf16ToFloat(view_.Row<const uint16_t>(row)[col]);
}

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

void CheckNear(double got, double want, double tolerance, const std::string& what) {
  if (std::abs(got - want) <= tolerance) return;
  std::fprintf(stderr, "%s is wrong: got %g, want %g\n", what.c_str(), got, want);
  std::exit(1);
}

}  // namespace hyserve::bench
