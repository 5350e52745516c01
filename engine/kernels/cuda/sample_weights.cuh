// Weights exp((logit - max) / temperature) as integers in units of 2^-kWeightBits of the best
// token's: their sums are exact, so they depend neither on the order of threads nor on how a row is
// cut up. Keys order tokens as integers: by logit, equal ones by lower id.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_WEIGHTS_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_WEIGHTS_CUH_

#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>

#include "engine/kernels/cuda/block_top_k.cuh"

namespace hyserve::kernels::cuda {

inline constexpr uint32_t kAllLanes = 0xffffffffu;

// Bits after the point of a weight, so that num_cols weights sum to less than 2^63.
__host__ __device__ inline int WeightBits(int64_t num_cols) {
  int bits = 44;
  while (bits > 40 && (num_cols >> (62 - bits)) > 0) --bits;
  return bits;
}

// Larger: a larger logit, or an equal one of a lower id. 0: impossible.
__device__ __forceinline__ uint64_t TokenKey(float logit, int id) {
  if (!(logit > -INFINITY)) return 0;
  return (static_cast<uint64_t>(OrderedKey(logit)) << 32) | ~static_cast<uint32_t>(id);
}
__device__ __forceinline__ int TokenId(uint64_t key) {
  return static_cast<int>(~static_cast<uint32_t>(key));
}
__device__ __forceinline__ float TokenLogit(uint64_t key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float((ordered & 0x80000000u) != 0 ? ordered ^ 0x80000000u : ~ordered);
}

// NaN becomes minus infinity, plus infinity the largest finite float.
__device__ __forceinline__ float Sanitized(float logit) {
  return logit >= -FLT_MAX ? fminf(logit, FLT_MAX) : -INFINITY;
}

// 2^(i / 32) * 2^weight_bits in lane i.
struct WeightRoots {
  __device__ explicit WeightRoots(int weight_bits) {
    const double root = exp2(static_cast<double>(threadIdx.x % 32) / 32);
    high = __double2hiint(root) + (weight_bits << 20);
    low = __double2loint(root);
  }
  int high;
  int low;
};

// The weights of one row at one temperature. 2^t for t <= 0 is 2^(k / 32) * 2^r, |r| <= 1/64. All
// lanes of a warp must call together.
class Weights {
 public:
  __device__ Weights(float max, float temperature, const WeightRoots& roots)
      : max_(max), rate_(1.4426950408889634 / temperature), roots_(roots) {
    // Below it weights are less than half a unit.
    cutoff_ = fmaxf(__double2float_rd(max_ - kNats * temperature), -FLT_MAX);
  }
  // No logit below it has a weight.
  __device__ __forceinline__ float cutoff() const { return cutoff_; }

  __device__ __forceinline__ uint64_t Of(float logit) const {
    const double distance = fmaxf(logit, cutoff_) - max_;
    constexpr double kRound = 0x1.8p47;  // leaves multiples of 1/32 of what is added to it
    const double rounded = fma(distance, rate_, kRound);
    const int k = __double2loint(rounded);
    const double r = fma(distance, rate_, -(rounded - kRound));
    double power = fma(r, 0x1.5d87fe78a6730p-10, 0x1.3b2ab6fba4e77p-7);  // ln(2)^5/5!, ln(2)^4/4!
    power = fma(r, power, 0x1.c6b08d704a0bfp-5);
    power = fma(r, power, 0x1.ebfbdff82c58ep-3);
    power = fma(r, power, 0x1.62e42fefa39efp-1);
    power = fma(r, power, 1.0);
    const int high = __shfl_sync(kAllLanes, roots_.high, k & 31) + ((k >> 5) << 20);
    const int low = __shfl_sync(kAllLanes, roots_.low, k & 31);
    // 2^52 more: the mantissa is the weight as an integer.
    const double shifted = fma(power, __hiloint2double(high, low), 0x1p52);
    const auto bits = static_cast<uint64_t>(__double_as_longlong(shifted));
    return logit >= cutoff_ ? bits & 0xfffffffffffffu : 0;
  }

 private:
  static constexpr double kNats = 32;  // exp(-32) < 2^-46

  double max_;
  double rate_;  // log2(e) / temperature
  float cutoff_;
  WeightRoots roots_;
};

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SAMPLE_WEIGHTS_CUH_
