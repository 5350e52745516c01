// Eight bf16 elements at a time: 16-byte accesses where the caller knows that every row starts at a
// multiple of 16 bytes, element by element otherwise. Which lanes hold which elements is the same
// in both, so that results have the same bits whatever the alignment.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_VECTOR_IO_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_VECTOR_IO_CUH_

#include <cuda_bf16.h>

#include <cstdint>

namespace hyserve::kernels::cuda {

inline constexpr int kVector = 8;

struct Floats8 {
  float v[kVector];
};

__device__ inline Floats8 Unpack(const uint4& raw) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  Floats8 x;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x.v[2 * i] = __uint_as_float(words[i] << 16);
    x.v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
  return x;
}

// Rounds to nearest even.
__device__ inline uint4 Pack(const Floats8& x) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x.v[2 * i], x.v[2 * i + 1]);
    words[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// The first count elements from p; zeros after them. kAligned: p is 16-byte aligned and count is 8.
template <bool kAligned>
__device__ inline uint4 LoadPacked(const __nv_bfloat16* p, int count = kVector) {
  if constexpr (kAligned) {
    return *reinterpret_cast<const uint4*>(p);
  } else {
    const auto* bits = reinterpret_cast<const uint16_t*>(p);
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = 2 * i < count ? bits[2 * i] : 0;
      const uint32_t high = 2 * i + 1 < count ? bits[2 * i + 1] : 0;
      words[i] = low | high << 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
}

template <bool kAligned>
__device__ inline void StorePacked(__nv_bfloat16* p, const uint4& raw, int count = kVector) {
  if constexpr (kAligned) {
    *reinterpret_cast<uint4*>(p) = raw;
  } else {
    auto* bits = reinterpret_cast<uint16_t*>(p);
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i < count) bits[i] = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
    }
  }
}

template <bool kAligned>
__device__ inline Floats8 Load8(const __nv_bfloat16* p, int count = kVector) {
  return Unpack(LoadPacked<kAligned>(p, count));
}

template <bool kAligned>
__device__ inline void Store8(__nv_bfloat16* p, const Floats8& x, int count = kVector) {
  StorePacked<kAligned>(p, Pack(x), count);
}

__device__ inline float Silu(float x) { return x * __fdividef(1.0f, 1.0f + __expf(-x)); }

// n / divisor and n % divisor for n < 2^31 without a division (Granlund and Montgomery, 1994).
class FastDivide {
 public:
  // REQUIRES: 1 <= divisor < 2^31.
  __host__ explicit FastDivide(uint32_t divisor) : divisor_(divisor) {
    while ((uint64_t{1} << shift_) < divisor) ++shift_;
    multiplier_ = static_cast<uint32_t>(
        ((uint64_t{1} << 32) * ((uint64_t{1} << shift_) - divisor)) / divisor + 1);
  }
  __host__ __device__ uint32_t divisor() const { return divisor_; }
  __device__ uint32_t Quotient(uint32_t n) const {
    return (__umulhi(n, multiplier_) + n) >> shift_;
  }
  __device__ uint32_t Remainder(uint32_t n, uint32_t quotient) const {
    return n - quotient * divisor_;
  }

 private:
  uint32_t divisor_;
  uint32_t multiplier_ = 0;
  uint32_t shift_ = 0;
};

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_VECTOR_IO_CUH_
