// Which keys a query sees (device code): causal, window, bidirectional spans.
#pragma once
#include "kernels/attention/paged_attention_cuda.h"
#include "kernels/gpu.h"

namespace lapidary {

struct KeyRange {
  int begin, end;  // positions
};

// Of the token at `index` of a run.
GPU_DEVICE KeyRange VisibleKeys(const GpuAttentionParams& p, const AttentionRun& run, int index) {
  const int position = run.position + index;
  KeyRange keys{0, position + 1};
  if (p.window > 0) keys.begin = max(position + 1 - p.window, 0);
  if (p.spans != nullptr) {
    const int2 span = gpu::Load<int2>(p.spans + 2 * (int64_t{run.token} + index));
    if (span.x <= position && position < span.y) {
      keys.end = max(keys.end, min(span.y, run.position + run.len));
    }
  }
  return keys;
}

}  // namespace lapidary
