// The mixture of experts as a sequence of kernels: which ones, and where their intermediate results
// lie. Plain host code, enqueues only.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_MOE_FORWARD_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_MOE_FORWARD_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "engine/kernels/cuda/moe_kernels.h"

namespace hyserve::kernels::cuda {

// One kind of matrix of all experts, on the device: addresses, and maps in boxes of kMoeBoxRows
// rows by 64 columns. Every matrix is bf16 with the same shape and row stride.
struct ExpertMatrices {
  const void* const* weights = nullptr;  // [num_experts]
  const CUtensorMap* maps = nullptr;     // [num_experts]
  int64_t weight_stride = 0;
};

// kSkinny streams the chosen experts' weights, kGrouped multiplies tiles of many rows.
enum class MoePath { kAuto, kSkinny, kGrouped };

struct MoeForwardArgs {
  const void* x = nullptr;  // bf16 [rows, hidden], as x of SkinnyGemmArgs
  int64_t x_stride = 0;
  MoeRouteArgs route;
  ExpertMatrices gate_up;  // [2 * intermediate, hidden]
  ExpertMatrices down;     // [hidden, intermediate]
  int rows = 0;  // 1 .. MoeRowsPerPass
  int hidden = 0;
  int intermediate = 0;
  int num_experts = 0;  // <= kMoeMaxExperts
  int per_token = 0;    // <= kMoeMaxExpertsPerToken
  void* out = nullptr;  // bf16 [rows, hidden], any stride
  int64_t out_stride = 0;
  int num_sms = 0;
  MoePath path = MoePath::kAuto;
};

// More rows take several calls, so that the workspace stays bounded.
int64_t MoeRowsPerPass(int per_token);
size_t MoeWorkspaceBytes(const MoeForwardArgs& args);
// The most that any number of rows up to args.rows needs.
size_t MoeMostWorkspaceBytes(const MoeForwardArgs& args);
// workspace: 256-byte aligned.
cudaError_t RunMoe(const MoeForwardArgs& args, std::byte* workspace, cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_MOE_FORWARD_H_
