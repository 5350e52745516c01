#include "engine/kernels/cuda/skinny_gemm.cuh"

namespace hyserve::kernels::cuda {
namespace {

constexpr int kSms = 132;  // of H100 and H200; only speed depends on it

// kSplit is a function of K alone, so that a row's bits do not depend on the number of rows. The
// other parameters only say how far loads run ahead and how many CTAs share a multiprocessor: what
// measured best for so many CTAs.
template <bool kSwiGlu, int kSplit>
cudaError_t Launch(const SkinnyGemmArgs& args, cudaStream_t stream) {
  constexpr int kOuts = kSkinnyTileOuts<kSwiGlu> * (kSkinnyWarps / kSplit);
  const int64_t ctas = (args.out_features + kOuts - 1) / kOuts;
  if (args.rows <= 8) {
    if (ctas <= kSms) return LaunchSkinnyVariant<kSwiGlu, kSplit, 1, 1, 6, 1>(args, stream);
    if (ctas <= 2 * kSms) return LaunchSkinnyVariant<kSwiGlu, kSplit, 1, 1, 4, 2>(args, stream);
    if (ctas <= 3 * kSms) return LaunchSkinnyVariant<kSwiGlu, kSplit, 1, 1, 3, 3>(args, stream);
    return LaunchSkinnyVariant<kSwiGlu, kSplit, 1, 1, 2, 4>(args, stream);
  }
  if (ctas <= kSms) return LaunchSkinnyVariant<kSwiGlu, kSplit, 1, 2, 4, 1>(args, stream);
  if (ctas <= 2 * kSms) return LaunchSkinnyVariant<kSwiGlu, kSplit, 1, 2, 3, 2>(args, stream);
  if (ctas <= 3 * kSms) return LaunchSkinnyVariant<kSwiGlu, kSplit, 1, 2, 2, 3>(args, stream);
  return LaunchSkinnyVariant<kSwiGlu, kSplit, 2, 2, 2, 2>(args, stream);
}

template <bool kSwiGlu>
cudaError_t Launch(const SkinnyGemmArgs& args, cudaStream_t stream) {
  if (args.in_features <= 1024) return Launch<kSwiGlu, 2>(args, stream);
  if (args.in_features <= 2048) return Launch<kSwiGlu, 4>(args, stream);
  return Launch<kSwiGlu, 8>(args, stream);
}

}  // namespace

cudaError_t LaunchSkinnyGemm(const SkinnyGemmArgs& args, cudaStream_t stream) {
  return args.swiglu ? Launch<true>(args, stream) : Launch<false>(args, stream);
}

}  // namespace hyserve::kernels::cuda
