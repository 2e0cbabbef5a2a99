// A model without weights whose logits depend on everything a real one's do: the tokens in the KV
// pages that the page tables name, their positions, the window, and a sum over the ranks. A wrong
// page, order, position or rank changes the tokens. With it a greedy sampler over vocabulary
// shards.
#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/scheduler.h"
#include "worker/model_runner.h"
#include "worker/sampler.h"

namespace lapidary {

inline constexpr int64_t kFakeVocab = 97;
inline constexpr int32_t kFakeWindow = 20;

// What the model answers after `context`, computed the plain way.
class FakeReference {
 public:
  static uint32_t Mix(uint32_t h, uint32_t v) { return (h ^ v) * 2654435761u + (h >> 15); }
  // Hash of a context as one family sees it: positions [begin, size) of it.
  static uint32_t Hash(const std::vector<TokenId>& context, int32_t begin) {
    uint32_t h = 17;
    for (int32_t p = begin; p < std::ssize(context); ++p) {
      h = Mix(h, static_cast<uint32_t>(context[p] * 131 + p));
    }
    return h;
  }
  // In (0, 1), exact in fp32, different for every id.
  static float Logit(uint32_t hash, TokenId id) {
    const uint32_t h = Mix(hash, static_cast<uint32_t>(id) + 1) >> 16;
    return static_cast<float>(h * 128 + static_cast<uint32_t>(id)) * 0x1p-24f;
  }
  static uint32_t ContextHash(const std::vector<TokenId>& context) {
    const int32_t n = static_cast<int32_t>(context.size());
    // Not a plain xor: within the window both hashes are the same.
    return Hash(context, std::max(0, n - kFakeWindow)) * 31 ^ Hash(context, 0);
  }
  static TokenId Next(const std::vector<TokenId>& context) {
    const uint32_t hash = ContextHash(context);
    TokenId best = 0;
    for (TokenId id = 1; id < kFakeVocab; ++id) {
      if (Logit(hash, id) > Logit(hash, best)) best = id;
    }
    return best;
  }
  static std::vector<TokenId> Continue(std::vector<TokenId> context, int count) {
    std::vector<TokenId> out;
    for (int i = 0; i < count; ++i) {
      out.push_back(Next(context));
      context.push_back(out.back());
    }
    return out;
  }
};

class FakeModelRunner final : public ModelRunner {
 public:
  FakeModelRunner(Communicator& comm, std::array<int32_t, kKvFamilies> pages, int max_logits_rows)
      : comm_(comm),
        shard_(SplitUnits(comm.size(), comm.rank().value)),
        max_logits_rows_(max_logits_rows),
        logits_(max_logits_rows * kFakeVocab),
        stream_(CreateCpuStream()) {
    (void)AllocateKv(pages);
  }

  int64_t weights_bytes() const override { return 0; }
  int64_t workspace_bytes() const override { return 0; }
  int64_t page_bytes(KvFamily) const override { return kPageTokens * sizeof(Entry); }
  absl::Status AllocateKv(const std::array<int32_t, kKvFamilies>& pages) override {
    for (int f = 0; f < kKvFamilies; ++f) kv_[f].assign(pages[f] * kPageTokens, Entry{});
    return absl::OkStatus();
  }

  absl::Status Forward(const HostBatch& batch) override {
    auto work = std::make_shared<Work>();
    work->batch = batch;
    for (int f = 0; f < kKvFamilies; ++f) {
      for (const std::vector<PageId>* table : batch.page_tables[f]) {
        work->tables[f].push_back(*table);
      }
    }
    work->partial.resize(2 * batch.logits_index.size());
    wanted_ = std::ssize(batch.logits_index);
    work_ = work;
    const bool fails = ++forwards == failing_forward;
    stream_->Enqueue([this, work, fails] {
      if (fails) return absl::UnavailableError("the device is gone");
      Compute(*work);
      return absl::OkStatus();
    });
    comm_.AllReduceSum(work->partial.data(), std::ssize(work->partial), *stream_);
    EnqueueLogits(0);
    return absl::OkStatus();
  }
  void EnqueueLogits(int64_t first_row) override {
    rows_ = std::min<int64_t>(max_logits_rows_, wanted_ - first_row);
    stream_->Enqueue([this, first_row, rows = rows_, work = work_] {
      for (int64_t r = 0; r < rows; ++r) {
        const float* halves = work->partial.data() + 2 * (first_row + r);
        const uint32_t hash = static_cast<uint32_t>(halves[0]) | static_cast<uint32_t>(halves[1])
                                                                     << 16;
        for (int64_t v = 0; v < shard_.size(); ++v) {
          logits_[r * kFakeVocab + v] =
              FakeReference::Logit(hash, static_cast<TokenId>(shard_.begin + v));
        }
      }
      return absl::OkStatus();
    });
  }
  LogitsView logits() const override {
    return LogitsView{const_cast<float*>(logits_.data()), rows_, kFakeVocab, shard_};
  }
  SampledIds sampled_ids() override {
    return {sampled_ids_.data(), static_cast<int32_t>(sampled_ids_.size() / 2)};
  }
  Stream& stream() override { return *stream_; }
  absl::StatusOr<std::unique_ptr<Sampler>> CreateSampler(Communicator& comm,
                                                         int64_t vocab) override;
  const std::string& resolved_arith() const override { return arith_; }
  void set_probe(Probe) override {}

  int forwards = 0;         // enqueued
  int failing_forward = 0;  // the one that fails on the stream, counted from 1
  std::atomic<int> computed = 0;

 private:
  // A forward pass; alive while the stream may read it.
  struct Work {
    HostBatch batch;  // without page tables
    std::array<std::vector<std::vector<PageId>>, kKvFamilies> tables;
    std::vector<float> partial;  // [wanted, 2], summed over the ranks
  };
  struct Entry {
    TokenId token = -1;
    int32_t position = -1;
  };
  static Range SplitUnits(int parts, int index) {
    return Range{kFakeVocab * index / parts, kFakeVocab * (index + 1) / parts};
  }
  Entry& At(int family, const std::vector<PageId>& table, int32_t position) {
    const int32_t page = table.at(position / kPageTokens).value;
    return kv_[family].at(page * kPageTokens + position % kPageTokens);
  }

  void Compute(Work& work) {
    const HostBatch& batch = work.batch;
    std::vector<uint32_t> all;
    for (size_t b = 0; b + 1 < batch.seq_begin.size(); ++b) {
      for (int32_t t = batch.seq_begin[b]; t < batch.seq_begin[b + 1]; ++t) {
        const int32_t p = batch.positions[t];
        const int32_t from = batch.sampled_from.empty() ? -1 : batch.sampled_from[t];
        const TokenId token = from < 0 ? batch.token_ids[t] : sampled_ids_.at(from);
        uint32_t hash = 0;
        for (int f = 0; f < kKvFamilies; ++f) {
          const std::vector<PageId>& table = work.tables[f][b];
          At(f, table, p) = Entry{token, p};
          uint32_t h = 17;
          for (int32_t q = f == 0 ? std::max(0, p + 1 - kFakeWindow) : 0; q <= p; ++q) {
            const Entry& e = At(f, table, q);
            h = FakeReference::Mix(h, static_cast<uint32_t>(e.token * 131 + e.position));
          }
          hash = hash * 31 ^ h;
        }
        all.push_back(hash);
      }
    }
    // Each rank knows one share of every hash; only their sum is whole. 16-bit halves: exact.
    size_t i = 0;
    for (const int32_t index : batch.logits_index) {
      for (const uint32_t half : {all[index] & 0xffff, all[index] >> 16}) {
        const bool mine = (half % comm_.size()) == static_cast<uint32_t>(comm_.rank().value);
        work.partial[i++] = mine ? static_cast<float>(half) : 0.0f;
      }
    }
    ++computed;
  }

  Communicator& comm_;
  const Range shard_;
  const int max_logits_rows_;
  const std::string arith_ = "fake";
  // Touched on the stream alone.
  std::array<std::vector<Entry>, kKvFamilies> kv_;
  std::vector<float> logits_;
  std::vector<TokenId> sampled_ids_ = std::vector<TokenId>(2 * 64, -1);

  // Of the last Forward.
  std::shared_ptr<Work> work_;
  int64_t wanted_ = 0;
  int64_t rows_ = 0;
  std::unique_ptr<Stream> stream_;  // destroyed first: its thread uses the rest
};

// Greedy over all ranks' shards; a token's "logprob" is its logit.
class FakeSampler final : public Sampler {
 public:
  FakeSampler(Communicator& comm) : comm_(comm) {}

  void Sample(const LogitsView& logits, std::vector<SampleRow> rows, Stream& stream,
              std::vector<SampledRow>* out) override {
    auto work = std::make_shared<Work>();
    work->rows = std::move(rows);
    work->gathered.assign(work->rows.size() * comm_.size(), Candidate{});
    stream.Enqueue([this, work, logits] {
      Candidate* own = Own(*work);
      for (size_t i = 0; i < work->rows.size(); ++i) {
        const SampleRow& row = work->rows[i];
        const float* x = logits.data + row.logits_row * logits.stride;
        own[i] = Candidate{};
        for (int64_t v = 0; v < logits.vocab.size(); ++v) {
          const auto id = static_cast<TokenId>(logits.vocab.begin + v);
          if (own[i].id < 0 || x[v] > own[i].logit) own[i].id = id, own[i].logit = x[v];
          if (id == row.scored_token) own[i].scored = x[v];
        }
      }
      return absl::OkStatus();
    });
    comm_.AllGather(Own(*work), static_cast<int64_t>(work->rows.size() * sizeof(Candidate)),
                    work->gathered.data(), stream);
    stream.Enqueue([this, work, out] {
      out->clear();
      for (size_t i = 0; i < work->rows.size(); ++i) {
        Candidate best;
        for (int r = 0; r < comm_.size(); ++r) {
          const Candidate& c = work->gathered[r * work->rows.size() + i];
          if (best.id < 0 || c.logit > best.logit) best.id = c.id, best.logit = c.logit;
          best.scored += c.scored;
        }
        SampledRow row;
        row.sampled.id = work->rows[i].samples ? best.id : -1;
        row.sampled.logprob = best.logit;
        row.scored.id = work->rows[i].scored_token;
        row.scored.logprob = best.scored;
        if (work->rows[i].id_out != nullptr) *work->rows[i].id_out = row.sampled.id;
        out->push_back(row);
      }
      return absl::OkStatus();
    });
  }

 private:
  struct Candidate {
    TokenId id = -1;
    float logit = 0;
    float scored = 0;  // the scored token's logit, on the rank that holds it
  };
  struct Work {
    std::vector<SampleRow> rows;
    std::vector<Candidate> gathered;
  };
  Candidate* Own(Work& work) const {
    return work.gathered.data() + comm_.rank().value * work.rows.size();
  }
  Communicator& comm_;
};

inline absl::StatusOr<std::unique_ptr<Sampler>> FakeModelRunner::CreateSampler(Communicator& comm,
                                                                               int64_t) {
  return std::make_unique<FakeSampler>(comm);
}

// A prompt that differs from seed to seed.
inline std::vector<TokenId> Prompt(int seed, int length) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < length; ++i) tokens.push_back((seed * 31 + i * 7 + i * i) % kFakeVocab);
  return tokens;
}

// Greedy, on the prompt of its id.
inline EngineRequest Request(uint64_t id, int prompt_len, int max_tokens) {
  EngineRequest request;
  request.sequence.id = RequestId{id};
  request.sequence.tokens = Prompt(static_cast<int>(id), prompt_len);
  request.sequence.prompt_len = prompt_len;
  request.sequence.sampling.temperature = 0;
  request.sequence.sampling.max_tokens = max_tokens;
  return request;
}

}  // namespace lapidary
