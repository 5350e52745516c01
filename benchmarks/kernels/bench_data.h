// Random matrices in host memory, and checks that end the program with a message.
#ifndef HYSERVE_BENCHMARKS_KERNELS_BENCH_DATA_H_
#define HYSERVE_BENCHMARKS_KERNELS_BENCH_DATA_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tensor/tensor.h"

namespace hyserve::bench {

// A matrix of normally distributed f32 or bf16 numbers.
class HostArray {
 public:
  HostArray(int64_t rows, int64_t cols, tensor::DType dtype, uint64_t seed);
  HostArray(const HostArray&) = delete;
  const tensor::TensorView& view() const { return view_; }
  float At(int64_t row, int64_t col) const;
  void* data() { return memory_.get(); }

 private:
  struct Free {
    void operator()(void* memory) const;
  };
  std::unique_ptr<void, Free> memory_;  // in huge pages, as on the device
  tensor::TensorView view_;
};

void Must(const absl::Status& status);
template <typename T>
T Must(absl::StatusOr<T> value) {
  Must(value.status());
  return *std::move(value);
}
void CheckNear(double got, double want, double tolerance, const std::string& what);

}  // namespace hyserve::bench

#endif  // HYSERVE_BENCHMARKS_KERNELS_BENCH_DATA_H_
