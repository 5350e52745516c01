#include "engine/kernels/cuda/full_attention_prefill_kernel.h"

#include "engine/kernels/cuda/full_attention_prefill_tile.h"

namespace hyserve::kernels::cuda {

namespace {

template <typename T>
cudaError_t Launch(const PrefillLaunch& launch, int num_sms, cudaStream_t stream) {
  return launch.raw_scores != nullptr ? prefill::LaunchTraits<T, true>(launch, num_sms, stream)
                                      : prefill::LaunchTraits<T, false>(launch, num_sms, stream);
}

}  // namespace

bool PrefillHeadShapeSupported(int head_dim, int v_head_dim) {
  return (head_dim == v_head_dim && (head_dim == 64 || head_dim == 128 || head_dim == 256)) ||
         (head_dim == 192 && v_head_dim == 128);
}

cudaError_t LaunchFullAttentionPrefill(const PrefillLaunch& launch, int head_dim, int v_head_dim,
                                       int num_sms, cudaStream_t stream) {
  using prefill::Schedule;
  using prefill::Traits;
  if (!PrefillHeadShapeSupported(head_dim, v_head_dim)) return cudaErrorInvalidValue;
  switch (head_dim) {
    case 64:
      return Launch<Traits<64, 64, 128, 3, Schedule::kFree, 1>>(launch, num_sms, stream);
    case 128:
      return Launch<Traits<128, 128, 128, 2, Schedule::kFree, 2>>(launch, num_sms, stream);
    case 192:
      return Launch<Traits<192, 128, 128, 2, Schedule::kPingPong, 1>>(launch, num_sms, stream);
    default:
      return Launch<Traits<256, 256, 64, 2, Schedule::kFree, 1>>(launch, num_sms, stream);
  }
}

}  // namespace hyserve::kernels::cuda
