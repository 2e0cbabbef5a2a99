// Paged attention over a mixed batch: prefill chunks and decode tokens alike.
//
//   out[t, j] = softmax_s(q[t, j] . k[s, g(j)]) . v[s, g(j)]   for s in (p_t - window, p_t]
//
// Any page format (kv_page.h); each page is brought in once for both products. q arrives scaled.
// Arithmetic is fp32 whatever the pages hold: int8 codes are widened, the scale of a token's key
// multiplies its finished score, that of its value the softmax weight.
//
// Softmax in fp32, online, in blocks of 64 keys and segments of 1024 at absolute positions,
// segments folded in ascending order: a row (one token and one query head) goes through the same
// operations whatever stands beside it, so its bits depend neither on the batch nor on the chunking
// nor on the number of threads. (acc is rescaled only where the row's own maximum grows, a masked
// key adds exactly 0.) With few rows and long contexts threads share the segments. AVX2 and AVX-512
// give the same bits.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/attention/kv_page.h"
#include "kernels/attention/page_rotation.h"
#include "kernels/thread_team.h"

namespace lapidary {

// One sequence's rows in the batch: tokens [token, token + len) at consecutive positions.
struct AttentionSequence {
  const int32_t* pages = nullptr;  // page of positions [16 i, 16 i + 16) at entry i
  int32_t position = 0;            // of the first token
  int32_t len = 0;
  int64_t token = 0;  // row of the first token in q and out
};

struct AttentionParams {
  KvLayout layout;
  const uint8_t* pool = nullptr;  // page p at pool + p * page_bytes
  int64_t page_bytes = 0;
  int64_t layer_offset = 0;      // of kv head 0 of the layer inside a page
  std::vector<int> group_begin;  // [K + 1]: kv head h serves query heads [h, h + 1) of this
  int window = 0;                // 0: all keys
  // Folded and single pages: w_k [head_dim]. Single: the angles, over every position read.
  const float* key_weight = nullptr;
  const PageRotation* rotation = nullptr;
  const float* q = nullptr;  // [T, q_stride], head j at j * head_dim
  int64_t q_stride = 0;
  float* out = nullptr;  // [T, out_stride], may be q
  int64_t out_stride = 0;
};

enum class AttentionKernel : uint8_t { kAvx2, kAvx512 };
AttentionKernel BestAttentionKernel();  // of this CPU

// Requires the keys and values of every position read to be in their pages. sequences may be empty.
void PagedAttention(ThreadTeam& team, const AttentionParams& params,
                    const std::vector<AttentionSequence>& sequences,
                    AttentionKernel kernel = BestAttentionKernel());

}  // namespace lapidary
