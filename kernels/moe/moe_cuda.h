// Mixture of experts on a GPU, around the grouped products (stream_product_cuda.h):
//
//   router   chosen[t] = the top_k experts of token t, weights softmax over them times the factor
//   sort     slots (token, place) ordered by expert, of this rank's experts alone
//   combine  y[t] = sum over the token's slots, ascending expert id, of weight * out[slot]
//
// fp32 inside. Equal logits: the lower expert. A row does not depend on the others; tokens == 0 is
// a no-op. Errors: cudaErrorInvalidValue for a bad size, else the launch's own.
// Ran on: emulation; no GPU yet
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace lapidary {

struct RouterParams {
  const float* x = nullptr;  // [tokens, x_stride]: the stream
  int64_t x_stride = 0;
  const float* norm_weight = nullptr;  // [dim]: router.scale times dim^-1/2
  const float* w = nullptr;            // [experts, w_stride] fp32
  int64_t w_stride = 0;
  const float* factor = nullptr;  // [experts]
  float eps = 1e-6f;
  int64_t tokens = 0, dim = 0;
  int experts = 0, top_k = 0;  // experts up to 256, top_k up to 16 and no more than experts
  float* logits = nullptr;     // [tokens, experts]: workspace; holds the logits afterwards
  int32_t* chosen = nullptr;   // [tokens, top_k], ascending expert ids
  float* weight = nullptr;     // [tokens, top_k], in the same order
};
cudaError_t LaunchRouter(const RouterParams& p, cudaStream_t stream);

struct ExpertSortParams {
  const int32_t* chosen = nullptr;  // [tokens, top_k]
  int64_t tokens = 0;
  int top_k = 0;
  int first_expert = 0, experts = 0;  // of this rank
  int32_t* begin = nullptr;           // [experts + 1]: slots of expert first_expert + e; experts
                                      // may be 0
  int32_t* token_of = nullptr;        // [tokens * top_k]: token of a slot
  int32_t* slot_of = nullptr;         // [tokens, top_k]: slot, or -1: another rank's expert
};
cudaError_t LaunchExpertSort(const ExpertSortParams& p, cudaStream_t stream);

struct ExpertCombineParams {
  const __nv_bfloat16* out = nullptr;  // [slots, out_stride]
  int64_t out_stride = 0;
  const int32_t* slot_of = nullptr;  // [tokens, top_k]
  const float* weight = nullptr;     // [tokens, top_k]
  int64_t tokens = 0, dim = 0;
  int top_k = 0;
  // [tokens, y_stride]; columns [dim, y_stride) up to the next multiple of 8 become 0.
  __nv_bfloat16* y = nullptr;
  int64_t y_stride = 0;
};
cudaError_t LaunchExpertCombine(const ExpertCombineParams& p, cudaStream_t stream);

}  // namespace lapidary
