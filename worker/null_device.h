// A device that computes nothing: the model's part of a worker for measuring all the others.
//
// Everything else is the real thing: scheduler, plans, executor, streams, text. No weights are read
// (a config.json and a tokenizer.json are enough), KV pages are counted and not allocated, ranks
// exchange nothing. The token at a position is a hash of the request's seed, choice and position:
// the same alone and in any batch, always a printable entry of the vocabulary and never an end
// token. Sampling parameters but the seed are ignored; logprobs are 0, without alternatives.
#pragma once
#include "absl/time/time.h"
#include "common/base/ids.h"
#include "worker/model_loader.h"

namespace lapidary {

struct NullDeviceOptions {
  absl::Duration step;  // what the device takes for a step; 0: nothing at all
};

ModelLoader NullModelLoader(const NullDeviceOptions& options);

// Entry of a table of `size` tokens that follows: any of them, equally often.
uint64_t NullTokenIndex(uint64_t seed, uint32_t choice, int32_t position, uint64_t size);

}  // namespace lapidary
