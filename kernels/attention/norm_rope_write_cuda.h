// The heads of a qkv product, finished in one pass: queries normed, turned, scaled and packed for
// the page format; keys normed and turned, values normed, both written into their pages.
//
// On K = V layers (no v columns) the value is the norm of the raw key, taken before the key is
// touched. fp32 inside; the packed query is rounded once (bf16), what goes into a page once.
//
// e4m3 pages: scale = largest of what is stored / 448, of the key and of the value (kFolded: of
// both together); 1 for zeros, NaN when a number is not finite.
//
// head_dim: even, up to 1024. Pages and offsets: multiples of 16 bytes. Out of place.
// Errors: cudaErrorInvalidValue for a bad size, else the launch's own. tokens == 0 is a no-op.
// Ran on: emulation; no GPU yet
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
  // Page of each token in the family's pool; < 0: a padding token, nothing is written (no query
  // either). May be null without kv heads: then there is no padding.
  const int32_t* page_of = nullptr;    // [tokens]
  const int32_t* positions = nullptr;  // [tokens], not read without kv heads
  uint8_t* pool = nullptr;             // page p at pool + p * page_bytes
  int64_t page_bytes = 0;
  int64_t layer_offset = 0;  // of kv head 0 of the layer inside a page
};
cudaError_t LaunchNormRopeWrite(const NormRopeWriteParams& p, cudaStream_t stream);

}  // namespace lapidary
