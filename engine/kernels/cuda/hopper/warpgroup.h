// What warpgroups of one block need to work as producer and consumers.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_HOPPER_WARPGROUP_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_HOPPER_WARPGROUP_H_

#include <cstdint>

namespace hyserve::kernels::cuda::hopper {

inline constexpr int kWarpgroupThreads = 128;

// Registers per thread of the calling warpgroup from here on; multiples of 8. The sum over the
// block may not exceed what it was launched with, and the kernel needs __launch_bounds__(n, 1).
template <int kRegisters>
__device__ __forceinline__ void ReduceRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void IncreaseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// Hardware barriers 1 .. 15 of the block (0 is __syncthreads). threads: all that arrive or wait.
__device__ __forceinline__ void NamedBarrierSync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void NamedBarrierArrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// True in one thread of the calling (converged) warp.
__device__ __forceinline__ bool ElectOne() {
  uint32_t elected;
  asm volatile(
      "{\n.reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(elected));
  return elected != 0;
}

// 2^x; 0 for -infinity. Denormal results are flushed.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace hyserve::kernels::cuda::hopper

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_HOPPER_WARPGROUP_H_
