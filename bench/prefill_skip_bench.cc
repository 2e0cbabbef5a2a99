// What a prompt saves on models whose last layers share KV: a token whose logits nobody asked for
// stops after the last layer that owns KV. The same prompt three times over, turn by turn: logits
// of every token (nothing can stop), of the last one, of none (a chunk that is not the last).
//
//   prefill_skip_bench [CONFIG] [--tokens 512] [--threads 1] [--repeat 2]
//
// Times are CPU time of the process, so that others on the machine do not count; with one thread
// nobody spins at a barrier.
// CONFIG is a config.json (tests/golden/configs/gemma-4-e2b.json); layers have its true widths.
// Weights are random Q8_0 blocks, one memory for all tensors, computed in int8. The vocabulary is
// cut to 512, so that the head, which the first variant computes for every token, weighs nothing,
// and the tables of per-layer embeddings fit.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/shard_plan.h"
#include "model/tensor_table.h"
#include "worker/model_runner.h"

namespace lapidary {
namespace {

constexpr int64_t kVocab = 512;

void Die(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

// All tensors of a spec, laid over one buffer of random blocks and one of random floats.
class RandomCheckpoint final : public Checkpoint {
 public:
  explicit RandomCheckpoint(ModelSpec spec) : spec_(std::move(spec)) {
    constexpr int64_t kBlock = 32, kBlockBytes = 34;
    int64_t largest = 0, longest = 0;
    for (const ExpectedTensor& expected : ExpectedTensors(spec_)) {
      StoredTensor tensor;
      tensor.name = expected.name;
      tensor.shape = expected.shape;
      const int64_t count = tensor.rows() * tensor.inner();
      const bool matrix = tensor.shape.size() > 1 && tensor.inner() % kBlock == 0;
      tensor.dtype = matrix ? DType::kQ8_0 : DType::kF32;
      tensor.bytes = matrix ? count / kBlock * kBlockBytes : count * 4;
      (matrix ? largest : longest) = std::max(matrix ? largest : longest, tensor.bytes);
      tensors_.push_back(std::move(tensor));
    }
    std::mt19937 random(1);
    blocks_.resize(static_cast<size_t>(largest));
    for (uint8_t& byte : blocks_) byte = static_cast<uint8_t>(random());
    constexpr uint16_t kScale = 0x0cc0;  // fp16, about 3e-4: weights of up to 0.04
    for (int64_t at = 0; at < largest; at += kBlockBytes) {
      std::memcpy(blocks_.data() + at, &kScale, sizeof kScale);
    }
    floats_.resize(static_cast<size_t>(longest / 4));
    for (float& f : floats_) f = 0.5f + static_cast<float>(random() % 1000) / 1000;
    for (StoredTensor& tensor : tensors_) {
      tensor.data = tensor.dtype == DType::kQ8_0 ? blocks_.data()
                                                 : reinterpret_cast<const uint8_t*>(floats_.data());
      index_[tensor.name] = &tensor;
    }
  }

  const ModelSpec& spec() const override { return spec_; }
  const GenerationDefaults& generation_defaults() const override { return defaults_; }
  const std::string& path() const override { return path_; }
  const StoredTensor* Find(std::string_view name) const override {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : found->second;
  }
  const std::vector<StoredTensor>& tensors() const override { return tensors_; }
  const std::vector<std::string>& unused_tensors() const override { return unused_; }
  bool quantized() const override { return true; }

 private:
  ModelSpec spec_;
  GenerationDefaults defaults_;
  std::string path_ = "random weights";
  std::vector<std::string> unused_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, const StoredTensor*, std::less<>> index_;
  std::vector<uint8_t> blocks_;
  std::vector<float> floats_;
};

struct Variant {
  const char* name;
  double best = 1e30;
  std::vector<float> last;  // logits of the last token
};

// The prompt in one step; logits of tokens [first_wanted, tokens).
void Prefill(ModelRunner& runner, int tokens, int first_wanted, Variant* variant) {
  HostBatch batch;
  std::vector<PageId> table;
  for (int i = 0; i * kPageTokens < tokens; ++i) table.push_back(PageId{i});
  for (int i = 0; i < tokens; ++i) {
    batch.token_ids.push_back(static_cast<TokenId>(i * 37 % kVocab));
    batch.positions.push_back(i);
    if (i >= first_wanted) batch.logits_index.push_back(i);
  }
  batch.seq_begin = {0, tokens};
  batch.context_len = {tokens};
  for (auto& tables : batch.page_tables) tables.push_back(&table);
  const std::clock_t begin = std::clock();
  Die(runner.Forward(batch));
  Die(runner.stream().Synchronize());
  variant->best =
      std::min(variant->best, static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
  const LogitsView view = runner.logits();
  if (view.rows == 0) return;
  const float* row = view.data + (view.rows - 1) * view.stride;
  variant->last.assign(row, row + view.vocab.size());
}

int Main(int argc, char** argv) {
  std::string config = "tests/golden/configs/gemma-4-e2b.json";
  int tokens = 512, threads = 1, repeat = 2;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg.rfind("--", 0) != 0) {
      config = arg;
      continue;
    }
    const int value = i + 1 < argc ? std::atoi(argv[++i]) : 0;
    if (arg == "--tokens") tokens = value;
    if (arg == "--threads") threads = value;
    if (arg == "--repeat") repeat = value;
  }
  if (tokens < 1 || threads < 1 || repeat < 1) {
    std::fprintf(stderr, "usage: prefill_skip_bench [CONFIG] [--tokens N] [--threads N]\n");
    return 2;
  }
  const auto opened = Checkpoint::Open(config, CheckpointOptions{.require_tensors = false});
  Die(opened.status());
  ModelSpec spec = (*opened)->spec();
  spec.vocab = kVocab;
  if (spec.ple_dim > 0) spec.ple_vocab = kVocab;
  spec.weight_block = 32;
  const RandomCheckpoint checkpoint(spec);
  const auto plan = PlanShards(spec, 1);
  Die(plan.status());
  auto comms = CreateInprocCommunicators(1);
  RunnerOptions options;
  options.compute = ComputeType::kInt8;
  options.threads = threads;
  options.max_step_tokens = options.max_logits_rows = tokens;
  auto runner =
      ModelRunner::Load(checkpoint, plan->ranks[0], options, *comms[0], [](int64_t, int64_t) {});
  Die(runner.status());
  const int pages = tokens / kPageTokens + 1;
  Die((*runner)->AllocateKv({pages, pages}));
  std::printf("%s: %zu layers, %d of them own KV; %.2f GB of weights, %s\n", config.c_str(),
              spec.layers.size(), spec.first_shared_layer(),
              static_cast<double>((*runner)->weights_bytes()) / 1e9,
              (*runner)->resolved_arith().c_str());

  Variant all{"every token"}, last{"the last token"}, none{"no token"};
  for (int i = 0; i < repeat; ++i) {
    Prefill(**runner, tokens, 0, &all);
    Prefill(**runner, tokens, tokens - 1, &last);
    Prefill(**runner, tokens, tokens, &none);
  }
  for (const Variant* v : {&all, &last, &none}) {
    std::printf("%d tokens, logits of %-15s %8.1f ms, %.2f times as fast\n", tokens, v->name,
                v->best * 1e3, all.best / v->best);
  }
  const bool same = all.last == last.last;
  std::printf("logits of the last token: %s\n", same ? "the same bytes" : "DIFFERENT");
  return same ? 0 : 1;
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) { return lapidary::Main(argc, argv); }
