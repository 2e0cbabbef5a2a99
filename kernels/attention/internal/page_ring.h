// Device code shared by the decode and the prefill kernel: the shapes they are compiled for, the
// ring that brings pages into shared memory, and widening of e4m3.
#pragma once
#include "kernels/attention/paged_attention_cuda.h"
#include "kernels/gpu.h"

namespace lapidary {

inline constexpr float kLog2E = 1.44269504088896341f;

// A page layout as constants.
template <GpuKvType kTypeV, KvFormat kFormatV, int kHeadDimV, int kPairsV>
struct KvShape {
  static constexpr GpuKvType kType = kTypeV;
  static constexpr KvFormat kFormat = kFormatV;
  static constexpr int kHeadDim = kHeadDimV;
  static constexpr int kPairs = kPairsV;
  static constexpr bool kE4m3 = kType == GpuKvType::kE4m3;

  static LAPIDARY_HOST_DEVICE constexpr GpuKvLayout Layout() {
    return {kType, kFormat, kHeadDim, kPairs};
  }
  // The layout of the same page in bf16.
  static LAPIDARY_HOST_DEVICE constexpr GpuKvLayout WideLayout() {
    return {GpuKvType::kBf16, kFormat, kHeadDim, kPairs};
  }
  static constexpr int kRowBytes = Layout().row_bytes();
  static constexpr int kTileBytes = Layout().tile_bytes();
  static constexpr int kHeadBytes = Layout().head_bytes();
  static constexpr int kScaleBytes = Layout().scale_bytes();
  static constexpr int kValueColumns = Layout().value_columns();
  static constexpr int kScoreBlocks = Layout().score_blocks();
  static constexpr int kScoreColumns = Layout().score_columns();
};

// Calls f.operator()<KvShape>() for the tuned shape that the layout is; cudaErrorInvalidValue for
// any other.
template <class F>
cudaError_t WithTunedShape(const GpuKvLayout& layout, const F& f) {
  const auto typed = [&]<GpuKvType kType>() {
    if (layout.format == KvFormat::kSplit) {
      switch (layout.head_dim) {
        case 64:
          return f.template operator()<KvShape<kType, KvFormat::kSplit, 64, 0>>();
        case 128:
          return f.template operator()<KvShape<kType, KvFormat::kSplit, 128, 0>>();
        case 256:
          return f.template operator()<KvShape<kType, KvFormat::kSplit, 256, 0>>();
        case 512:
          return f.template operator()<KvShape<kType, KvFormat::kSplit, 512, 0>>();
      }
    } else if (layout.format == KvFormat::kFolded) {
      if (layout.head_dim == 128 && layout.rotated_pairs == 16) {
        return f.template operator()<KvShape<kType, KvFormat::kFolded, 128, 16>>();
      }
      if (layout.head_dim == 512 && layout.rotated_pairs == 64) {
        return f.template operator()<KvShape<kType, KvFormat::kFolded, 512, 64>>();
      }
    }
    return cudaErrorInvalidValue;
  };
  return layout.type == GpuKvType::kBf16 ? typed.template operator()<GpuKvType::kBf16>()
                                         : typed.template operator()<GpuKvType::kE4m3>();
}

// The pages of one kv head and one sequence, seen from a block: keys [begin, end) of pages
// [first_page, ...).
struct PageSource {
  const int32_t* table;  // the sequence's
  const uint8_t* head;   // of page 0
  int64_t page_bytes;
  int first_page, page_count;
  int begin, end;  // positions; rows of a page outside are not read
};

// A ring of stages of kPages page tiles in shared memory. Loads are asynchronous: by one thread and
// bulk copies with an mbarrier for each stage, or by all threads and copies of 16 bytes. Rows that
// the block must not see (behind the window, or not written yet) are not read: they become zeros,
// so that whatever stands there cannot reach a sum.
//
// All threads of the block call everything, with the same arguments.
template <class Shape, int kPages, int kStages, int kThreads, bool kBulk>
class PageRing {
 public:
  static constexpr int kStageBytes = kPages * Shape::kHeadBytes;
  static constexpr int kBarrierBytes = kBulk ? kStages * 8 : 0;

  // A block barrier must follow before the first Wait.
  GPU_DEVICE PageRing(const PageSource& source, uint8_t* stages, uint8_t* barriers)
      : source_(source), stages_(stages), full_(reinterpret_cast<gpu::Mbarrier*>(barriers)) {
#if GPU_HAS_BULK_COPY
    if constexpr (kBulk) {
      if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < kStages; ++s) gpu::MbarrierInit(&full_[s], 1);
        gpu::FenceMbarrierInit();
      }
    }
#endif
    FetchPages(0);
  }

  GPU_DEVICE int steps() const { return (source_.page_count + kPages - 1) / kPages; }
  GPU_DEVICE uint8_t* Stage(int step) const { return stages_ + step % kStages * kStageBytes; }
  // First position of a step.
  GPU_DEVICE int Position(int step) const {
    return (source_.first_page + step * kPages) * kPageTokens;
  }

  // Starts bringing in a step (nothing when there is no such step). Steps in order; the stage's
  // last readers must have passed a block barrier.
  GPU_DEVICE void Load(int step) {
    if (step < steps()) {
      if (Partial(step)) {
        LoadRows(step);
      } else {
        LoadWholePages(step);
      }
      FetchPages(step + 1);
    }
    if constexpr (!kBulk) gpu::CpAsyncCommit();
  }

  // Waits for the step's data. With bulk copies the data may be read after this, rows of zeros
  // after one more block barrier; else everything after a block barrier. To be called before the
  // Load of step + kStages - 1.
  GPU_DEVICE void Wait(int step) {
#if GPU_HAS_BULK_COPY
    if constexpr (kBulk) {
      gpu::MbarrierWait(&full_[step % kStages], step / kStages % 2);
      return;
    }
#endif
    gpu::CpAsyncWait<kStages - 2>();
  }

  // Whether some row of a step is not read from a page.
  GPU_DEVICE bool Partial(int step) const {
    return Position(step) < source_.begin || Position(step + 1) > source_.end;
  }

 private:
  static constexpr int kTileChunks = Shape::kTileBytes / 16;
  static constexpr int kHeadChunks = Shape::kHeadBytes / 16;
  static constexpr int kRowChunks = Shape::kRowBytes / 16;

  // Page ids are read a step ahead of the copies that need them; those of pages behind the first
  // key are not read.
  GPU_DEVICE void FetchPages(int step) {
    const bool mine = !kBulk || threadIdx.x == 0;
    const int last = source_.first_page + source_.page_count;
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      const int page = source_.first_page + step * kPages + i;
      const bool exists = mine && page < last && (page + 1) * kPageTokens > source_.begin;
      pages_[i] = exists ? gpu::Load<int32_t>(source_.table + page) : 0;
    }
  }

  GPU_DEVICE const uint8_t* Head(int page) const {
    return source_.head + page * source_.page_bytes;
  }

  GPU_DEVICE void LoadWholePages(int step) {
    uint8_t* stage = Stage(step);
    if constexpr (kBulk) {
#if GPU_HAS_BULK_COPY
      if (threadIdx.x != 0) return;
      gpu::Mbarrier* full = &full_[step % kStages];
      gpu::MbarrierArriveExpect(full, kStageBytes);
#pragma unroll
      for (int i = 0; i < kPages; ++i) {
        gpu::BulkCopyToShared(stage + i * Shape::kHeadBytes, Head(pages_[i]), Shape::kHeadBytes,
                              full);
      }
#endif
    } else {
#pragma unroll
      for (int i = 0; i < kPages; ++i) {
        const uint8_t* from = Head(pages_[i]);
        uint8_t* to = stage + i * Shape::kHeadBytes;
#pragma unroll
        for (int j = 0; j < (kHeadChunks + kThreads - 1) / kThreads; ++j) {
          const int n = j * kThreads + static_cast<int>(threadIdx.x);
          if ((j + 1) * kThreads <= kHeadChunks || n < kHeadChunks) {
            gpu::CpAsync16(to + n * 16, from + n * 16);
          }
        }
      }
    }
  }

  // A step at an end of the keys: at most two of a block, so short code, not fast code.
  GPU_DEVICE void LoadRows(int step) {
#if GPU_HAS_BULK_COPY
    if constexpr (kBulk) {
      if (threadIdx.x == 0) {
        const int first = max(source_.begin, Position(step));
        const int last = min(source_.end, Position(step + 1));
        const int pages = (last - 1) / kPageTokens - first / kPageTokens + 1;
        gpu::MbarrierArriveExpect(&full_[step % kStages],
                                  (last - first) * Shape::kRowBytes + pages * Shape::kScaleBytes);
      }
    }
#endif
#pragma unroll 1
    for (int i = 0; i < kPages; ++i) {
      const int position = Position(step) + i * kPageTokens;
      const int first = max(source_.begin - position, 0);
      const int last = min(source_.end - position, kPageTokens);
      const bool some = first < last;
      const int page = some ? gpu::Load<int32_t>(source_.table + position / kPageTokens) : 0;
      LoadRowsOfPage(step, Head(page), Stage(step) + i * Shape::kHeadBytes, some ? first : 0,
                     some ? last : 0);
    }
  }

  // Rows [first, last) and the scales; zeros everywhere else, and instead of the scales when there
  // is no row.
  GPU_DEVICE void LoadRowsOfPage(int step, const uint8_t* from, uint8_t* to, int first, int last) {
#if GPU_HAS_BULK_COPY
    if constexpr (kBulk) {
      if (threadIdx.x == 0 && first < last) {
        gpu::Mbarrier* full = &full_[step % kStages];
        gpu::BulkCopyToShared(to + first * Shape::kRowBytes, from + first * Shape::kRowBytes,
                              (last - first) * Shape::kRowBytes, full);
        if constexpr (Shape::kE4m3) {
          gpu::BulkCopyToShared(to + Shape::kTileBytes, from + Shape::kTileBytes,
                                Shape::kScaleBytes, full);
        }
      }
    }
#endif
#pragma unroll 1
    for (int n = threadIdx.x; n < kHeadChunks; n += kThreads) {
      const int row = n / kRowChunks;
      const bool take = n < kTileChunks ? row >= first && row < last : first < last;
      if constexpr (!kBulk) {
        gpu::CpAsync16(to + n * 16, from + n * 16, take);
      } else if (!take) {
        gpu::Store(to + n * 16, make_uint4(0, 0, 0, 0));
      }
    }
#if GPU_HAS_BULK_COPY
    if constexpr (kBulk) gpu::FenceProxyAsync();  // before a later bulk copy into this stage
#endif
  }

  const PageSource source_;
  uint8_t* const stages_;
  gpu::Mbarrier* const full_;
  int32_t pages_[kPages];  // of the next step to load
};

// Codes 0 and 2 of four e4m3 as two bf16, and codes 1 and 3. A code's exponent and mantissa moved
// into place are the number times 2^-120, subnormal ones included; the product is exact. (Code
// 0x7f, which nobody writes, would be 480.)
GPU_DEVICE uint32_t WidenEven(uint32_t codes) {
  return gpu::MulBf16x2((codes << 8 & 0x80008000u) | (codes << 4 & 0x07f007f0u), 0x7b807b80u);
}
GPU_DEVICE uint32_t WidenOdd(uint32_t codes) {
  return gpu::MulBf16x2((codes & 0x80008000u) | (codes >> 4 & 0x07f007f0u), 0x7b807b80u);
}

// Byte of a 16-byte chunk in rows of kRowChunks chunks, swizzled as page tiles are.
template <int kRowBytes>
GPU_DEVICE int SwizzledByte(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

}  // namespace lapidary
