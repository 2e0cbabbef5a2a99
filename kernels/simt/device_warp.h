// Barriers, votes, shuffles and reductions of CUDA C++. Part of device.h.
#pragma once
#include <cstdint>
#include <type_traits>

#include "kernels/simt/barriers.h"
#include "kernels/simt/failure.h"
#include "kernels/simt/thread.h"
#include "kernels/simt/warp.h"

namespace lapidary::simt {

enum class ShuffleKind { kIndex, kUp, kDown, kXor };

// The lane that `lane` reads in a shuffle with segments of `width` lanes.
LAPIDARY_SIMT_INTERNAL inline int ShuffleSource(ShuffleKind kind, int lane, int argument,
                                                int width) {
  const int base = lane & ~(width - 1);
  int source = lane;
  switch (kind) {
    case ShuffleKind::kIndex:
      return base + (argument & (width - 1));
    case ShuffleKind::kUp:
      source = lane - argument;
      return source < base ? lane : source;
    case ShuffleKind::kDown:
      source = lane + argument;
      break;
    case ShuffleKind::kXor:
      source = lane ^ argument;
      break;
  }
  return source >= base + width ? lane : source;
}

template <class T>
LAPIDARY_SIMT_INTERNAL inline T Shuffle(uint32_t mask, T value, ShuffleKind kind, int argument,
                                        int width, Site site) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  struct Operand {
    T value;
    int source;
    T result;
  };
  Operand operand{
      value, ShuffleSource(kind, static_cast<int>(current_thread->lane), argument, width), value};
  MeetLanes(
      mask, site, &operand, [](void** all, uint32_t lanes, Site where) LAPIDARY_SIMT_INTERNAL {
        for (int lane = 0; lane < 32; ++lane) {
          if (!(lanes >> lane & 1)) continue;
          auto* o = static_cast<Operand*>(all[lane]);
          if (lanes >> (o->source & 31) & 1) {
            o->result = static_cast<Operand*>(all[o->source & 31])->value;
          } else {
            Fail(where, "shuffle: lane %d reads lane %d, which takes no part", lane, o->source);
          }
        }
      });
  return operand.result;
}

// result = f over the values of all lanes that take part, in ascending order of lanes.
template <class T, class F>
LAPIDARY_SIMT_INTERNAL inline T Combine(uint32_t mask, T value, F, Site site) {
  struct Operand {
    T value, result;
  };
  Operand operand{value, value};
  MeetLanes(mask, site, &operand, [](void** all, uint32_t lanes, Site) LAPIDARY_SIMT_INTERNAL {
    T sum{};
    bool first = true;
    for (int lane = 0; lane < 32; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      const T v = static_cast<Operand*>(all[lane])->value;
      sum = first ? v : F{}(sum, v);
      first = false;
    }
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes >> lane & 1) static_cast<Operand*>(all[lane])->result = sum;
    }
  });
  return operand.result;
}

LAPIDARY_SIMT_INTERNAL inline uint32_t Ballot(uint32_t mask, bool vote, Site site) {
  struct Operand {
    bool vote;
    uint32_t result;
  };
  Operand operand{vote, 0};
  MeetLanes(mask, site, &operand, [](void** all, uint32_t lanes, Site) LAPIDARY_SIMT_INTERNAL {
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes >> lane & 1) votes |= uint32_t{static_cast<Operand*>(all[lane])->vote} << lane;
    }
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes >> lane & 1) static_cast<Operand*>(all[lane])->result = votes;
    }
  });
  return operand.result;
}

// Lanes that hold the same value.
template <class T>
LAPIDARY_SIMT_INTERNAL inline uint32_t MatchAny(uint32_t mask, T value, Site site) {
  struct Operand {
    T value;
    uint32_t result;
  };
  Operand operand{value, 0};
  MeetLanes(mask, site, &operand, [](void** all, uint32_t lanes, Site) LAPIDARY_SIMT_INTERNAL {
    for (int lane = 0; lane < 32; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      auto* o = static_cast<Operand*>(all[lane]);
      for (int other = 0; other < 32; ++other) {
        if (!(lanes >> other & 1)) continue;
        if (memcmp(&o->value, &static_cast<Operand*>(all[other])->value, sizeof(T)) == 0) {
          o->result |= 1u << other;
        }
      }
    }
  });
  return operand.result;
}

struct Sum {
  template <class T>
  T operator()(T a, T b) const {
    return a + b;
  }
};
struct Least {
  template <class T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Greatest {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct And {
  unsigned operator()(unsigned a, unsigned b) const { return a & b; }
};
struct Or {
  unsigned operator()(unsigned a, unsigned b) const { return a | b; }
};
struct Xor {
  unsigned operator()(unsigned a, unsigned b) const { return a ^ b; }
};

}  // namespace lapidary::simt

#define LAPIDARY_SIMT_SITE ::lapidary::simt::Site site = ::lapidary::simt::Site::Here()
#define LAPIDARY_SIMT_INLINE LAPIDARY_SIMT_INTERNAL inline

LAPIDARY_SIMT_INLINE void __syncthreads(LAPIDARY_SIMT_SITE) {
  ::lapidary::simt::BlockBarrier(site);
}
LAPIDARY_SIMT_INLINE int __syncthreads_count(int p, LAPIDARY_SIMT_SITE) {
  return ::lapidary::simt::CountAtBarrier(p != 0, site);
}
LAPIDARY_SIMT_INLINE int __syncthreads_or(int p, LAPIDARY_SIMT_SITE) {
  return ::lapidary::simt::CountAtBarrier(p != 0, site) != 0;
}
LAPIDARY_SIMT_INLINE int __syncthreads_and(int p, LAPIDARY_SIMT_SITE) {
  return ::lapidary::simt::CountAtBarrier(p == 0, site) == 0;
}
LAPIDARY_SIMT_INLINE void __syncwarp(unsigned mask = 0xffffffffu, LAPIDARY_SIMT_SITE) {
  ::lapidary::simt::SyncWarp(mask, site);
}
// Any set of lanes that contains the caller is a right answer: the smallest, so that no kernel
// relies on more.
LAPIDARY_SIMT_INLINE unsigned __activemask() {
  return 1u << ::lapidary::simt::current_thread->lane;
}

LAPIDARY_SIMT_INLINE unsigned __ballot_sync(unsigned mask, int p, LAPIDARY_SIMT_SITE) {
  return ::lapidary::simt::Ballot(mask, p != 0, site);
}
LAPIDARY_SIMT_INLINE int __any_sync(unsigned mask, int p, LAPIDARY_SIMT_SITE) {
  return ::lapidary::simt::Ballot(mask, p != 0, site) != 0;
}
LAPIDARY_SIMT_INLINE int __all_sync(unsigned mask, int p, LAPIDARY_SIMT_SITE) {
  return ::lapidary::simt::Ballot(mask, p == 0, site) == 0;
}
template <class T>
LAPIDARY_SIMT_INLINE unsigned __match_any_sync(unsigned mask, T v, LAPIDARY_SIMT_SITE) {
  return ::lapidary::simt::MatchAny(mask, v, site);
}
// `mask` if all lanes hold the same value, else 0.
template <class T>
LAPIDARY_SIMT_INLINE unsigned __match_all_sync(unsigned mask, T v, int* same, LAPIDARY_SIMT_SITE) {
  *same = ::lapidary::simt::MatchAny(mask, v, site) == mask;
  return *same ? mask : 0;
}

template <class T>
LAPIDARY_SIMT_INLINE T __shfl_sync(unsigned mask, T v, int lane, int width = 32,
                                   LAPIDARY_SIMT_SITE) {
  return ::lapidary::simt::Shuffle(mask, v, ::lapidary::simt::ShuffleKind::kIndex, lane, width,
                                   site);
}
template <class T>
LAPIDARY_SIMT_INLINE T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32,
                                      LAPIDARY_SIMT_SITE) {
  return ::lapidary::simt::Shuffle(mask, v, ::lapidary::simt::ShuffleKind::kUp,
                                   static_cast<int>(delta), width, site);
}
template <class T>
LAPIDARY_SIMT_INLINE T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32,
                                        LAPIDARY_SIMT_SITE) {
  return ::lapidary::simt::Shuffle(mask, v, ::lapidary::simt::ShuffleKind::kDown,
                                   static_cast<int>(delta), width, site);
}
template <class T>
LAPIDARY_SIMT_INLINE T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32,
                                       LAPIDARY_SIMT_SITE) {
  return ::lapidary::simt::Shuffle(mask, v, ::lapidary::simt::ShuffleKind::kXor, lanes, width,
                                   site);
}

template <class T>
LAPIDARY_SIMT_INLINE T __reduce_add_sync(unsigned mask, T v, LAPIDARY_SIMT_SITE) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return ::lapidary::simt::Combine(mask, v, ::lapidary::simt::Sum{}, site);
}
template <class T>
LAPIDARY_SIMT_INLINE T __reduce_min_sync(unsigned mask, T v, LAPIDARY_SIMT_SITE) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return ::lapidary::simt::Combine(mask, v, ::lapidary::simt::Least{}, site);
}
template <class T>
LAPIDARY_SIMT_INLINE T __reduce_max_sync(unsigned mask, T v, LAPIDARY_SIMT_SITE) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return ::lapidary::simt::Combine(mask, v, ::lapidary::simt::Greatest{}, site);
}
LAPIDARY_SIMT_INLINE unsigned __reduce_and_sync(unsigned mask, unsigned v, LAPIDARY_SIMT_SITE) {
  return ::lapidary::simt::Combine(mask, v, ::lapidary::simt::And{}, site);
}
LAPIDARY_SIMT_INLINE unsigned __reduce_or_sync(unsigned mask, unsigned v, LAPIDARY_SIMT_SITE) {
  return ::lapidary::simt::Combine(mask, v, ::lapidary::simt::Or{}, site);
}
LAPIDARY_SIMT_INLINE unsigned __reduce_xor_sync(unsigned mask, unsigned v, LAPIDARY_SIMT_SITE) {
  return ::lapidary::simt::Combine(mask, v, ::lapidary::simt::Xor{}, site);
}
#undef LAPIDARY_SIMT_INLINE
#undef LAPIDARY_SIMT_SITE
