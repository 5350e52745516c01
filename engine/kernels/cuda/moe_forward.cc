#include "engine/kernels/cuda/moe_forward.h"

#include <algorithm>

#include "engine/kernels/cuda/matrix_map.h"

namespace hyserve::kernels::cuda {
namespace {

constexpr int64_t kPairsPerPass = 131072;
// From this many pairs per expert on average the grouped kernels are faster.
constexpr int64_t kGroupedPairsPerExpert = 4;

bool IsGrouped(const MoeForwardArgs& args) {
  if (args.path != MoePath::kAuto) return args.path == MoePath::kGrouped;
  return int64_t{args.rows} * args.per_token >= kGroupedPairsPerExpert * args.num_experts;
}

// Hands out pieces of the workspace; with a null base it only counts.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  template <typename T>
  T* Take(int64_t count) {
    std::byte* const at = base_ + used_;
    used_ += (count * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(at);
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

struct Intermediates {
  MoePlan plan;
  uint16_t* act;     // [pairs, intermediate] bf16
  uint16_t* sorted;  // [pairs, hidden] bf16, grouped only
  void* y;           // [pairs, hidden], f32 (skinny) or bf16 (grouped: takes the place of sorted)
};

Intermediates Carve(const MoeForwardArgs& args, Carver& carver) {
  const bool grouped = IsGrouped(args);
  const int64_t pairs = int64_t{args.rows} * args.per_token;
  Intermediates result = {};
  MoePlan& plan = result.plan;
  plan.rows = args.rows;
  plan.num_experts = args.num_experts;
  plan.per_token = args.per_token;
  plan.tile_rows = grouped ? kMoeGroupedRows : kMoeSkinnyRows;
  plan.expert_of = carver.Take<int>(pairs);
  plan.weight_of = carver.Take<float>(pairs);
  plan.slot_of = carver.Take<int>(pairs);
  plan.row_of = carver.Take<int>(pairs);
  plan.count = carver.Take<int>(args.num_experts);
  plan.begin = carver.Take<int>(args.num_experts);
  plan.tiles = carver.Take<MoeTile>(MaxMoeTiles(pairs, args.num_experts, plan.tile_rows));
  plan.num_tiles = carver.Take<int>(1);
  result.act = carver.Take<uint16_t>(pairs * PaddedColumns(args.intermediate));
  if (grouped) {
    result.y = result.sorted = carver.Take<uint16_t>(pairs * PaddedColumns(args.hidden));
  } else {
    result.y = carver.Take<float>(pairs * PaddedColumns(args.hidden));
  }
  return result;
}

cudaError_t Combine(const MoeForwardArgs& args, const Intermediates& from, bool y_is_f32,
                    cudaStream_t stream) {
  return LaunchMoeCombine({.y = from.y,
                           .y_stride = PaddedColumns(args.hidden),
                           .y_is_f32 = y_is_f32,
                           .out = args.out,
                           .out_stride = args.out_stride,
                           .cols = args.hidden},
                          from.plan, stream);
}

cudaError_t RunSkinny(const MoeForwardArgs& args, const Intermediates& to, cudaStream_t stream) {
  MoeSkinnyArgs gate_up;
  gate_up.weights = args.gate_up.weights;
  gate_up.weight_stride = args.gate_up.weight_stride;
  gate_up.in = args.x;
  gate_up.in_stride = args.x_stride;
  gate_up.out = to.act;
  gate_up.out_stride = PaddedColumns(args.intermediate);
  gate_up.in_features = args.hidden;
  gate_up.out_features = args.intermediate;
  if (cudaError_t error = LaunchMoeSkinnyGateUp(gate_up, to.plan, stream); error != cudaSuccess) {
    return error;
  }
  MoeSkinnyArgs down;
  down.weights = args.down.weights;
  down.weight_stride = args.down.weight_stride;
  down.in = to.act;
  down.in_stride = PaddedColumns(args.intermediate);
  down.out = to.y;
  down.out_stride = PaddedColumns(args.hidden);
  down.in_features = args.intermediate;
  down.out_features = args.hidden;
  const cudaError_t error = LaunchMoeSkinnyDown(down, to.plan, stream);
  return error == cudaSuccess ? Combine(args, to, /*y_is_f32=*/true, stream) : error;
}

cudaError_t RunGrouped(const MoeForwardArgs& args, const Intermediates& to, cudaStream_t stream) {
  const int64_t pairs = int64_t{to.plan.rows} * to.plan.per_token;
  CUtensorMap sorted_map;
  CUtensorMap act_map;
  cudaError_t error = EncodeMatrixMap(to.sorted, pairs, args.hidden, PaddedColumns(args.hidden),
                                      kMoeBoxRows, &sorted_map);
  if (error == cudaSuccess) {
    error = EncodeMatrixMap(to.act, pairs, args.intermediate, PaddedColumns(args.intermediate),
                            kMoeBoxRows, &act_map);
  }
  if (error == cudaSuccess) {
    error = LaunchMoeGather({.x = args.x,
                             .x_stride = args.x_stride,
                             .sorted = to.sorted,
                             .sorted_stride = PaddedColumns(args.hidden),
                             .cols = args.hidden},
                            to.plan, stream);
  }
  if (error == cudaSuccess) {
    error = LaunchMoeGroupedGateUp({.weight_maps = args.gate_up.maps,
                                    .out = to.act,
                                    .out_stride = PaddedColumns(args.intermediate),
                                    .in_features = args.hidden,
                                    .out_features = args.intermediate,
                                    .num_sms = args.num_sms},
                                   sorted_map, to.plan, stream);
  }
  if (error == cudaSuccess) {
    error = LaunchMoeGroupedDown({.weight_maps = args.down.maps,
                                  .out = to.y,
                                  .out_stride = PaddedColumns(args.hidden),
                                  .in_features = args.intermediate,
                                  .out_features = args.hidden,
                                  .num_sms = args.num_sms},
                                 act_map, to.plan, stream);
  }
  return error == cudaSuccess ? Combine(args, to, /*y_is_f32=*/false, stream) : error;
}

}  // namespace

int64_t MoeRowsPerPass(int per_token) { return std::max<int64_t>(1, kPairsPerPass / per_token); }

size_t MoeWorkspaceBytes(const MoeForwardArgs& args) {
  Carver counter(nullptr);
  Carve(args, counter);
  return counter.used();
}

// Each of the two ways needs the most for the most rows that go it.
size_t MoeMostWorkspaceBytes(const MoeForwardArgs& args) {
  MoeForwardArgs fewer = args;
  while (fewer.rows > 1 && IsGrouped(fewer)) {
    fewer.rows = std::min<int>(fewer.rows - 1,
                               kGroupedPairsPerExpert * args.num_experts / args.per_token);
  }
  return std::max(MoeWorkspaceBytes(args), MoeWorkspaceBytes(fewer));
}

cudaError_t RunMoe(const MoeForwardArgs& args, std::byte* workspace, cudaStream_t stream) {
  Carver carver(workspace);
  const Intermediates to = Carve(args, carver);
  const cudaError_t error = LaunchMoeRoute(args.route, to.plan, stream);
  if (error != cudaSuccess) return error;
  return IsGrouped(args) ? RunGrouped(args, to, stream) : RunSkinny(args, to, stream);
}

}  // namespace hyserve::kernels::cuda
