#include "worker/cpu_backend_batch.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "kernels/elementwise/rope.h"

namespace lapidary {
namespace {

absl::Status CheckShape(const HostBatch& host, const BatchLimits& limits) {
  const auto tokens = static_cast<int64_t>(host.token_ids.size());
  const auto sequences = static_cast<int64_t>(host.context_len.size());
  if (tokens > limits.max_tokens) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a step of %d tokens, the limit is %d", tokens, limits.max_tokens));
  }
  if (static_cast<int64_t>(host.positions.size()) != tokens ||
      static_cast<int64_t>(host.seq_begin.size()) != sequences + 1 || host.seq_begin[0] != 0 ||
      host.seq_begin.back() != tokens) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a batch of %d tokens with %d positions and %d sequences with %d bounds",
                        tokens, host.positions.size(), sequences, host.seq_begin.size()));
  }
  for (int64_t b = 0; b < sequences; ++b) {
    const int32_t begin = host.seq_begin[b], end = host.seq_begin[b + 1];
    if (begin > end) return absl::InvalidArgumentError("sequence bounds descend");
    for (int32_t t = begin; t < end; ++t) {
      if (host.positions[t] < 0 || host.positions[t] != host.positions[begin] + (t - begin)) {
        return absl::InvalidArgumentError(absl::StrFormat("sequence %d: token %d is at position %d",
                                                          b, t - begin, host.positions[t]));
      }
    }
    if (begin < end && host.context_len[b] != host.positions[end - 1] + 1) {
      return absl::InvalidArgumentError(
          absl::StrFormat("sequence %d: a context of %d after position %d", b, host.context_len[b],
                          host.positions[end - 1]));
    }
  }
  if (!host.sampled_from.empty() && std::ssize(host.sampled_from) != tokens) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a batch of %d tokens with %d sources", tokens, host.sampled_from.size()));
  }
  for (const int32_t from : host.sampled_from) {
    if (from < limits.sampled_ids) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("a token is sampled id %d of %d", from, limits.sampled_ids));
  }
  int32_t last = -1;
  for (const int32_t index : host.logits_index) {
    if (index <= last || index >= tokens) {
      return absl::InvalidArgumentError(
          absl::StrFormat("logits of token %d after token %d of %d", index, last, tokens));
    }
    last = index;
  }
  return absl::OkStatus();
}

// Copies one sequence's table and checks the entries that the step reads or writes.
absl::Status CopyPages(const HostBatch& host, const BatchLimits& limits, int family, int64_t b,
                       std::vector<int32_t>& out) {
  const int32_t begin = host.seq_begin[b], end = host.seq_begin[b + 1];
  if (begin == end || !limits.used[family]) return absl::OkStatus();
  if (static_cast<int64_t>(host.page_tables[family].size()) <= b ||
      host.page_tables[family][b] == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat("sequence %d has no page table", b));
  }
  const std::vector<PageId>& table = *host.page_tables[family][b];
  const int32_t last = host.positions[end - 1] / kPageTokens;
  const int window = limits.windows[family];
  const int32_t first =
      window > 0 ? std::max(0, host.positions[begin] - window + 1) / kPageTokens : 0;
  if (static_cast<int64_t>(table.size()) <= last) {
    return absl::InvalidArgumentError(
        absl::StrFormat("sequence %d: %d pages do not reach position %d", b, table.size(),
                        host.positions[end - 1]));
  }
  for (int32_t i = 0; i <= last; ++i) {
    const int32_t page = table[i].value;
    const bool exists = page >= 0 && page < limits.pages[family];
    if (!exists && i >= first) {
      return absl::InvalidArgumentError(
          absl::StrFormat("sequence %d: page %d of %d", b, page, limits.pages[family]));
    }
    out.push_back(exists ? page : 0);
  }
  return absl::OkStatus();
}

}  // namespace

int RopeSet::Add(const LayerSpec& layer) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Entry& e = entries_[i];
    if (e.head_dim == layer.head_dim && e.spec.theta == layer.rope.theta &&
        e.spec.rotated_pairs == layer.rope.rotated_pairs && e.spec.factor == layer.rope.factor) {
      return static_cast<int>(i);
    }
  }
  entries_.push_back({layer.rope, layer.head_dim,
                      RopeFrequencies(layer.rope.theta, layer.head_dim, layer.rope.rotated_pairs,
                                      layer.rope.factor)});
  return static_cast<int>(entries_.size()) - 1;
}

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
  RETURN_IF_ERROR(CheckShape(host, limits));
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
