// Device code: the best k of a block's numbers, in order.
//
// The threads hold kItems keys each; ties go to the lower index. Three steps: a bound that at least
// k keys reach and few others do, taken from the threads' largest keys; the survivors move to
// shared memory; they are sorted there. Of 4096 random keys about 110 survive for k = 64. Where too
// many survive (ties, or an order made against it) the bound is raised by histograms of 8 bits at a
// time, over keys and then indices, which ends with exactly k.
//
// Shared memory: 16 KiB for the list and 1.5 for the rest.
#pragma once
#include "kernels/gpu.h"
#include "kernels/sampling/token_weight.h"

namespace lapidary {

template <int kThreads, int kItems>
struct BlockBest {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kCapacity = 2048;
  static_assert(kThreads * kItems <= 65536 && kItems % 4 == 0);

  struct Shared {
    uint64_t best[kCapacity];  // the result, best first
    uint32_t histogram[256];
    uint32_t bounds[kWarps];
    int32_t counts[2][kWarps];
    uint64_t warp_best[kWarps];
    int32_t digit, above, reached;
  };

  // Where the key of thread t's item j stands in the sequence: fours of neighbours.
  GPU_DEVICE static int Index(int j) {
    return j / 4 * (kThreads * 4) + static_cast<int>(threadIdx.x) * 4 + j % 4;
  }
  // Key and index as one number: larger is better, all are different.
  GPU_DEVICE static uint64_t Ranked(uint32_t key, int index) {
    return uint64_t{key} << 16 | (0xffffu - static_cast<uint32_t>(index));
  }
  GPU_DEVICE static uint32_t KeyOf(uint64_t ranked) { return static_cast<uint32_t>(ranked >> 16); }
  GPU_DEVICE static int IndexOf(uint64_t ranked) {
    return static_cast<int>(0xffffu - (static_cast<uint32_t>(ranked) & 0xffffu));
  }

  // What the best have in common: a larger key, or this one and an index that is not beyond.
  struct Bound {
    uint32_t key;
    int index;
    GPU_DEVICE bool Reached(uint32_t other, int at) const {
      return other > key || (other == key && at <= index);
    }
  };

  // Puts the best k (at most kThreads) into s.best; returns how many there are: keys up to that of
  // -inf are none. All threads call it and may read s.best afterwards. Once in a kernel, or with a
  // barrier in between.
  GPU_DEVICE static int Select(const uint32_t (&key)[kItems], int k, Shared& s) {
    if (k == 1) return SelectOne(key, s);
    constexpr uint32_t kLeastKey = kKeyOfMinusInfinity + 1;
    Bound bound{max(LowerBound(key, k, s), kLeastKey), 0xffff};
    int before = 0;
    int count = Count(key, bound, 0, s, &before);
    if (count > kCapacity) {
      bound = RaiseBound(key, k, s);
      count = Count(key, bound, 1, s, &before);
    }
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      if (bound.Reached(key[j], Index(j))) s.best[before++] = Ranked(key[j], Index(j));
    }
    Sort(count, s);
    return min(count, k);
  }

 private:
  GPU_DEVICE static int SelectOne(const uint32_t (&key)[kItems], Shared& s) {
    uint32_t largest = 0;
    int index = 0;
#pragma unroll
    for (int j = 0; j < kItems; ++j) {  // indices ascend
      if (key[j] > largest) {
        largest = key[j];
        index = Index(j);
      }
    }
    uint64_t best = WarpMax(Ranked(largest, index));
    if (threadIdx.x % 32 == 0) s.warp_best[threadIdx.x / 32] = best;
    __syncthreads();
    const int lane = static_cast<int>(threadIdx.x) % 32;
    best = WarpMax(lane < kWarps ? s.warp_best[lane] : 0);
    if (threadIdx.x == 0) s.best[0] = best;
    __syncthreads();
    return KeyOf(best) > kKeyOfMinusInfinity ? 1 : 0;
  }

  GPU_DEVICE static uint64_t WarpMax(uint64_t v) {
    for (int d = 16; d > 0; d /= 2) v = max(v, __shfl_xor_sync(0xffffffffu, v, d));
    return v;
  }

  // A key that at least k keys reach, or 0. Each warp sorts its threads' largest keys and offers
  // the one that as many of its threads reach as are its share of k; the least offer is right.
  GPU_DEVICE static uint32_t LowerBound(const uint32_t (&key)[kItems], int k, Shared& s) {
    uint32_t largest = 0;
#pragma unroll
    for (int j = 0; j < kItems; ++j) largest = max(largest, key[j]);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int size = 2; size <= 32; size *= 2) {  // bitonic, descending
      for (int stride = size / 2; stride > 0; stride /= 2) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, largest, stride);
        const bool takes_larger = ((lane & stride) == 0) == ((lane & size) == 0);
        largest = takes_larger ? max(largest, other) : min(largest, other);
      }
    }
    const int share = (k + kWarps - 1) / kWarps;
    const uint32_t offer = __shfl_sync(0xffffffffu, largest, min(share, 32) - 1);
    if (lane == 0) s.bounds[threadIdx.x / 32] = share <= 32 ? offer : 0;
    __syncthreads();
    uint32_t bound = s.bounds[0];
    for (int w = 1; w < kWarps; ++w) bound = min(bound, s.bounds[w]);
    return bound;
  }

  // How many reach the bound in the block, and in the threads before this one.
  GPU_DEVICE static int Count(const uint32_t (&key)[kItems], Bound bound, int round, Shared& s,
                              int* before) {
    int own = 0;
#pragma unroll
    for (int j = 0; j < kItems; ++j) own += bound.Reached(key[j], Index(j));
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    int upto = own;
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, upto, d);
      if (lane >= d) upto += other;
    }
    if (lane == 31) s.counts[round][warp] = upto;
    __syncthreads();
    int count = 0;
    *before = upto - own;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) *before += s.counts[round][w];
      count += s.counts[round][w];
    }
    return count;
  }

  // The k-th best's key, 8 bits at a time from above, until few enough reach what is found; then,
  // if too many have that key, its index.
  GPU_DEVICE static Bound RaiseBound(const uint32_t (&key)[kItems], int k, Shared& s) {
    Bound bound{0, 0xffff};
    int above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
      Clear(s);
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const bool agrees = shift == 24 || (key[j] ^ bound.key) >> shift >> 8 == 0;
        if (agrees && key[j] > kKeyOfMinusInfinity) {
          atomicAdd(&s.histogram[key[j] >> shift & 255], 1u);
        }
      }
      bound.key |= static_cast<uint32_t>(NextDigit(k, &above, s)) << shift;
      if (s.reached <= kCapacity) break;
    }
    bound.key = max(bound.key, kKeyOfMinusInfinity + 1);
    if (s.reached <= kCapacity) return bound;
    int found = 0;  // of the index from the end
    for (int shift = 8; shift >= 0; shift -= 8) {
      Clear(s);
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const int from_end = 0xffff - Index(j);
        if (key[j] == bound.key && (shift == 8 || from_end >> 8 == found >> 8)) {
          atomicAdd(&s.histogram[from_end >> shift & 255], 1u);
        }
      }
      found |= NextDigit(k, &above, s) << shift;
    }
    bound.index = 0xffff - found;
    return bound;
  }

  GPU_DEVICE static void Clear(Shared& s) {
    __syncthreads();  // everyone has read what was found before
    for (int b = static_cast<int>(threadIdx.x); b < 256; b += kThreads) s.histogram[b] = 0;
    __syncthreads();
  }
  GPU_DEVICE static int NextDigit(int k, int* above, Shared& s) {
    __syncthreads();
    if (threadIdx.x < 32) FindDigit(k, *above, s);
    __syncthreads();
    *above = s.above;
    return s.digit;
  }

  // One warp: the digit of the k-th best, whose better digits hold less than k with those `above`
  // all of them.
  GPU_DEVICE static void FindDigit(int k, int above, Shared& s) {
    const int lane = static_cast<int>(threadIdx.x);
    const int top = 255 - 8 * lane;  // a lane has 8 digits, from here down
    int own = 0;
    for (int i = 0; i < 8; ++i) own += static_cast<int>(s.histogram[top - i]);
    int upto = own;
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, upto, d);
      if (lane >= d) upto += other;
    }
    int reached = above + upto - own;
    if (reached >= k || above + upto < k) return;
    for (int i = 0; i < 8; ++i) {
      const int here = static_cast<int>(s.histogram[top - i]);
      if (reached + here >= k) {
        s.digit = top - i;
        s.above = reached;
        s.reached = reached + here;
        return;
      }
      reached += here;
    }
  }

  // Bitonic, descending; what fills up to a power of two is 0.
  GPU_DEVICE static void Sort(int count, Shared& s) {
    const int thread = static_cast<int>(threadIdx.x);
    int padded = 2;
    while (padded < count) padded *= 2;
    for (int i = count + thread; i < padded; i += kThreads) s.best[i] = 0;
    __syncthreads();
    for (int size = 2; size <= padded; size *= 2) {
      for (int stride = size / 2; stride > 0; stride /= 2) {
#pragma unroll 1
        for (int i = thread; i < padded / 2; i += kThreads) {
          const int low = 2 * i - (i & (stride - 1));
          const uint64_t a = s.best[low], b = s.best[low + stride];
          if ((a < b) == ((low & size) == 0)) {
            s.best[low] = b;
            s.best[low + stride] = a;
          }
        }
        __syncthreads();
      }
    }
  }
};

}  // namespace lapidary
