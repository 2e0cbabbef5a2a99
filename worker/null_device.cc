#include "worker/null_device.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "model/checkpoint.h"
#include "model/shard_plan.h"
#include "model/tokenizer.h"
#include "worker/stream.h"

namespace lapidary {
namespace {

constexpr size_t kMaxTokens = 4096;  // of the table: enough for variety, small enough for a cache

// Runs work at once, on the caller's thread: a device without a queue costs no thread switch.
class InlineStream final : public Stream {
 public:
  void Enqueue(std::function<absl::Status()> fn) override {
    if (status_.ok()) status_ = fn();
  }
  absl::Status Synchronize() override { return std::exchange(status_, absl::OkStatus()); }

 private:
  absl::Status status_;
};

// What a page would take on this rank in bf16, so that pools and preemption are like a real one's.
std::array<int64_t, kKvFamilies> PageBytes(const ModelSpec& spec, const RankShard& shard) {
  std::array<int64_t, kKvFamilies> bytes = {0, 0};
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    if (spec.shares_kv(static_cast<int>(i))) continue;
    const int64_t heads = std::max<int64_t>(1, shard.layers[i].kv_heads.size());
    constexpr int64_t kKeyAndValue = 2, kBf16 = 2;
    bytes[static_cast<int>(layer.kind)] +=
        kPageTokens * heads * layer.head_dim * kKeyAndValue * kBf16;
  }
  return bytes;
}

class NullSampler final : public Sampler {
 public:
  explicit NullSampler(std::vector<TokenId> tokens) : tokens_(std::move(tokens)) {}

  void Sample(const LogitsView&, std::vector<SampleRow> rows, Stream& stream,
              std::vector<SampledRow>* out) override {
    stream.Enqueue([this, rows = std::move(rows), out] {
      out->clear();
      out->resize(rows.size());
      for (size_t i = 0; i < rows.size(); ++i) {
        const SampleRow& row = rows[i];
        (*out)[i].sampled.id = row.samples ? Token(row) : -1;
        (*out)[i].scored.id = row.scored_token;
      }
      return absl::OkStatus();
    });
  }

 private:
  TokenId Token(const SampleRow& row) const {
    return tokens_[NullTokenIndex(row.params->seed, row.choice, row.position, tokens_.size())];
  }

  const std::vector<TokenId> tokens_;
};

class NullRunner final : public ModelRunner {
 public:
  NullRunner(std::array<int64_t, kKvFamilies> page_bytes, Range vocab, std::vector<TokenId> tokens,
             int max_step_tokens, absl::Duration step)
      : page_bytes_(page_bytes),
        vocab_(vocab),
        tokens_(std::move(tokens)),
        step_(step),
        sampled_ids_(2 * static_cast<size_t>(max_step_tokens)) {
    if (step > absl::ZeroDuration()) {
      stream_ = CreateCpuStream();
    } else {
      stream_ = std::make_unique<InlineStream>();
    }
  }

  int64_t weights_bytes() const override { return 0; }
  int64_t workspace_bytes() const override { return 0; }
  int64_t page_bytes(KvFamily family) const override {
    return page_bytes_[static_cast<int>(family)];
  }
  absl::Status AllocateKv(const std::array<int32_t, kKvFamilies>&) override {
    return absl::OkStatus();
  }
  absl::Status Forward(const HostBatch& batch) override {
    rows_ = std::ssize(batch.logits_index);
    if (step_ > absl::ZeroDuration()) {
      // A device begins with a step when it has it and has done the one before, whenever the host
      // gets to look.
      busy_until_ = std::max(busy_until_, absl::Now()) + step_;
      stream_->Enqueue([until = busy_until_] {
        absl::SleepFor(until - absl::Now());
        return absl::OkStatus();
      });
    }
    return absl::OkStatus();
  }
  // No numbers behind it: the null sampler asks for none.
  LogitsView logits() const override { return LogitsView{nullptr, rows_, 0, vocab_}; }
  void EnqueueLogits(int64_t) override {}
  Stream& stream() override { return *stream_; }
  SampledIds sampled_ids() override {
    return {sampled_ids_.data(), static_cast<int32_t>(sampled_ids_.size() / 2)};
  }
  absl::StatusOr<std::unique_ptr<Sampler>> CreateSampler(Communicator&, int64_t) override {
    return std::make_unique<NullSampler>(tokens_);
  }
  const std::string& resolved_arith() const override { return arith_; }
  void set_probe(Probe) override {}

 private:
  const std::array<int64_t, kKvFamilies> page_bytes_;
  const Range vocab_;
  const std::vector<TokenId> tokens_;  // for the sampler
  const absl::Duration step_;
  std::vector<TokenId> sampled_ids_;  // nobody looks at them
  const std::string arith_ = "null";
  int64_t rows_ = 0;
  absl::Time busy_until_ = absl::InfinitePast();
  std::unique_ptr<Stream> stream_;
};

bool Printable(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

bool Contains(const std::vector<TokenId>& ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// Plain text entries, evenly from the whole vocabulary. Without a tokenizer, which then nobody
// needs: any entry that ends nothing.
absl::StatusOr<std::vector<TokenId>> TokenTable(const Checkpoint& checkpoint) {
  const ModelSpec& spec = checkpoint.spec();
  std::vector<TokenId> usable;
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(checkpoint.path());
  if (!tokenizer.ok() && !absl::IsNotFound(tokenizer.status())) return tokenizer.status();
  for (TokenId id = 0; id < spec.vocab; ++id) {
    if (Contains(spec.eos_ids, id) || Contains(checkpoint.generation_defaults().eos_ids, id)) {
      continue;
    }
    if (!tokenizer.ok()) {
      if (id != spec.bos_id && id != spec.pad_id) usable.push_back(id);
    } else if ((*tokenizer)->kind(id) == TokenKind::kNormal &&
               Printable((*tokenizer)->PieceText(id))) {
      usable.push_back(id);
    }
  }
  if (usable.empty()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: none of %d vocabulary entries is printable text", checkpoint.path(), spec.vocab));
  }
  std::vector<TokenId> table;
  const size_t step = (usable.size() + kMaxTokens - 1) / kMaxTokens;
  for (size_t i = 0; i < usable.size(); i += step) table.push_back(usable[i]);
  return table;
}

absl::StatusOr<LoadedModel> LoadNullModel(const NullDeviceOptions& options,
                                          const ModelRequest& request, Communicator& comm,
                                          const LoadProgress& progress) {
  LoadedModel model;
  ASSIGN_OR_RETURN(model.checkpoint,
                   Checkpoint::Open(request.path, CheckpointOptions{.require_tensors = false}));
  const ModelSpec& spec = model.checkpoint->spec();
  ASSIGN_OR_RETURN(const ShardPlan shards, PlanShards(spec, request.size));
  const RankShard& shard = shards.ranks[static_cast<size_t>(request.rank.value)];
  ASSIGN_OR_RETURN(std::vector<TokenId> tokens, TokenTable(*model.checkpoint));
  model.vocab = spec.vocab;
  model.model_context = static_cast<int32_t>(std::min<int64_t>(spec.max_context, INT32_MAX));
  for (const LayerSpec& layer : spec.layers) model.window = std::max(model.window, layer.window);
  model.runner =
      std::make_unique<NullRunner>(PageBytes(spec, shard), shard.vocab, std::move(tokens),
                                   request.options.max_step_tokens, options.step);
  ASSIGN_OR_RETURN(model.sampler, model.runner->CreateSampler(comm, spec.vocab));
  progress(0, 0);
  return model;
}

}  // namespace

uint64_t NullTokenIndex(uint64_t seed, uint32_t choice, int32_t position, uint64_t size) {
  // SplitMix64 over a counter of its own for every choice.
  uint64_t z =
      seed + (uint64_t{choice} << 32 | static_cast<uint32_t>(position)) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return (z ^ (z >> 31)) % size;
}

ModelLoader NullModelLoader(const NullDeviceOptions& options) {
  return [options](const ModelRequest& request, Communicator& comm, const LoadProgress& progress) {
    return LoadNullModel(options, request, comm, progress);
  };
}

}  // namespace lapidary
