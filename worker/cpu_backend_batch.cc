#include "worker/cpu_backend_batch.h"

#include <algorithm>

#include "common/status_macros.h"
#include "kernels/elementwise/rope.h"

namespace lapidary {

void CpuBatch::TakeSampled(const std::vector<TokenId>& ids) {
  for (size_t t = 0; t < sampled_from.size(); ++t) {
    if (sampled_from[t] >= 0) token_ids[t] = ids[sampled_from[t]];
  }
}

void CpuBatch::FillRotations(ThreadTeam& team, const RopeSet& ropes) {
  const auto fill = [&](int64_t begin, int64_t end) {
    for (size_t r = 0; r < cos_sin.size(); ++r) {
      const RopeSet::Entry& rope = ropes.entries()[r];
      for (int64_t t = begin; t < end; ++t) {
        RopeRow(positions[t], rope.frequency.data(), rope.pairs(),
                cos_sin[r].data() + t * 2 * rope.pairs());
      }
    }
  };
  cos_sin.resize(ropes.entries().size());
  for (size_t r = 0; r < cos_sin.size(); ++r) {
    cos_sin[r].resize(tokens * 2 * ropes.entries()[r].pairs());
  }
  constexpr int64_t kTokensWorthThreads = 16;
  if (tokens < kTokensWorthThreads) {
    fill(0, tokens);
    return;
  }
  team.Run([&](int t) {
    fill(ThreadTeam::Begin(tokens, t, team.size()), ThreadTeam::Begin(tokens, t + 1, team.size()));
  });
}

std::shared_ptr<CpuBatch> WantedPart(const std::shared_ptr<const CpuBatch>& whole) {
  auto part = std::make_shared<CpuBatch>();
  part->whole = whole;
  part->tokens = part->wanted = whole->wanted;
  int32_t previous = -2;
  for (int32_t i = 0; i < static_cast<int32_t>(whole->wanted); ++i) {
    const int32_t token = whole->wanted_tokens[i], sequence = whole->sequence_of[token];
    part->positions.push_back(whole->positions[token]);
    part->wanted_tokens.push_back(i);
    const bool follows = token == previous + 1 && whole->sequence_of[previous] == sequence;
    for (int f = 0; f < kKvFamilies; ++f) {
      if (follows) {
        ++part->sequences[f].back().len;
      } else {
        part->sequences[f].push_back({.pages = whole->sequences[f][sequence].pages,
                                      .position = whole->positions[token],
                                      .len = 1,
                                      .token = i});
      }
    }
    part->sequence_of.push_back(static_cast<int32_t>(part->sequences[0].size()) - 1);
    previous = token;
  }
  return part;
}

absl::StatusOr<std::shared_ptr<CpuBatch>> MakeCpuBatch(const HostBatch& host,
                                                       const BatchLimits& limits) {
  RETURN_IF_ERROR(CheckBatch(host, limits));
  auto batch = std::make_shared<CpuBatch>();
  batch->tokens = static_cast<int64_t>(host.token_ids.size());
  batch->wanted = static_cast<int64_t>(host.logits_index.size());
  batch->token_ids = host.token_ids;
  batch->sampled_from = host.sampled_from;
  batch->positions = host.positions;
  batch->wanted_tokens = host.logits_index;
  const auto sequences = static_cast<int64_t>(host.context_len.size());
  batch->sequence_of.resize(batch->tokens);
  for (int64_t b = 0; b < sequences; ++b) {
    std::fill(batch->sequence_of.begin() + host.seq_begin[b],
              batch->sequence_of.begin() + host.seq_begin[b + 1], static_cast<int32_t>(b));
  }
  for (int f = 0; f < kKvFamilies; ++f) {
    std::vector<size_t> begins;
    for (int64_t b = 0; b < sequences; ++b) {
      begins.push_back(batch->pages[f].size());
      RETURN_IF_ERROR(CopyPages(host, limits, f, b, batch->pages[f]));
    }
    for (int64_t b = 0; b < sequences; ++b) {
      const int32_t begin = host.seq_begin[b], len = host.seq_begin[b + 1] - begin;
      batch->sequences[f].push_back({.pages = batch->pages[f].data() + begins[b],
                                     .position = len > 0 ? host.positions[begin] : 0,
                                     .len = len,
                                     .token = begin});
    }
  }
  return batch;
}

}  // namespace lapidary
