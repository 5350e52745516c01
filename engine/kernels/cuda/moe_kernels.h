// Launchers of the mixture of experts. All arrays are on the device; nothing waits for the GPU.
//
// Order of things: LaunchMoeRoute chooses the experts of every row and sorts the pairs (row,
// expert) by expert into slots 0 .. rows * per_token - 1, cut into tiles of at most tile_rows slots
// of one expert. The product kernels take their work from the list of tiles, whose length only the
// device knows; the host sizes grids by MaxMoeTiles. LaunchMoeCombine adds the slots of every row.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_MOE_KERNELS_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_MOE_KERNELS_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

namespace hyserve::kernels::cuda {

constexpr int kMoeMaxExperts = 1024;
constexpr int kMoeMaxExpertsPerToken = 32;

struct MoeTile {
  int expert;
  int begin;  // first slot
  int rows;   // 1 .. tile_rows
  int unused;
};

struct MoePlan {
  int rows = 0;
  int num_experts = 0;
  int per_token = 0;
  int tile_rows = 0;
  int* expert_of = nullptr;    // [rows, per_token], ascending in each row
  float* weight_of = nullptr;  // [rows, per_token]
  int* slot_of = nullptr;      // [rows, per_token]
  int* row_of = nullptr;       // [rows * per_token], of a slot
  int* count = nullptr;        // [num_experts] pairs of an expert
  int* begin = nullptr;        // [num_experts] first slot of an expert
  MoeTile* tiles = nullptr;    // [MaxMoeTiles], ascending
  int* num_tiles = nullptr;
};

inline int64_t MaxMoeTiles(int64_t pairs, int64_t num_experts, int64_t tile_rows) {
  return std::min(pairs, num_experts + pairs / tile_rows);
}

struct MoeRouteArgs {
  const float* logits = nullptr;  // [rows, num_experts]
  int64_t logits_stride = 0;
  const float* bias = nullptr;  // [num_experts] or null
  bool normalize = true;
  float scaling_factor = 1.0f;
};
cudaError_t LaunchMoeRoute(const MoeRouteArgs& args, const MoePlan& plan, cudaStream_t stream);

// sorted[slot] = x[row_of[slot]] for whole 16-byte pieces: columns up to the next multiple of 8.
struct MoeGatherArgs {
  const void* x = nullptr;  // bf16 [rows, cols], as x of SkinnyGemmArgs
  int64_t x_stride = 0;
  void* sorted = nullptr;  // bf16 [rows * per_token, cols], rows 16-byte aligned
  int64_t sorted_stride = 0;
  int cols = 0;
};
cudaError_t LaunchMoeGather(const MoeGatherArgs& args, const MoePlan& plan, cudaStream_t stream);

// out[row] = sum over the row's pairs, in ascending order of expert, of weight_of * y[slot_of].
struct MoeCombineArgs {
  const void* y = nullptr;  // [rows * per_token, cols], f32 or bf16
  int64_t y_stride = 0;
  bool y_is_f32 = false;
  void* out = nullptr;  // bf16 [rows, cols], any stride
  int64_t out_stride = 0;
  int cols = 0;
};
cudaError_t LaunchMoeCombine(const MoeCombineArgs& args, const MoePlan& plan, cudaStream_t stream);

// The products for few rows per expert: every tile streams its expert's weights once. act[slot] =
// silu(gate x) * (up x), x gathered by row; columns of act up to the next multiple of 8 become
// zero. y[slot] = down act[slot]. tile_rows must be kMoeSkinnyRows. Down reads the plan before the
// kernel in front of it has ended, which must be gate and up.
constexpr int kMoeSkinnyRows = 8;
struct MoeSkinnyArgs {
  const void* const* weights = nullptr;  // [num_experts] bf16 matrices; rows as in SkinnyGemmArgs
  int64_t weight_stride = 0;
  const void* in = nullptr;  // bf16: x [rows, in_features] for gate and up, act for down
  int64_t in_stride = 0;
  void* out = nullptr;  // act: bf16 [slots, intermediate], y: f32 [slots, hidden]
  int64_t out_stride = 0;
  int in_features = 0;
  int out_features = 0;  // columns of out
};
cudaError_t LaunchMoeSkinnyGateUp(const MoeSkinnyArgs& args, const MoePlan& plan,
                                  cudaStream_t stream);
cudaError_t LaunchMoeSkinnyDown(const MoeSkinnyArgs& args, const MoePlan& plan,
                                cudaStream_t stream);

// The products for many rows, by wgmma and the tensor memory accelerator. tile_rows must be
// kMoeGroupedRows. in_map describes [slots, in_features] in order of slots; it and the maps of the
// weights have boxes of kMoeBoxRows rows by 64 columns. Out columns up to the next multiple of 8
// are written.
constexpr int kMoeBoxRows = 128;
constexpr int kMoeGroupedRows = kMoeBoxRows;
struct MoeGroupedArgs {
  const CUtensorMap* weight_maps = nullptr;  // device, [num_experts]
  void* out = nullptr;  // bf16 [slots, out_features], rows 16-byte aligned
  int64_t out_stride = 0;
  int in_features = 0;
  int out_features = 0;  // columns of out: the intermediate size for gate and up
  int num_sms = 0;
};
cudaError_t LaunchMoeGroupedGateUp(const MoeGroupedArgs& args, const CUtensorMap& in_map,
                                   const MoePlan& plan, cudaStream_t stream);
cudaError_t LaunchMoeGroupedDown(const MoeGroupedArgs& args, const CUtensorMap& in_map,
                                 const MoePlan& plan, cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_MOE_KERNELS_H_
