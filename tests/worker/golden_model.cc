#include "tests/worker/golden_model.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <numeric>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"
#include "model/shard_plan.h"
#include "nlohmann/json.hpp"
#include "worker/gpu_module.h"

namespace lapidary {
namespace {

constexpr int kPages = 256;  // per family: more than the three cases need together
constexpr int kMaxStepTokens = 1024;

// The same tensors, every byte zero: what a rank would hold whose weights got lost.
class ZeroCheckpoint : public Checkpoint {
 public:
  explicit ZeroCheckpoint(const Checkpoint& real) : real_(real), tensors_(real.tensors()) {
    int64_t largest = 0;
    for (const StoredTensor& tensor : tensors_) largest = std::max(largest, tensor.bytes);
    zeros_.assign(largest / sizeof(uint64_t) + 1, 0);
    for (StoredTensor& tensor : tensors_) {
      tensor.data = reinterpret_cast<const uint8_t*>(zeros_.data());
      by_name_[tensor.name] = &tensor;
    }
  }
  const ModelSpec& spec() const override { return real_.spec(); }
  const GenerationDefaults& generation_defaults() const override {
    return real_.generation_defaults();
  }
  const std::string& path() const override { return real_.path(); }
  const StoredTensor* Find(std::string_view name) const override {
    const auto it = by_name_.find(std::string(name));
    return it == by_name_.end() ? nullptr : it->second;
  }
  const std::vector<StoredTensor>& tensors() const override { return tensors_; }
  const std::vector<std::string>& unused_tensors() const override { return real_.unused_tensors(); }
  bool quantized() const override { return real_.quantized(); }

 private:
  const Checkpoint& real_;
  std::vector<uint64_t> zeros_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, const StoredTensor*> by_name_;
};

}  // namespace

const std::vector<std::string>& GoldenNames() {
  static const std::vector<std::string>& names = *new std::vector<std::string>{
      "dense-awkward", "dense-gpu",       "moe-awkward", "moe-gpu",        "ple-awkward",
      "ple-gpu",       "unified-awkward", "unified-gpu", "gemma3-awkward", "gemma3-gpu"};
  return names;
}

absl::StatusOr<GoldenModel> ReadGolden(const std::string& name) {
  GoldenModel model{.name = name, .path = absl::StrCat("tests/golden/models/", name)};
  std::ifstream file(model.path + "/golden.json");
  if (!file) {
    return absl::NotFoundError(absl::StrCat(model.path, "/golden.json: run from the source root"));
  }
  const nlohmann::json json = nlohmann::json::parse(file);
  json.at("family").get_to(model.family);
  for (const nlohmann::json& entry : json.at("cases")) {
    GoldenCase& c = model.cases.emplace_back();
    entry.at("name").get_to(c.name);
    entry.at("prompt").get_to(c.prompt);
    entry.at("continuation").get_to(c.continuation);
    entry.at("logprobs").get_to(c.logprobs);
    entry.at("top_ids").get_to(c.top_ids);
    entry.at("top_logprobs").get_to(c.top_logprobs);
    entry.at("last_prompt_logits").get_to(c.last_prompt_logits);
  }
  return model;
}

GoldenGroup::~GoldenGroup() = default;

absl::StatusOr<std::unique_ptr<GoldenGroup>> GoldenGroup::Create(const std::string& path,
                                                                 const GroupOptions& options) {
  std::unique_ptr<GoldenGroup> group(new GoldenGroup);
  group->max_logits_rows_ = options.max_logits_rows;
  ASSIGN_OR_RETURN(group->checkpoint_, Checkpoint::Open(path));
  group->zeros_ = std::make_unique<ZeroCheckpoint>(*group->checkpoint_);
  const ModelSpec& spec = group->checkpoint_->spec();
  for (const LayerSpec& layer : spec.layers)
    group->window_ = std::max(group->window_, layer.window);
  ASSIGN_OR_RETURN(const ShardPlan plan, PlanShards(spec, options.tp));
  group->comms_ = CreateInprocCommunicators(options.tp);

  RunnerOptions runner_options;
  runner_options.compute = options.compute;
  runner_options.arith = options.arith;
  runner_options.kv_format = options.kv_format;
  runner_options.kv_type = options.kv_type;
  runner_options.max_step_tokens = kMaxStepTokens;
  runner_options.max_logits_rows = options.max_logits_rows;
  runner_options.max_context = spec.max_context;
  if (!options.gpu_library.empty()) RETURN_IF_ERROR(group->LoadGpus(options, runner_options));
  for (int rank = 0; options.gpu_library.empty() && rank < options.tp; ++rank) {
    const Checkpoint& source = rank == options.zeroed_rank ? *group->zeros_ : *group->checkpoint_;
    ASSIGN_OR_RETURN(std::unique_ptr<ModelRunner> runner,
                     ModelRunner::Load(source, plan.ranks[rank], runner_options,
                                       *group->comms_[rank], [](int64_t, int64_t) {}));
    RETURN_IF_ERROR(runner->AllocateKv({kPages, kPages}));
    group->runners_.push_back(std::move(runner));
  }
  std::mt19937 rng(7);  // any fixed order that is not 0, 1, 2 ...
  for (std::vector<PageId>& pages : group->free_pages_) {
    for (int i = 0; i < kPages; ++i) pages.push_back(PageId{i});
    std::shuffle(pages.begin(), pages.end(), rng);
  }
  return group;
}

absl::Status GoldenGroup::OnAllRanks(const std::function<absl::Status(int)>& fn) {
  const int ranks = static_cast<int>(comms_.size());
  std::vector<absl::Status> results(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] { results[rank] = fn(rank); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : results) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::Status GoldenGroup::LoadGpus(const GroupOptions& options,
                                   const RunnerOptions& runner_options) {
  ASSIGN_OR_RETURN(GpuModule* const module, OpenGpuModule(options.gpu_library));
  ASSIGN_OR_RETURN(const ShardPlan plan, PlanShards(checkpoint_->spec(), options.tp));
  runners_.resize(options.tp);
  on_gpu_.resize(options.tp);
  for (const RankShard& shard : plan.ranks) vocab_.push_back(shard.vocab);
  absl::Mutex mu;
  std::string id;
  return OnAllRanks([&](int rank) -> absl::Status {
    GpuRank gpu{.gpu = rank, .rank = RankId{rank}, .size = options.tp};
    gpu.share_communicator_id = [&](const std::string& own) -> absl::StatusOr<std::string> {
      absl::MutexLock lock(&mu);
      if (!own.empty()) id = own;
      const auto known = [&id] { return !id.empty(); };
      mu.Await(absl::Condition(&known));
      return id;
    };
    gpu.ended = [] { return absl::OkStatus(); };
    gpu.on_lost = [](const absl::Status&) {};
    ASSIGN_OR_RETURN(runners_[rank], module->LoadRunner(*checkpoint_, plan.ranks[rank],
                                                        runner_options, gpu, nullptr));
    RETURN_IF_ERROR(runners_[rank]->AllocateKv({kPages, kPages}));
    runners_[rank]->set_probe(
        [this, rank](std::string_view name, const float* data, int64_t rows, int64_t width) {
          if (name != "logits") return;
          for (int64_t row = 0; row < rows; ++row) {
            on_gpu_[rank].emplace_back(data + row * width, data + (row + 1) * width);
          }
        });
    return absl::OkStatus();
  });
}

// A GPU's logits are its own memory: what it shows of them is taken.
absl::StatusOr<Logits> GoldenGroup::StepOnGpus(const HostBatch& batch) {
  const auto rows = static_cast<int64_t>(batch.logits_index.size());
  RETURN_IF_ERROR(OnAllRanks([&](int rank) -> absl::Status {
    on_gpu_[rank].clear();
    RETURN_IF_ERROR(runners_[rank]->Forward(batch));
    for (int64_t first = max_logits_rows_; first < rows; first += max_logits_rows_) {
      runners_[rank]->EnqueueLogits(first);
    }
    return runners_[rank]->stream().Synchronize();
  }));
  Logits logits(rows, std::vector<float>(checkpoint_->spec().vocab));
  for (size_t rank = 0; rank < runners_.size(); ++rank) {
    if (std::ssize(on_gpu_[rank]) < rows) return absl::InternalError("rows of logits are missing");
    for (int64_t row = 0; row < rows; ++row) {  // rows of padding may follow
      std::copy_n(on_gpu_[rank][row].data(), vocab_[rank].size(),
                  logits[row].begin() + vocab_[rank].begin);
    }
  }
  return logits;
}

void GoldenGroup::AddPages(Sequence& sequence, int first_query, int end) {
  for (int f = 0; f < kKvFamilies; ++f) {
    std::vector<PageId>& pages = sequence.pages[f];
    while (static_cast<int>(pages.size()) * kPageTokens < end) {
      pages.push_back(free_pages_[f].back());
      free_pages_[f].pop_back();
    }
  }
  // Nothing before the first query's oldest visible key is read again.
  std::vector<PageId>& sliding = sequence.pages[static_cast<int>(KvFamily::kSliding)];
  for (int i = 0; (i + 1) * kPageTokens <= first_query - window_ + 1; ++i) {
    if (sliding[i].value < 0) continue;
    std::vector<PageId>& free = free_pages_[static_cast<int>(KvFamily::kSliding)];
    free.insert(free.begin(), sliding[i]);
    sliding[i] = PageId{-1};
  }
}

void GoldenGroup::Release(Sequence& sequence) {
  for (int f = 0; f < kKvFamilies; ++f) {
    for (const PageId page : sequence.pages[f]) {
      if (page.value >= 0) free_pages_[f].push_back(page);
    }
  }
  sequence = Sequence{};
}

absl::StatusOr<Logits> GoldenGroup::Step(const std::vector<Sequence*>& sequences,
                                         const std::vector<int>& counts) {
  HostBatch batch;
  batch.seq_begin.push_back(0);
  for (size_t b = 0; b < sequences.size(); ++b) {
    Sequence& sequence = *sequences[b];
    const int end = sequence.computed + counts[b];
    AddPages(sequence, sequence.computed, end);
    for (int position = sequence.computed; position < end; ++position) {
      batch.token_ids.push_back(sequence.ids[position]);
      batch.positions.push_back(position);
    }
    sequence.computed = end;
    batch.seq_begin.push_back(static_cast<int32_t>(batch.token_ids.size()));
    batch.context_len.push_back(end);
    for (int f = 0; f < kKvFamilies; ++f) batch.page_tables[f].push_back(&sequence.pages[f]);
  }
  batch.logits_index.resize(batch.token_ids.size());
  std::iota(batch.logits_index.begin(), batch.logits_index.end(), 0);
  if (!on_gpu_.empty()) return StepOnGpus(batch);
  for (auto& runner : runners_) RETURN_IF_ERROR(runner->Forward(batch));

  const int64_t rows = static_cast<int64_t>(batch.token_ids.size());
  Logits logits;
  for (int64_t first = 0; first < rows; first += max_logits_rows_) {
    if (first > 0) {
      for (auto& runner : runners_) runner->EnqueueLogits(first);
    }
    ASSIGN_OR_RETURN(Logits slice, Gather(std::min<int64_t>(max_logits_rows_, rows - first)));
    for (std::vector<float>& row : slice) logits.push_back(std::move(row));
  }
  return logits;
}

absl::StatusOr<Logits> GoldenGroup::Gather(int64_t rows) {
  Logits logits(rows, std::vector<float>(checkpoint_->spec().vocab));
  for (auto& runner : runners_) RETURN_IF_ERROR(runner->stream().Synchronize());
  for (auto& runner : runners_) {
    const LogitsView view = runner->logits();
    if (view.rows != rows) {
      return absl::InternalError(absl::StrCat(view.rows, " rows of logits instead of ", rows));
    }
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(view.data + row * view.stride, view.vocab.size(),
                  logits[row].begin() + view.vocab.begin);
    }
  }
  return logits;
}

}  // namespace lapidary
