// What the CPU's operations read of a step: the host batch, copied, with each sequence's pages and
// the cosines and sines of its positions.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention/attention.h"
#include "kernels/thread_team.h"
#include "worker/backend.h"
#include "worker/batch_check.h"
#include "worker/rope_set.h"

namespace lapidary {

struct CpuBatch final : DeviceBatch {
  std::vector<TokenId> token_ids;      // [T]; not in a WantedPart, which nobody embeds
  std::vector<int32_t> sampled_from;   // [T] or empty, see HostBatch
  std::vector<int32_t> positions;      // [T]
  std::vector<int32_t> sequence_of;    // [T]
  std::vector<int32_t> wanted_tokens;  // [wanted]
  std::array<std::vector<int32_t>, kKvFamilies>
      pages;  // all sequences' entries, one after the other
  std::array<std::vector<AttentionSequence>, kKvFamilies> sequences;  // point into `pages`
  std::shared_ptr<const CpuBatch> whole;    // keeps `pages` alive when this is a part of it
  std::vector<std::vector<float>> cos_sin;  // per RopeSet entry: [T, 2 pairs]; filled on the stream

  int32_t Page(KvFamily family, int64_t token) const {
    const AttentionSequence& s = sequences[static_cast<int>(family)][sequence_of[token]];
    return s.pages[positions[token] / kPageTokens];
  }

  // Puts the ids that earlier steps sampled into their places. On the stream.
  void TakeSampled(const std::vector<TokenId>& ids);
  void FillRotations(ThreadTeam& team, const RopeSet& ropes);
};

// The wanted tokens of a batch, as sequences of consecutive positions.
std::shared_ptr<CpuBatch> WantedPart(const std::shared_ptr<const CpuBatch>& whole);

// INVALID_ARGUMENT when lengths contradict each other, positions do not ascend, or a page that
// would be read or written does not exist.
absl::StatusOr<std::shared_ptr<CpuBatch>> MakeCpuBatch(const HostBatch& host,
                                                       const BatchLimits& limits);

}  // namespace lapidary
