// Mixture of experts: rows are grouped by expert, so that every expert's weights are read once.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "engine/kernels/cpu/cpu_ops.h"
#include "engine/kernels/cpu/gemm.h"

namespace hyserve::kernels::cpu {
namespace {

struct Choice {
  int expert = 0;
  float weight = 0;
};

// Fills choices (experts_per_token of them) for one row, in ascending order of expert.
void Route(const MoeParams& params, int64_t row, Choice* choices, std::vector<float>& scores) {
  const int num_experts = static_cast<int>(params.router_logits.cols);
  const float* logits = params.router_logits.Row<const float>(row);
  scores.resize(num_experts);
  int count = 0;
  const auto biased = [&](int expert) {
    return scores[expert] +
           (params.correction_bias == nullptr ? 0.0f : params.correction_bias[expert]);
  };
  for (int expert = 0; expert < num_experts; ++expert) {
    scores[expert] = 1.0f / (1.0f + std::exp(-logits[expert]));
    const float score = biased(expert);
    // Choices are kept best first; an equal score of a later expert goes behind.
    if (count == params.experts_per_token && !(score > biased(choices[count - 1].expert))) continue;
    int place = count < params.experts_per_token ? count++ : count - 1;
    for (; place > 0 && score > biased(choices[place - 1].expert); --place) {
      choices[place] = choices[place - 1];
    }
    choices[place].expert = expert;
  }
  std::sort(choices, choices + count,
            [](const Choice& a, const Choice& b) { return a.expert < b.expert; });
  float sum = 0;
  for (int i = 0; i < count; ++i) sum += scores[choices[i].expert];
  const float factor = params.scaling_factor / (params.normalize ? sum : 1.0f);
  for (int i = 0; i < count; ++i) choices[i].weight = scores[choices[i].expert] * factor;
}

}  // namespace

absl::Status MixtureOfExperts(CpuDevice& device, const MoeParams& params) {
  const SimdKernels& simd = KernelsOf(device);
  const int64_t num_rows = params.x.rows;
  const int64_t hidden = params.x.cols;
  const int64_t intermediate = params.down[0]->in_features();
  const int num_experts = static_cast<int>(params.router_logits.cols);
  const int per_token = params.experts_per_token;

  std::vector<Choice> choices(num_rows * per_token);
  std::vector<int64_t> expert_begin(num_experts + 1, 0);
  // An exponential counts as some multiply-adds.
  ForEachRowGroup(device, num_rows, 16 * num_experts, [&](int64_t begin, int64_t end) {
    std::vector<float> scores;
    for (int64_t row = begin; row < end; ++row) {
      Route(params, row, choices.data() + row * per_token, scores);
    }
  });
  for (const Choice& choice : choices) ++expert_begin[choice.expert + 1];
  for (int expert = 0; expert < num_experts; ++expert) {
    expert_begin[expert + 1] += expert_begin[expert];
  }
  // pair_of[row * per_token + i]: where that choice stands in the order (expert, row).
  std::vector<int64_t> next(expert_begin.begin(), expert_begin.end() - 1);
  std::vector<int64_t> pair_of(choices.size());
  std::vector<int32_t> row_of(choices.size());
  for (int64_t i = 0; i < static_cast<int64_t>(choices.size()); ++i) {
    pair_of[i] = next[choices[i].expert]++;
    row_of[pair_of[i]] = static_cast<int32_t>(i / per_token);
  }

  // Per pair: x [hidden] (later the expert's output), gate_up [2 intermediate], act [intermediate].
  const int64_t pairs = static_cast<int64_t>(choices.size());
  absl::StatusOr<std::byte*> memory = device.Workspace(
      CpuDevice::WorkspaceSlot::kOp, pairs * (hidden + 3 * intermediate) * sizeof(float));
  if (!memory.ok()) return memory.status();
  float* x = reinterpret_cast<float*>(*memory);
  float* gate_up = x + pairs * hidden;
  float* act = gate_up + pairs * 2 * intermediate;
  ForEachRowGroup(device, pairs, hidden, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      std::memcpy(x + pair * hidden, params.x.Row<const float>(row_of[pair]),
                  hidden * sizeof(float));
    }
  });

  std::vector<GemmProblem> problems;
  for (int expert = 0; expert < num_experts; ++expert) {
    const int64_t begin = expert_begin[expert];
    const int64_t rows = expert_begin[expert + 1] - begin;
    if (rows == 0) continue;
    problems.push_back({.x = x + begin * hidden,
                        .x_stride = hidden,
                        .num_rows = rows,
                        .weight = static_cast<const CpuPackedMatrix*>(params.gate_up[expert].get()),
                        .y = gate_up + begin * 2 * intermediate,
                        .y_stride = 2 * intermediate});
  }
  if (absl::Status status = RunGemms(device, problems); !status.ok()) return status;
  ForEachRowGroup(device, pairs, 4 * intermediate, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const float* gate = gate_up + pair * 2 * intermediate;
      simd.swiglu(gate, gate + intermediate, act + pair * intermediate, intermediate);
    }
  });
  problems.clear();
  for (int expert = 0; expert < num_experts; ++expert) {
    const int64_t begin = expert_begin[expert];
    const int64_t rows = expert_begin[expert + 1] - begin;
    if (rows == 0) continue;
    problems.push_back({.x = act + begin * intermediate,
                        .x_stride = intermediate,
                        .num_rows = rows,
                        .weight = static_cast<const CpuPackedMatrix*>(params.down[expert].get()),
                        .y = x + begin * hidden,
                        .y_stride = hidden});
  }
  if (absl::Status status = RunGemms(device, problems); !status.ok()) return status;
  ForEachRowGroup(device, num_rows, hidden * per_token, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* out = params.out.Row<float>(row);
      for (int i = 0; i < per_token; ++i) {
        const int64_t choice = row * per_token + i;
        const float* y = x + pair_of[choice] * hidden;
        if (i == 0) {
          simd.scale(y, choices[choice].weight, out, hidden);
        } else {
          simd.blend(1.0f, out, choices[choice].weight, y, hidden);
        }
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace hyserve::kernels::cpu
