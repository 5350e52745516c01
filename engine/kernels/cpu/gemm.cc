#include "engine/kernels/cpu/gemm.h"

#include <algorithm>
#include <vector>

#include "engine/kernels/cpu/cpu_ops.h"

namespace hyserve::kernels::cpu {
namespace {

using tensor::DType;

constexpr int64_t kGemvRows = 4;  // at most; as many as the kernels take
// Depth of a block of K: a tile of A (12 rows) and a panel's block (bf16) fit the first-level cache.
constexpr int64_t kDepth = 256;
// Rows of A that are walked while a block of a panel stays in the first-level cache.
constexpr int64_t kRowBlock = 120;
// Up to this many bytes of packed A stay in the second-level cache, and panels are read once.
constexpr int64_t kResidentBytes = 512 << 10;

struct Task {
  const GemmProblem* problem = nullptr;
  const float* packed_x = nullptr;  // null: gemv
  int64_t panel_begin = 0;
  int64_t panel_end = 0;
};

// Layout of packed x: [K block][row tile][depth of the block][tile_rows].
int64_t PackedElements(const GemmProblem& problem, int tile_rows) {
  return (problem.num_rows + tile_rows - 1) / tile_rows * tile_rows *
         problem.weight->in_features();
}

// Packs one row tile in all its K blocks.
void PackTile(const GemmProblem& problem, int tile_rows, int64_t tile, float* packed) {
  const int64_t k = problem.weight->in_features();
  const int64_t num_tiles = (problem.num_rows + tile_rows - 1) / tile_rows;
  const int64_t row = tile * tile_rows;
  const int64_t rows = std::min<int64_t>(tile_rows, problem.num_rows - row);
  for (int64_t k0 = 0; k0 < k; k0 += kDepth) {
    const int64_t depth = std::min(kDepth, k - k0);
    float* out = packed + (k0 * num_tiles + tile * depth) * tile_rows;
    for (int64_t r = 0; r < rows; ++r) {
      const float* x = problem.x + (row + r) * problem.x_stride + k0;
      for (int64_t i = 0; i < depth; ++i) out[i * tile_rows + r] = x[i];
    }
  }
}

void RunPanelBlock(const SimdKernels& simd, const Task& task, int64_t panel, int64_t k0,
                   int64_t tile_begin, int64_t tile_end) {
  const GemmProblem& problem = *task.problem;
  const CpuPackedMatrix& w = *problem.weight;
  const int64_t k = w.in_features();
  const int64_t depth = std::min(kDepth, k - k0);
  const int64_t tile_rows = simd.tile_rows;
  const int64_t num_tiles = (problem.num_rows + tile_rows - 1) / tile_rows;
  const int64_t b_offset = (panel * k + k0) * simd.panel_cols;
  const int cols = static_cast<int>(
      std::min<int64_t>(simd.panel_cols, w.out_features() - panel * simd.panel_cols));
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const float* a = task.packed_x + (k0 * num_tiles + tile * depth) * tile_rows;
    float* c = problem.y + tile * tile_rows * problem.y_stride + panel * simd.panel_cols;
    const int rows =
        static_cast<int>(std::min<int64_t>(tile_rows, problem.num_rows - tile * tile_rows));
    if (w.dtype() == DType::kF32) {
      simd.gemm_packed_f32(a, static_cast<const float*>(w.data()) + b_offset, c, problem.y_stride,
                           depth, rows, cols, k0 > 0);
    } else {
      simd.gemm_packed_bf16(a, static_cast<const uint16_t*>(w.data()) + b_offset, c,
                            problem.y_stride, depth, rows, cols, k0 > 0);
    }
  }
}

void RunPacked(const SimdKernels& simd, const Task& task) {
  const int64_t k = task.problem->weight->in_features();
  const int64_t num_tiles = (task.problem->num_rows + simd.tile_rows - 1) / simd.tile_rows;
  if (num_tiles * simd.tile_rows * k * static_cast<int64_t>(sizeof(float)) <= kResidentBytes) {
    for (int64_t panel = task.panel_begin; panel < task.panel_end; ++panel) {
      for (int64_t k0 = 0; k0 < k; k0 += kDepth) RunPanelBlock(simd, task, panel, k0, 0, num_tiles);
    }
    return;
  }
  const int64_t tiles_per_block = kRowBlock / simd.tile_rows;
  for (int64_t k0 = 0; k0 < k; k0 += kDepth) {
    for (int64_t tile = 0; tile < num_tiles; tile += tiles_per_block) {
      const int64_t tile_end = std::min(num_tiles, tile + tiles_per_block);
      for (int64_t panel = task.panel_begin; panel < task.panel_end; ++panel) {
        RunPanelBlock(simd, task, panel, k0, tile, tile_end);
      }
    }
  }
}

void RunGemv(const SimdKernels& simd, const Task& task) {
  const GemmProblem& problem = *task.problem;
  const CpuPackedMatrix& w = *problem.weight;
  const int64_t panel_stride = w.in_features() * simd.panel_cols;
  const int64_t column = task.panel_begin * simd.panel_cols;
  const int num_panels = static_cast<int>(task.panel_end - task.panel_begin);
  const int rows = static_cast<int>(problem.num_rows);
  if (w.dtype() == DType::kF32) {
    simd.gemv_f32(problem.x, problem.x_stride, rows,
                  static_cast<const float*>(w.data()) + task.panel_begin * panel_stride,
                  panel_stride, num_panels, problem.y + column, problem.y_stride,
                  w.out_features() - column, w.in_features());
  } else {
    simd.gemv_bf16(problem.x, problem.x_stride, rows,
                   static_cast<const uint16_t*>(w.data()) + task.panel_begin * panel_stride,
                   panel_stride, num_panels, problem.y + column, problem.y_stride,
                   w.out_features() - column, w.in_features());
  }
}

// Cuts the panels of a problem into tasks of about work_per_task multiply-adds, of whole groups of
// four panels where there are enough.
void AddTasks(const GemmProblem& problem, const float* packed_x, int64_t work_per_task,
              std::vector<Task>& tasks) {
  const CpuPackedMatrix& w = *problem.weight;
  const int64_t work_per_panel = problem.num_rows * w.in_features() * w.panel_cols();
  int64_t panels = std::max<int64_t>(1, work_per_task / std::max<int64_t>(1, work_per_panel));
  if (panels > 4) panels = panels / 4 * 4;
  for (int64_t panel = 0; panel < w.num_panels(); panel += panels) {
    tasks.push_back({&problem, packed_x, panel, std::min(w.num_panels(), panel + panels)});
  }
}

}  // namespace

absl::Status RunGemms(tensor::CpuDevice& device, std::span<const GemmProblem> problems) {
  const SimdKernels& simd = KernelsOf(device);
  struct Tile {
    const GemmProblem* problem;
    float* packed;
    int64_t index;
  };
  int64_t packed_elements = 0;
  int64_t total_work = 0;
  for (const GemmProblem& problem : problems) {
    if (problem.num_rows > kGemvRows) packed_elements += PackedElements(problem, simd.tile_rows);
    total_work +=
        problem.num_rows * problem.weight->in_features() * problem.weight->out_features();
  }
  float* workspace = nullptr;
  if (packed_elements > 0) {
    absl::StatusOr<std::byte*> memory =
        device.Workspace(CpuDevice::WorkspaceSlot::kGemm, packed_elements * sizeof(float));
    if (!memory.ok()) return memory.status();
    workspace = reinterpret_cast<float*>(*memory);
  }
  // Eight tasks a thread even out a busy core; a task of fewer multiply-adds is not worth it.
  constexpr int64_t kLeastWork = 32 << 10;
  const int64_t work_per_task =
      device.pool().num_threads() == 1
          ? total_work
          : std::max(kLeastWork, total_work / (8 * device.pool().num_threads()));
  std::vector<Tile> tiles;
  std::vector<Task> tasks;
  for (const GemmProblem& problem : problems) {
    if (problem.num_rows == 0) continue;
    if (problem.num_rows <= kGemvRows) {
      AddTasks(problem, nullptr, work_per_task, tasks);
      continue;
    }
    AddTasks(problem, workspace, work_per_task, tasks);
    const int64_t elements = PackedElements(problem, simd.tile_rows);
    const int64_t num_tiles = (problem.num_rows + simd.tile_rows - 1) / simd.tile_rows;
    for (int64_t tile = 0; tile < num_tiles; ++tile) tiles.push_back({&problem, workspace, tile});
    workspace += elements;
  }
  device.pool().ParallelFor(static_cast<int64_t>(tiles.size()), [&](int64_t i, int) {
    PackTile(*tiles[i].problem, simd.tile_rows, tiles[i].index, tiles[i].packed);
  });
  device.pool().ParallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t i, int) {
    if (tasks[i].packed_x == nullptr) {
      RunGemv(simd, tasks[i]);
    } else {
      RunPacked(simd, tasks[i]);
    }
  });
  return absl::OkStatus();
}

absl::Status Linear(CpuDevice& device, const LinearParams& params) {
  const GemmProblem problem = {
      .x = static_cast<const float*>(params.x.data),
      .x_stride = params.x.row_stride,
      .num_rows = params.x.rows,
      .weight = static_cast<const CpuPackedMatrix*>(params.weight),
      .y = static_cast<float*>(params.y.data),
      .y_stride = params.y.row_stride};
  return RunGemms(device, {&problem, 1});
}

}  // namespace hyserve::kernels::cpu
