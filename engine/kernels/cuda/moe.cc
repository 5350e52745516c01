#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "engine/kernels/cuda/cuda_ops.h"
#include "engine/kernels/cuda/expert_table.h"
#include "engine/kernels/cuda/moe_forward.h"
#include "engine/kernels/cuda/operand.h"
#include "engine/kernels/cuda/packed_matrix.h"

namespace hyserve::kernels::cuda {
namespace {

absl::StatusOr<ExpertMatrices> TableOf(CudaDevice& device,
                                       std::span<const std::unique_ptr<PackedMatrix>> experts) {
  return static_cast<const CudaPackedMatrix&>(*experts[0]).expert_table().Get(device, experts);
}

// A call, but for where its rows lie.
struct MoeCall {
  MoeForwardArgs args;           // rows: of one pass
  bool stage = false;            // x goes through the workspace
  size_t staging_offset = 0;
  size_t workspace_bytes = 0;    // of any call of as many rows or fewer
};

absl::StatusOr<MoeCall> PlanCall(CudaDevice& device, const MoeParams& params) {
  const int64_t num_experts = params.router_logits.cols;
  if (num_experts > kMoeMaxExperts || params.experts_per_token > kMoeMaxExpertsPerToken) {
    return absl::InvalidArgumentError(
        absl::StrCat("MixtureOfExperts on CUDA: at most ", kMoeMaxExperts, " experts and ",
                     kMoeMaxExpertsPerToken, " a token, are ", num_experts, " and ",
                     params.experts_per_token));
  }
  const absl::StatusOr<ExpertMatrices> gate_up = TableOf(device, params.gate_up);
  if (!gate_up.ok()) return gate_up.status();
  const absl::StatusOr<ExpertMatrices> down = TableOf(device, params.down);
  if (!down.ok()) return down.status();

  MoeCall call;
  MoeForwardArgs& args = call.args;
  args.route = {.bias = params.correction_bias,
                .normalize = params.normalize,
                .scaling_factor = params.scaling_factor};
  args.gate_up = *gate_up;
  args.down = *down;
  args.rows = static_cast<int>(
      std::min(params.x.rows, MoeRowsPerPass(params.experts_per_token)));
  args.hidden = static_cast<int>(params.x.cols);
  args.intermediate = static_cast<int>(params.down[0]->in_features());
  args.num_experts = static_cast<int>(num_experts);
  args.per_token = params.experts_per_token;
  args.num_sms = device.num_sms();
  call.stage = !IsVectorOperand(params.x);
  call.staging_offset = (MoeMostWorkspaceBytes(args) + 255) / 256 * 256;
  call.workspace_bytes = call.staging_offset +
                         (call.stage ? args.rows * PaddedColumns(params.x.cols) * 2 : 0);
  return call;
}

}  // namespace

absl::Status MixtureOfExperts(CudaDevice& device, const MoeParams& params) {
  const int64_t rows = params.x.rows;
  if (rows == 0) return absl::OkStatus();
  const absl::StatusOr<MoeCall> call = PlanCall(device, params);
  if (!call.ok()) return call.status();
  const absl::StatusOr<std::byte*> workspace =
      device.Workspace(CudaDevice::WorkspaceSlot::kMoe, call->workspace_bytes);
  if (!workspace.ok()) return workspace.status();
  MoeForwardArgs args = call->args;
  args.route.logits_stride = params.router_logits.row_stride;
  args.out_stride = params.out.row_stride;
  const int64_t per_pass = args.rows;
  for (int64_t begin = 0; begin < rows; begin += per_pass) {
    const TensorView x = params.x.Rows(begin, std::min(per_pass, rows - begin));
    args.rows = static_cast<int>(x.rows);
    args.x = x.data;
    args.x_stride = x.row_stride;
    if (call->stage) {
      std::byte* const staged = *workspace + call->staging_offset;
      if (absl::Status status = StageVectorOperand(device, x, staged); !status.ok()) {
        return status;
      }
      args.x = staged;
      args.x_stride = PaddedColumns(x.cols);
    }
    args.route.logits = params.router_logits.Row<const float>(begin);
    args.out = params.out.Row<uint16_t>(begin);
    if (absl::Status status =
            tensor::CudaStatus(RunMoe(args, *workspace, device.stream()), "MixtureOfExperts");
        !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status ReserveMixtureOfExperts(CudaDevice& device, const MoeParams& params) {
  const absl::StatusOr<MoeCall> call = PlanCall(device, params);
  if (!call.ok()) return call.status();
  return device.ReserveWorkspace(CudaDevice::WorkspaceSlot::kMoe, call->workspace_bytes);
}

}  // namespace hyserve::kernels::cuda
