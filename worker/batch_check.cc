#include "worker/batch_check.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace lapidary {

absl::Status CheckBatch(const HostBatch& host, const BatchLimits& limits) {
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

}  // namespace lapidary
