#include "benchmarks/kernels/ceilings.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "benchmarks/kernels/report.h"

namespace hyserve::bench {
namespace {

using tensor::CpuDevice;
using tensor::Isa;

constexpr int kChains = 12;
constexpr int64_t kSteps = 1 << 20;

__attribute__((target("avx512f"))) float Fma512() {
  __m512 acc[kChains];
  for (__m512& a : acc) a = _mm512_set1_ps(1.0f);
  const __m512 x = _mm512_set1_ps(0.999999f);
  const __m512 y = _mm512_set1_ps(1e-7f);
  for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = _mm512_fmadd_ps(acc[c], x, y);
  }
  float sum = 0;
  for (const __m512& a : acc) sum += _mm512_cvtss_f32(a);
  return sum;
}

__attribute__((target("avx512f,avx512bf16"))) float Dot512() {
  __m512 acc[kChains];
  for (__m512& a : acc) a = _mm512_set1_ps(1.0f);
  const __m512bh x = (__m512bh)_mm512_set1_epi32(0x3c003c00);
  for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = _mm512_dpbf16_ps(acc[c], x, x);
  }
  float sum = 0;
  for (const __m512& a : acc) sum += _mm512_cvtss_f32(a);
  return sum;
}

__attribute__((target("avx2,fma"))) float Fma256() {
  __m256 acc[kChains];
  for (__m256& a : acc) a = _mm256_set1_ps(1.0f);
  const __m256 x = _mm256_set1_ps(0.999999f);
  const __m256 y = _mm256_set1_ps(1e-7f);
  for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = _mm256_fmadd_ps(acc[c], x, y);
  }
  float sum = 0;
  for (const __m256& a : acc) sum += _mm256_cvtss_f32(a);
  return sum;
}

float MulAdd128() {
  __m128 acc[kChains];
  for (__m128& a : acc) a = _mm_set1_ps(1.0f);
  const __m128 x = _mm_set1_ps(0.999999f);
  const __m128 y = _mm_set1_ps(1e-7f);
  for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = _mm_add_ps(_mm_mul_ps(acc[c], x), y);
  }
  float sum = 0;
  for (const __m128& a : acc) sum += _mm_cvtss_f32(a);
  return sum;
}

uint64_t ReadAll(const uint64_t* data, int64_t count) {
  __m128i sum[8];
  for (__m128i& s : sum) s = _mm_setzero_si128();
  for (int64_t i = 0; i < count; i += 16) {
    _mm_prefetch(reinterpret_cast<const char*>(data + i) + 2048, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(data + i) + 2112, _MM_HINT_T0);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      sum[j] = _mm_add_epi64(
          sum[j], _mm_load_si128(reinterpret_cast<const __m128i*>(data + i + 2 * j)));
    }
  }
  __m128i total = _mm_setzero_si128();
  for (const __m128i& s : sum) total = _mm_add_epi64(total, s);
  return static_cast<uint64_t>(_mm_cvtsi128_si64(total));
}

template <typename Body>
double BestSeconds(int repeats, Body body) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const double begin = Now();
    body();
    best = std::min(best, Now() - begin);
  }
  return best;
}

double PeakOf(CpuDevice& device, float (*loop)(), double operations_per_step) {
  const int threads = device.pool().num_threads();
  std::vector<float> sink(threads * 16);
  const double seconds = BestSeconds(5, [&] {
    device.pool().ParallelFor(threads, [&](int64_t item, int) { sink[item * 16] = loop(); });
  });
  return operations_per_step * kChains * kSteps * threads / seconds / 1e9;
}

}  // namespace

double PeakGflops(CpuDevice& device) {
  if (device.isa() >= Isa::kAvx512) return PeakOf(device, Fma512, 32);
  if (device.isa() == Isa::kAvx2) return PeakOf(device, Fma256, 16);
  return PeakOf(device, MulAdd128, 8);
}

double PeakBf16Gflops(CpuDevice& device) {
  return device.isa() == Isa::kAvx512Bf16 ? PeakOf(device, Dot512, 64) : 0;
}

double ReadGbPerSecond(CpuDevice& device) {
  constexpr int64_t kBytes = int64_t{512} << 20;
  constexpr int64_t kPieceBytes = int64_t{4} << 20;
  auto buffer = device.Allocate(kBytes);
  if (!buffer.ok()) return 0;
  std::memset(buffer->data(), 1, kBytes);
  std::vector<uint64_t> sink(device.pool().num_threads() * 8);
  const double seconds = BestSeconds(5, [&] {
    device.pool().ParallelFor(kBytes / kPieceBytes, [&](int64_t item, int thread) {
      const char* piece = static_cast<const char*>(buffer->data()) + item * kPieceBytes;
      sink[thread * 8] += ReadAll(reinterpret_cast<const uint64_t*>(piece), kPieceBytes / 8);
    });
  });
  return kBytes / seconds / 1e9;
}

}  // namespace hyserve::bench
