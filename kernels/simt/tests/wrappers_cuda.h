// One small kernel per wrapper of kernels/gpu.h, so that what a GPU does can be compared with what
// the executor's model says. `out` and inputs are device memory.
// Ran on: emulation; no GPU yet
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace lapidary {

struct WrapperParams {
  const void *a = nullptr, *b = nullptr;
  void* out = nullptr;
  int n = 0;
};
// out[lane][4 or 2]: registers of ldmatrix over 16-bit elements a [32][8], row i by lane i.
cudaError_t LaunchLdmatrix4(const WrapperParams& p, cudaStream_t stream);
cudaError_t LaunchLdmatrix4Trans(const WrapperParams& p, cudaStream_t stream);
cudaError_t LaunchLdmatrix2(const WrapperParams& p, cudaStream_t stream);
// out[lane] = movmatrix(a[lane])
cudaError_t LaunchMovmatrix(const WrapperParams& p, cudaStream_t stream);
// Per lane: a [32][4] and b [32][2] registers, out [32][4] floats, which also hold the addend.
cudaError_t LaunchMmaBf16(const WrapperParams& p, cudaStream_t stream);
cudaError_t LaunchMmaF16(const WrapperParams& p, cudaStream_t stream);
cudaError_t LaunchMmaE4m3(const WrapperParams& p, cudaStream_t stream);  // sm_89
// n products in a row over K-major tiles a, b [n][64][64] bf16, swizzled; out [128][32].
cudaError_t LaunchWgmma(const WrapperParams& p, cudaStream_t stream);  // sm_90a
// The same sum, tiles by bulk copies through a ring of two stages.
cudaError_t LaunchWgmmaBulk(const WrapperParams& p, cudaStream_t stream);  // sm_90a
// The same with 128 columns: b [n][128][64], out [128][64].
cudaError_t LaunchWgmma128(const WrapperParams& p, cudaStream_t stream);  // sm_90a
// out[2 i], out[2 i + 1] = WidenE4m3(a[i]), n registers.
cudaError_t LaunchWidenE4m3(const WrapperParams& p, cudaStream_t stream);
// out[i] (16 bytes) = the first i bytes of a[i], i up to 16, the rest zeros.
cudaError_t LaunchCpAsyncUpTo16(const WrapperParams& p, cudaStream_t stream);
// out[i] = 2^a[i], n floats.
cudaError_t LaunchExp2(const WrapperParams& p, cudaStream_t stream);
// out[i] = PackBf16(a[2 i], a[2 i + 1]), n pairs.
cudaError_t LaunchPackBf16(const WrapperParams& p, cudaStream_t stream);
// out[i] = MulBf16x2(a[i], b[i]), n pairs.
cudaError_t LaunchMulBf16x2(const WrapperParams& p, cudaStream_t stream);
// out [n][kIntegerResults]: integer and bit functions of a [n] and b [n], see the test.
inline constexpr int kIntegerResults = 16;
cudaError_t LaunchIntegers(const WrapperParams& p, cudaStream_t stream);
// out [n][kFloatResults]: rounding functions of a [n] and b [n].
inline constexpr int kFloatResults = 16;
cudaError_t LaunchFloats(const WrapperParams& p, cudaStream_t stream);
// out [32][kWarpResults]: votes, shuffles and reductions of a [32].
inline constexpr int kWarpResults = 20;
cudaError_t LaunchWarpFunctions(const WrapperParams& p, cudaStream_t stream);
// out [kAtomicResults] unsigned: what atomic functions leave behind after 64 threads of 3 blocks.
inline constexpr int kAtomicResults = 12;
cudaError_t LaunchAtomics(const WrapperParams& p, cudaStream_t stream);
// Word a [1] through out [0], by release and acquire, to another thread, which puts it into out
// [1]; out [2]: 1 once the clock has moved. out [3] is zeros before.
cudaError_t LaunchSystemWords(const WrapperParams& p, cudaStream_t stream);
// Named barriers of two halves of a block, and of all; out [256].
cudaError_t LaunchNamedBarriers(const WrapperParams& p, cudaStream_t stream);

}  // namespace lapidary
