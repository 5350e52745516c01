#include "engine/kernels/cpu/gemm.h"

#include <algorithm>
#include <vector>

#include "engine/kernels/cpu/cpu_ops.h"

namespace hyserve::kernels::cpu {
namespace {

using tensor::DType;

constexpr int64_t kGemvRows = 4;  // at most; as many as the kernels take
// Depth of a block of K. Deep, so that tiles of the result, which lie far apart, are touched
// seldom; panels then stream from the second-level cache, which keeps up.
constexpr int64_t kDepth = 2048;
// Rows of A per block: its packed tiles stay in the second-level cache while panels go by.
constexpr int64_t kRowBlock = 60;
// Up to this many bytes of packed A stay in the second-level cache, and panels are read once.
constexpr int64_t kResidentBytes = 512 << 10;

// How the activations of a problem are read.
enum class Path {
  kRows,        // few rows, as they lie in memory
  kTiles,       // packed tiles of f32
  kPairRows,    // few rows, packed to pairs of bf16
  kPairTiles,   // packed tiles of pairs of bf16
};

struct Task {
  const GemmProblem* problem = nullptr;
  Path path = Path::kRows;
  const uint32_t* packed_x = nullptr;  // f32 or pairs
  int64_t panel_begin = 0;
  int64_t panel_end = 0;
};

Path PathOf(const SimdKernels& simd, const GemmProblem& problem) {
  const bool few = problem.num_rows <= kGemvRows;
  if (problem.weight->pairs()) return few ? Path::kPairRows : Path::kPairTiles;
  return few ? Path::kRows : Path::kTiles;
}

// Elements of a step of the chain: one of f32, or two of bf16, 4 bytes either way.
int64_t Steps(const GemmProblem& problem, int64_t depth) {
  return problem.weight->pairs() ? (depth + 1) / 2 : depth;
}

// Layout of packed x: [K block][row tile][steps of the block][tile_rows], or [rows][steps].
int64_t PackedElements(const SimdKernels& simd, const GemmProblem& problem) {
  const int64_t steps = Steps(problem, problem.weight->in_features());
  switch (PathOf(simd, problem)) {
    case Path::kRows: return 0;
    case Path::kPairRows: return problem.num_rows * steps;
    default:
      return (problem.num_rows + simd.tile_rows - 1) / simd.tile_rows * simd.tile_rows * steps;
  }
}

void PackPairRows(const SimdKernels& simd, const GemmProblem& problem, uint32_t* packed) {
  const int64_t k = problem.weight->in_features();
  const int64_t steps = Steps(problem, k);
  for (int64_t row = 0; row < problem.num_rows; ++row) {
    uint16_t* out = reinterpret_cast<uint16_t*>(packed + row * steps);
    simd.f32_to_bf16(problem.x + row * problem.x_stride, out, k);
    if (k % 2 != 0) out[k] = 0;
  }
}

// Packs one row tile in all its K blocks.
void PackPairTile(const SimdKernels& simd, const GemmProblem& problem, int64_t tile,
                  uint32_t* packed) {
  static_assert(kDepth % 2 == 0);
  const int64_t tile_rows = simd.tile_rows;
  const int64_t k = problem.weight->in_features();
  const int64_t num_tiles = (problem.num_rows + tile_rows - 1) / tile_rows;
  const int64_t row = tile * tile_rows;
  const int64_t rows = std::min<int64_t>(tile_rows, problem.num_rows - row);
  uint32_t pairs[kDepth / 2];
  for (int64_t k0 = 0; k0 < k; k0 += kDepth) {
    const int64_t depth = std::min(kDepth, k - k0);
    const int64_t steps = (depth + 1) / 2;
    uint32_t* out = packed + (k0 / 2 * num_tiles + tile * steps) * tile_rows;
    for (int64_t r = 0; r < rows; ++r) {
      pairs[steps - 1] = 0;
      simd.f32_to_bf16(problem.x + (row + r) * problem.x_stride + k0,
                       reinterpret_cast<uint16_t*>(pairs), depth);
      for (int64_t i = 0; i < steps; ++i) out[i * tile_rows + r] = pairs[i];
    }
  }
}

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
  const int64_t steps = Steps(problem, std::min(kDepth, k - k0));
  const int64_t steps_before = Steps(problem, k0);
  const int64_t tile_rows = simd.tile_rows;
  const int64_t num_tiles = (problem.num_rows + tile_rows - 1) / tile_rows;
  const int64_t b_offset = (panel * Steps(problem, k) + steps_before) * simd.panel_cols;
  const int cols = static_cast<int>(
      std::min<int64_t>(simd.panel_cols, w.out_features() - panel * simd.panel_cols));
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const uint32_t* a = task.packed_x + (steps_before * num_tiles + tile * steps) * tile_rows;
    float* c = problem.y + tile * tile_rows * problem.y_stride + panel * simd.panel_cols;
    const int rows =
        static_cast<int>(std::min<int64_t>(tile_rows, problem.num_rows - tile * tile_rows));
    if (w.pairs()) {
      simd.gemm_packed_pairs(a, static_cast<const uint32_t*>(w.data()) + b_offset, c,
                             problem.y_stride, steps, rows, cols, k0 > 0);
    } else if (w.dtype() == DType::kF32) {
      simd.gemm_packed_f32(reinterpret_cast<const float*>(a),
                           static_cast<const float*>(w.data()) + b_offset, c, problem.y_stride,
                           steps, rows, cols, k0 > 0);
    } else {
      simd.gemm_packed_bf16(reinterpret_cast<const float*>(a),
                            static_cast<const uint16_t*>(w.data()) + b_offset, c,
                            problem.y_stride, steps, rows, cols, k0 > 0);
    }
  }
}

void RunPacked(const SimdKernels& simd, const Task& task) {
  const int64_t k = task.problem->weight->in_features();
  const int64_t num_tiles = (task.problem->num_rows + simd.tile_rows - 1) / simd.tile_rows;
  const int64_t packed_bytes = num_tiles * simd.tile_rows * Steps(*task.problem, k) * 4;
  if (packed_bytes <= kResidentBytes) {
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
  const int64_t steps = Steps(problem, w.in_features());
  const int64_t panel_stride = steps * simd.panel_cols;
  const int64_t offset = task.panel_begin * panel_stride;
  const int64_t column = task.panel_begin * simd.panel_cols;
  const int num_panels = static_cast<int>(task.panel_end - task.panel_begin);
  const int rows = static_cast<int>(problem.num_rows);
  float* y = problem.y + column;
  const int64_t n = w.out_features() - column;
  if (w.pairs()) {
    simd.gemv_pairs(task.packed_x, steps, rows, static_cast<const uint32_t*>(w.data()) + offset,
                    panel_stride, num_panels, y, problem.y_stride, n, steps);
  } else if (w.dtype() == DType::kF32) {
    simd.gemv_f32(problem.x, problem.x_stride, rows, static_cast<const float*>(w.data()) + offset,
                  panel_stride, num_panels, y, problem.y_stride, n, steps);
  } else {
    simd.gemv_bf16(problem.x, problem.x_stride, rows,
                   static_cast<const uint16_t*>(w.data()) + offset, panel_stride, num_panels, y,
                   problem.y_stride, n, steps);
  }
}

// Cuts the panels of a problem into tasks of about work_per_task multiply-adds, of whole groups of
// four panels where there are enough.
void AddTasks(const GemmProblem& problem, Path path, const uint32_t* packed_x,
              int64_t work_per_task, std::vector<Task>& tasks) {
  const CpuPackedMatrix& w = *problem.weight;
  const int64_t work_per_panel = problem.num_rows * w.in_features() * w.panel_cols();
  int64_t panels = std::max<int64_t>(1, work_per_task / std::max<int64_t>(1, work_per_panel));
  if (panels > 4) panels = panels / 4 * 4;
  for (int64_t panel = 0; panel < w.num_panels(); panel += panels) {
    tasks.push_back({&problem, path, packed_x, panel, std::min(w.num_panels(), panel + panels)});
  }
}

}  // namespace

absl::Status RunGemms(tensor::CpuDevice& device, std::span<const GemmProblem> problems) {
  const SimdKernels& simd = KernelsOf(device);
  struct Tile {
    const GemmProblem* problem;
    Path path;
    uint32_t* packed;
    int64_t index;
  };
  int64_t packed_elements = 0;
  int64_t total_work = 0;
  for (const GemmProblem& problem : problems) {
    packed_elements += PackedElements(simd, problem);
    total_work +=
        problem.num_rows * problem.weight->in_features() * problem.weight->out_features();
  }
  uint32_t* workspace = nullptr;
  if (packed_elements > 0) {
    absl::StatusOr<std::byte*> memory =
        device.Workspace(CpuDevice::WorkspaceSlot::kGemm, packed_elements * sizeof(uint32_t));
    if (!memory.ok()) return memory.status();
    workspace = reinterpret_cast<uint32_t*>(*memory);
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
    const Path path = PathOf(simd, problem);
    AddTasks(problem, path, workspace, work_per_task, tasks);
    const int64_t num_tiles = path == Path::kRows       ? 0
                              : path == Path::kPairRows ? 1
                                                        : (problem.num_rows + simd.tile_rows - 1) /
                                                              simd.tile_rows;
    for (int64_t i = 0; i < num_tiles; ++i) tiles.push_back({&problem, path, workspace, i});
    workspace += PackedElements(simd, problem);
  }
  const auto pack = [&](int64_t i, int) {
    const Tile& tile = tiles[i];
    if (tile.path == Path::kPairRows) {
      PackPairRows(simd, *tile.problem, tile.packed);
    } else if (tile.path == Path::kPairTiles) {
      PackPairTile(simd, *tile.problem, tile.index, tile.packed);
    } else {
      PackTile(*tile.problem, simd.tile_rows, tile.index, reinterpret_cast<float*>(tile.packed));
    }
  };
  device.pool().ParallelFor(static_cast<int64_t>(tiles.size()), pack);
  device.pool().ParallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t i, int) {
    if (tasks[i].path == Path::kRows || tasks[i].path == Path::kPairRows) {
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
