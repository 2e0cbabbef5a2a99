// Ids as types, so that two of different kinds cannot be swapped.
#pragma once
#include <cstdint>
#include <functional>

namespace lapidary {

template <class Tag, class Int>
struct StrongId {
  using Value = Int;
  Int value = 0;

  friend constexpr auto operator<=>(StrongId, StrongId) = default;  // NOLINT(modernize-use-nullptr)
  template <class H>
  friend H AbslHashValue(H h, StrongId id) {
    return H::combine(std::move(h), id.value);
  }
};

// One sequence in the engine: a choice of a client's request. Unique while a leader lives.
using RequestId = StrongId<struct RequestIdTag, uint64_t>;
// A worker process of a group, 0 (the leader) to size - 1.
using RankId = StrongId<struct RankIdTag, int32_t>;
// A page of one KV family, an index into that family's pool.
using PageId = StrongId<struct PageIdTag, int32_t>;
// A decoder layer, 0 to ModelSpec::layers.size() - 1.
using LayerId = StrongId<struct LayerIdTag, int32_t>;

// A vocabulary entry. A plain integer: arrays of them go to devices and into messages.
using TokenId = int32_t;

}  // namespace lapidary

template <class Tag, class Int>
struct std::hash<lapidary::StrongId<Tag, Int>> {
  size_t operator()(lapidary::StrongId<Tag, Int> id) const { return std::hash<Int>()(id.value); }
};
