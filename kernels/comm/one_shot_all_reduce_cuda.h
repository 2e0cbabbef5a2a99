// A small sum over ranks in one step: every rank reads what all the others have written down.
//
// data [count] fp32 or bf16, in place: the sum over ranks, in rank order and in fp32, rounded once;
// the same bytes on every rank. All ranks call it in the same order with the same sizes, each on
// one stream. May be recorded in a graph: what changes from call to call lies in device memory.
//
// Source: the way of vLLM's and TensorRT-LLM's one-shot all-reduce, written anew.
// Ran on: emulation; no GPU yet. The order of accesses between devices is unproven: it rests on
// release and acquire at system scope, as PTX defines them, which nothing here can test.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace lapidary {

inline constexpr int kOneShotRanks = 8;
inline constexpr int kOneShotBlocks = 32;
inline constexpr int64_t kOneShotBlockBytes = 16 << 10;  // of a message, for one block
inline constexpr int64_t kOneShotMaxBytes = kOneShotBlocks * kOneShotBlockBytes;

// Memory of one rank that all ranks map. Zeros before the first sum.
struct OneShotMailbox {
  // Sums that a block of this rank has finished. Only its own rank looks.
  uint32_t epoch[kOneShotBlocks];
  // Messages that a block of a rank has written down; that rank writes it, here and everywhere.
  uint32_t written[kOneShotBlocks][kOneShotRanks];
  // The messages of this rank, those of even and odd epochs apart.
  alignas(128) uint8_t message[2][kOneShotBlocks][kOneShotBlockBytes];
};

// Host memory that the device reads and writes. Zeros at first.
struct OneShotControl {
  uint32_t stop;    // not 0: nobody waits any more, results are worthless
  uint32_t silent;  // 1 + the rank that was waited for in vain; 0: none
};

struct OneShotParams {
  void* data = nullptr;
  int64_t count = 0;
  bool bf16 = false;                         // else fp32
  OneShotMailbox* mailbox[kOneShotRanks]{};  // by rank, as this device reaches them
  int rank = 0, size = 1;
  OneShotControl* control = nullptr;
  // Then a rank that does not answer is given up: control->silent names it, control->stop is set.
  uint64_t patience_ns = 0;
};

inline bool OneShotTakes(int64_t bytes) {
  return bytes > 0 && bytes <= kOneShotMaxBytes && bytes % 16 == 0;
}
// Errors: cudaErrorInvalidValue for what it does not take, or data not aligned to 16 bytes.
cudaError_t LaunchOneShotAllReduce(const OneShotParams& p, cudaStream_t stream);

}  // namespace lapidary
