// Paged attention on a GPU, for a mixed batch: one kernel for rows of one token (decode), one for
// longer runs (prefill chunks), and one that takes any shape (the second opinion, and what odd head
// sizes run on).
//
//   out[t, j] = softmax_s(query[t, j] . keys[s, g(j)]) . v[s, g(j)]
//   s from max(0, p_t - window + 1) to p_t; in a bidirectional span [b, e) around p_t to e - 1 (the
//   window still bounds it below)
//
// Queries come packed and scaled (norm_rope_write_cuda.h). Scores, softmax and sums are fp32;
// softmax weights are rounded to bf16 before they meet the values (times the value's scale, for
// e4m3 pages). Plan and launch are two calls: the plan is plain host code, sizes the workspace and
// cuts the work; Launch allocates nothing and never synchronises.
//
// What no row sees is never read: pages and slots behind the window or not written yet may hold
// anything. A row's bits depend on its query, its keys and the plan alone, not on how runs are cut
// or what else is in the batch.
//
// Alignment: pages, page_bytes and layer_offset of 16 bytes; query and out of 16, out_stride of 4
// (decode) or 8 (prefill) elements. The generic kernel takes any out_stride.
// Errors: cudaErrorInvalidValue for a shape that a kernel does not take or a bad size, else the
// launch's own. No rows, blocks or tokens: a no-op.
// Ran on: emulation; no GPU yet
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/attention/gpu_kv_page.h"
#include "kernels/chip.h"

namespace lapidary {

// A run of tokens of one sequence at consecutive positions. On the device.
struct AttentionRun {
  int32_t token = 0;     // row of the first token in query and out
  int32_t len = 0;       // 0: padding, nothing is done
  int32_t position = 0;  // of the first token
  int32_t table = 0;     // of the sequence's pages: page of positions [16 i, 16 i + 16) is
                         // page_table[table + i]; entries behind the window are not read
};

struct GpuAttentionParams {
  GpuKvLayout layout;
  const __nv_bfloat16* query = nullptr;  // [tokens, q_heads, layout.score_columns()]
  __nv_bfloat16* out = nullptr;          // [tokens, out_stride], head j at j * head_dim
  int64_t out_stride = 0;
  int q_heads = 0;
  int kv_heads = 0;  // that are read
  // [kv_heads + 1]: kv head h serves query heads [h, h + 1) of this. By value: it is small.
  static constexpr int kMaxKvHeads = 32;
  int16_t group_begin[kMaxKvHeads + 1] = {};
  int window = 0;                       // 0: all keys
  const int32_t* page_table = nullptr;  // device
  const uint8_t* pool = nullptr;
  int64_t page_bytes = 0;
  int64_t layer_offset = 0;  // of the first kv head read, inside a page
  // Bidirectional spans, by token: the span of token t is [span[2 t], span[2 t + 1]) in positions,
  // empty for none. Null: no token has one. Only runs of the prefill and the generic kernel.
  const int32_t* spans = nullptr;
};

// How decode rows are cut: `splits` blocks share a sequence's context. Fixed for a number of rows,
// whatever the contexts, so that a recorded graph can be used again.
struct DecodePlan {
  int splits = 1;
  // fp32 partial outputs and their maxima and sums, for splits > 1.
  int64_t workspace_bytes = 0;
};
// Whether the tuned kernels take the shape; else the generic one must.
bool DecodeKernelTakes(const GpuKvLayout& layout, int largest_group, const Chip& chip);
bool PrefillKernelTakes(const GpuKvLayout& layout, const Chip& chip);
DecodePlan PlanDecode(const GpuAttentionParams& p, int rows, const Chip& chip);

// Rows of one token each: runs [rows] with len 1 or 0.
cudaError_t LaunchPagedDecode(const GpuAttentionParams& p, const AttentionRun* runs, int rows,
                              const DecodePlan& plan, void* workspace, const Chip& chip,
                              cudaStream_t stream);

// A block's share of a run: tokens [first, first + count) of it. On the device.
struct PrefillBlock {
  int32_t run = 0;
  int32_t first = 0;
  int32_t count = 0;
};
// Tokens of a run that one block may take, for a group of so many query heads to a kv head.
int PrefillBlockTokens(const GpuKvLayout& layout, int largest_group, const Chip& chip);
// Cuts runs (host memory) into blocks, longest contexts first.
void CutPrefill(const std::vector<AttentionRun>& runs, int block_tokens,
                std::vector<PrefillBlock>* blocks);
cudaError_t LaunchPagedPrefill(const GpuAttentionParams& p, const AttentionRun* runs,
                               const PrefillBlock* blocks, int block_count, const Chip& chip,
                               cudaStream_t stream);

// Any shape, any run: one warp per row (token and query head), no tensor cores.
cudaError_t LaunchPagedGeneric(const GpuAttentionParams& p, const AttentionRun* runs, int run_count,
                               int64_t tokens, cudaStream_t stream);

}  // namespace lapidary
