#include "engine/kernels/reserve.h"

#include "engine/kernels/dispatch.h"

namespace hyserve::kernels {
namespace {

template <typename Params>
absl::Status AsStepsNeedIt(tensor::CpuDevice&, const Params&) {
  return absl::OkStatus();
}

}  // namespace

absl::Status ReserveLinear(Device& device, const LinearParams& params) {
  return Dispatch(device, "Linear", AsStepsNeedIt<LinearParams>, cuda::ReserveLinear, params);
}

absl::Status ReserveMixtureOfExperts(Device& device, const MoeParams& params) {
  return Dispatch(device, "MixtureOfExperts", AsStepsNeedIt<MoeParams>,
                  cuda::ReserveMixtureOfExperts, params);
}

absl::Status ReserveFullAttention(Device& device, const AttentionLimits& limits) {
  return Dispatch(device, "FullAttention", AsStepsNeedIt<AttentionLimits>,
                  cuda::ReserveFullAttention, limits);
}

absl::Status ReserveWindowSparseAttention(Device& device, const AttentionLimits& limits) {
  return Dispatch(device, "WindowSparseAttention", AsStepsNeedIt<AttentionLimits>,
                  cuda::ReserveWindowSparseAttention, limits);
}

}  // namespace hyserve::kernels
