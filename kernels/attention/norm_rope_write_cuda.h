// The heads of a qkv product, finished in one pass: queries normed, turned, scaled and packed for
// the page format; keys normed and turned, values normed, both written into their pages.
//
// On K = V layers (no v columns) the value is the norm of the raw key, taken before the key is
// touched. fp32 inside; the packed query is rounded once (bf16), what goes into a page once.
//
// Errors: cudaErrorInvalidValue for a bad size, else the launch's own. tokens == 0 is a no-op.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/attention/gpu_kv_page.h"

namespace lapidary {

struct NormRopeWriteParams {
  GpuKvLayout layout;                  // of the layer whose pages are read and written
  const __nv_bfloat16* qkv = nullptr;  // [tokens, qkv_stride]: q heads, k heads, v heads
  int64_t qkv_stride = 0;
  int64_t tokens = 0;
  int q_heads = 0;
  int kv_heads = 0;  // 0: the layer shares another's pages: nothing is written
  bool k_eq_v = false;
  bool v_norm = true;
  float eps = 1e-6f;
  float query_scale = 1;          // the attention scale
  const float* q_norm = nullptr;  // [head_dim], or null: not normed
  const float* k_norm = nullptr;  // the same
  // w_k for the packed query of kFolded pages: the k_norm of the layer that owns the pages.
  const float* key_weight = nullptr;
  const float* cos_sin = nullptr;  // [tokens, 2 * pairs], LaunchRotation
  int pairs = 0;                   // columns i and i + head_dim / 2 turn

  __nv_bfloat16* query = nullptr;  // [tokens, q_heads, layout.score_columns()]
  // Page of each token in the family's pool; < 0: a padding token, nothing is written.
  const int32_t* page_of = nullptr;    // [tokens]
  const int32_t* positions = nullptr;  // [tokens]
  uint8_t* pool = nullptr;             // page p at pool + p * page_bytes
  int64_t page_bytes = 0;
  int64_t layer_offset = 0;  // of kv head 0 of the layer inside a page
};
cudaError_t LaunchNormRopeWrite(const NormRopeWriteParams& p, cudaStream_t stream);

}  // namespace lapidary
