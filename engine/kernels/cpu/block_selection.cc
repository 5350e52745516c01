#include "engine/kernels/cpu/block_selection.h"

#include <algorithm>

#include "engine/kernels/blocks.h"

namespace hyserve::kernels::cpu {

void SelectBlocks(const float* scores, int64_t n, int k, int32_t* out) {
  // Kept best first; a later block of equal score goes behind, so it is the first to fall out.
  float best[kMaxSelectedBlocks];
  int count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float score = scores[i];
    if (count == k && !(score > best[count - 1])) continue;
    int place = count < k ? count++ : count - 1;
    for (; place > 0 && score > best[place - 1]; --place) {
      best[place] = best[place - 1];
      out[place] = out[place - 1];
    }
    best[place] = score;
    out[place] = static_cast<int32_t>(i);
  }
  std::sort(out, out + count);
  std::fill(out + count, out + k, -1);
}

}  // namespace hyserve::kernels::cpu
