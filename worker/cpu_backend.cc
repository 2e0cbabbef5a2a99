#include "worker/cpu_backend.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/status_macros.h"
#include "kernels/attention/attention.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/elementwise/rope.h"
#include "kernels/huge_buffer.h"
#include "worker/cpu_backend_batch.h"
#include "worker/expert_choice.h"

namespace lapidary {
namespace {

// Row operations on fewer values run on the stream's thread: a barrier costs more.
constexpr int64_t kValuesWorthThreads = 16384;

float* Floats(Activation a) { return static_cast<float*>(a.data); }

// Where the pages of one family hold each layer's heads.
struct FamilyLayout {
  std::vector<int64_t> layer_offset;  // by layer index; owners only
  int64_t page_bytes = 0;
  HugeBuffer pool;
  int32_t pages = 0;
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const ModelWeights& geometry, const CpuBackendOptions& options, Stream& stream,
             ThreadTeam& team, Communicator& comm)
      : options_(options),
        stream_(stream),
        team_(team),
        comm_(comm),
        rows_(team, options.arithmetic) {
    limits_.max_tokens = options.max_step_tokens;
    limits_.sampled_ids = 2 * options.max_step_tokens;
    sampled_ids_.resize(limits_.sampled_ids);
    layouts_ = PlaceKv(geometry.layers, options.kv);
    for (const LayerWeights& layer : geometry.layers) PlacePages(layer);
    ReserveScratch(geometry);
  }

  // -- Loading.
  absl::StatusOr<int64_t> MatrixBytes(const MatrixSource& source) const override {
    return CpuMatrixBytes(source, options_.compute);
  }
  absl::StatusOr<MatrixHandle> AddMatrix(const MatrixSource& source) override {
    absl::StatusOr<CpuMatrix> matrix = absl::InternalError("the packing did not run");
    stream_.Enqueue([&] {
      matrix = CpuMatrix::Pack(source, options_.compute, team_, options_.mapped);
      return absl::OkStatus();
    });
    RETURN_IF_ERROR(stream_.Synchronize());
    RETURN_IF_ERROR(matrix.status());
    weights_bytes_ += matrix->bytes();
    matrices_.push_back(*std::move(matrix));
    return MatrixHandle{static_cast<int32_t>(matrices_.size()) - 1};
  }
  absl::StatusOr<VectorHandle> AddVector(const std::vector<float>& values) override {
    weights_bytes_ += static_cast<int64_t>(values.size() * sizeof(float));
    vectors_.push_back(values);
    return VectorHandle{static_cast<int32_t>(vectors_.size()) - 1};
  }
  absl::Status AddPleTable(const StoredTensor&) override { return absl::OkStatus(); }  // mapped
  int64_t weights_bytes() const override { return weights_bytes_; }

  // -- Memory.
  absl::StatusOr<Activation> Allocate(int64_t rows, int64_t width, ActivationRole) override {
    HugeBuffer buffer(static_cast<size_t>(std::max<int64_t>(64, rows * width * 4)));
    if (buffer.data() == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrFormat("no memory for %d x %d values of workspace", rows, width));
    }
    workspace_bytes_ += static_cast<int64_t>(buffer.bytes());
    activations_.push_back(std::move(buffer));
    return Activation{activations_.back().data(), width};
  }
  int64_t workspace_bytes() const override { return workspace_bytes_; }
  int64_t page_bytes(KvFamily family) const override { return Family(family).page_bytes; }
  absl::Status AllocateKv(const std::array<int32_t, kKvFamilies>& pages) override {
    for (int f = 0; f < kKvFamilies; ++f) {
      FamilyLayout& family = families_[f];
      const int64_t bytes = family.page_bytes * pages[f];
      if (pages[f] < 0) return absl::InvalidArgumentError("a negative number of pages");
      family.pool = HugeBuffer(static_cast<size_t>(std::max<int64_t>(64, bytes)));
      if (family.pool.data() == nullptr) {
        return absl::ResourceExhaustedError(
            absl::StrFormat("no memory for %d KV pages of %d bytes", pages[f], family.page_bytes));
      }
      family.pages = limits_.pages[f] = pages[f];
    }
    return absl::OkStatus();
  }

  // -- A step.
  absl::StatusOr<BatchRef> Upload(const HostBatch& host) override {
    ASSIGN_OR_RETURN(std::shared_ptr<CpuBatch> batch, MakeCpuBatch(host, limits_));
    Enqueue([this, batch] {
      batch->TakeSampled(sampled_ids_);
      batch->FillRotations(team_, ropes_);
      CoverPages(*batch);
    });
    return BatchRef(std::move(batch));
  }
  SampledIds sampled_ids() override {
    return {sampled_ids_.data(), static_cast<int32_t>(sampled_ids_.size() / 2)};
  }

  BatchRef KeepWanted(const BatchRef& ref) override {
    std::shared_ptr<CpuBatch> part = WantedPart(std::static_pointer_cast<const CpuBatch>(ref));
    Enqueue([this, part] { part->FillRotations(team_, ropes_); });
    return part;
  }
  void KeepWantedRows(const BatchRef& ref, Activation data) override {
    Enqueue([ref, data] {
      const CpuBatch& batch = Cpu(ref);
      for (int64_t i = 0; i < batch.wanted; ++i) {  // ascending: no row is overwritten before read
        if (batch.wanted_tokens[i] == i) continue;
        std::copy_n(Floats(data) + batch.wanted_tokens[i] * data.width, data.width,
                    Floats(data) + i * data.width);
      }
    });
  }

  void Embed(const BatchRef& ref, const ModelWeights& model, Activation x) override {
    Enqueue([this, ref, &model, x] {
      const CpuBatch& batch = Cpu(ref);
      ForRows(batch.tokens, 4 * model.hidden, [&](int64_t t) {
        float* row = Floats(x) + t * x.width;
        const int64_t id = batch.token_ids[t];
        if (!model.head || id < model.vocab.begin || id >= model.vocab.end) {
          std::fill_n(row, model.hidden, 0.0f);
          return;
        }
        Matrix(model.head).Unpack(id - model.vocab.begin, row);
        ScaleRow(row, model.hidden, model.embedding_scale);
      });
    });
  }

  void PleInputs(const BatchRef& ref, const ModelWeights& model, Activation x,
                 Activation ple) override {
    Enqueue([this, ref, &model, x, ple] {
      const CpuBatch& batch = Cpu(ref);
      const PleWeights& w = model.ple;
      rows_.Set(Floats(x), batch.tokens, model.hidden, x.width);
      Matrix(w.projection).Multiply(team_, rows_, Floats(ple), ple.width);
      ForRows(batch.tokens, 4 * ple.width, [&](int64_t t) {
        thread_local std::vector<float> stored;
        stored.assign(ple.width, 0.0f);  // an id outside the table has no row: zeros
        const int64_t id = batch.token_ids[t];
        if (id >= 0 && id < w.table->rows()) {
          const int64_t row_bytes = w.table->bytes / w.table->rows();
          Dequantize(w.table->dtype, w.table->data + id * row_bytes, 0, ple.width, stored.data());
        }
        for (int64_t l = 0; l < w.layers; ++l) {
          float* row = Floats(ple) + t * ple.width + l * w.dim;
          ScaleRow(row, w.dim, w.projection_scale);
          RmsNorm(row, Vector(w.norm), w.dim, model.norm_eps, row);
          MixRow(row, stored.data() + l * w.dim, w.table_scale, 0.70710678f, w.dim, row);
        }
      });
    });
  }

  void NormQkv(const BatchRef& ref, const LayerWeights& layer, Activation x,
               Activation qkv) override {
    Enqueue([this, ref, &layer, x, qkv] {
      NormedInputs(ref->tokens, layer, layer.input_norm, x);
      Matrix(layer.qkv).Multiply(team_, rows_, Floats(qkv), qkv.width);
    });
  }

  void NormRopeWrite(const BatchRef& ref, const LayerWeights& layer, Activation qkv) override {
    Enqueue([this, ref, &layer, qkv] {
      const CpuBatch& batch = Cpu(ref);
      const int heads = layer.q_heads + layer.kv_heads, d = layer.spec.head_dim;
      if (layer.owns_kv()) BalanceKeys(layer);
      ForRows(batch.tokens * heads, 4 * d, [&](int64_t i) {
        const int64_t t = i / heads;
        const int head = static_cast<int>(i % heads);
        float* row = Floats(qkv) + t * qkv.width;
        if (head < layer.q_heads) {
          FinishQuery(batch, layer, t, row + int64_t{head} * d);
        } else {
          FinishKeyValue(batch, layer, t, head - layer.q_heads, row);
        }
      });
    });
  }

  void Attend(const BatchRef& ref, const LayerWeights& layer, Activation qkv,
              Activation attended) override {
    Enqueue([this, ref, &layer, qkv, attended] {
      const CpuBatch& batch = Cpu(ref);
      const FamilyLayout& family = Family(layer.spec.kind);
      const KvLayout& layout = layouts_[layer.spec.kv_owner];
      AttentionParams params;
      params.layout = layout;
      params.pool = family.pool.data();
      params.page_bytes = family.page_bytes;
      params.layer_offset =
          family.layer_offset[layer.spec.kv_owner] + layer.first_kv_head * layout.head_bytes();
      params.group_begin = layer.group_begin;
      params.window = layer.spec.window;
      params.key_weight = Vector(layer.k_norm);
      params.rotation = &page_rotations_[rope_of_[layer.index]];
      params.q = Floats(qkv);
      params.q_stride = qkv.width;
      params.out = Floats(attended);
      params.out_stride = attended.width;
      PagedAttention(team_, params, batch.sequences[static_cast<int>(layer.spec.kind)]);
    });
  }

  void OutputProduct(const BatchRef& ref, const LayerWeights& layer, Activation attended,
                     Activation partial) override {
    Enqueue([this, ref, &layer, attended, partial] {
      rows_.Set(Floats(attended), ref->tokens, layer.q_width(), attended.width);
      Matrix(layer.output).Multiply(team_, rows_, Floats(partial), partial.width);
    });
  }

  void AddNormed(const BatchRef& ref, const LayerWeights& layer, VectorHandle norm,
                 Activation partial, float scalar, Activation x) override {
    Enqueue([this, ref, &layer, norm, partial, scalar, x] {
      ForRows(ref->tokens, 4 * x.width, [&](int64_t t) {
        lapidary::AddNormed(Floats(partial) + t * partial.width, Vector(norm), x.width,
                            layer.norm_eps, scalar, Floats(x) + t * x.width);
      });
    });
  }

  void GatedMlp(const BatchRef& ref, const LayerWeights& layer, Activation x,
                Activation partial) override {
    Enqueue([this, ref, &layer, x, partial] {
      if (!layer.down) {  // no columns on this rank
        ForRows(ref->tokens, x.width, [&](int64_t t) {
          std::fill_n(Floats(partial) + t * partial.width, x.width, 0.0f);
        });
        return;
      }
      NormedInputs(ref->tokens, layer, layer.pre_mlp_norm, x);
      Mlp(ref->tokens, layer.gate_up, layer.down, layer.mlp_width, Floats(partial), partial.width);
    });
  }

  void Router(const BatchRef& ref, const LayerWeights& layer, Activation x) override {
    Enqueue([this, ref, &layer, x] {
      const MoeWeights& moe = layer.moe;
      NormedInputs(ref->tokens, layer, moe.router_scale, x);
      const int64_t experts = Matrix(moe.router).outputs();
      Matrix(moe.router).Multiply(team_, rows_, router_logits_.data(), experts);
      ForRows(ref->tokens, 8 * experts, [&](int64_t t) {
        ChooseExperts(router_logits_.data() + t * experts, experts, Vector(moe.per_expert_scale),
                      top_k_, chosen_.data() + t * top_k_);
      });
    });
  }

  void Experts(const BatchRef& ref, const LayerWeights& layer, Activation x,
               Activation partial) override {
    Enqueue([this, ref, &layer, x, partial] {
      const int64_t tokens = ref->tokens, m = x.width;
      ForRows(tokens, m,
              [&](int64_t t) { std::fill_n(Floats(partial) + t * partial.width + m, m, 0.0f); });
      NormedInputs(tokens, layer, layer.moe.expert_pre_norm, x);
      for (int64_t e = layer.moe.experts.begin; e < layer.moe.experts.end; ++e) {
        OneExpert(tokens, layer.moe, e, m, partial);
      }
    });
  }

  void CombineMoe(const BatchRef& ref, const LayerWeights& layer, Activation partial, float scalar,
                  Activation x) override {
    Enqueue([this, ref, &layer, partial, scalar, x] {
      const MoeWeights& moe = layer.moe;
      ForRows(ref->tokens, 8 * x.width, [&](int64_t t) {
        float* dense = Floats(partial) + t * partial.width;
        AddNormedPair(dense, Vector(moe.dense_post_norm), dense + x.width,
                      Vector(moe.expert_post_norm), Vector(layer.post_mlp_norm), x.width,
                      layer.norm_eps, scalar, Floats(x) + t * x.width);
      });
    });
  }

  void PleMix(const BatchRef& ref, const LayerWeights& layer, const PleWeights& weights,
              Activation ple, float scalar, Activation x) override {
    Enqueue([this, ref, &layer, &weights, ple, scalar, x] {
      const int64_t tokens = ref->tokens, p = weights.dim;
      rows_.Set(Floats(x), tokens, x.width, x.width);
      Matrix(layer.ple_gate).Multiply(team_, rows_, ple_gate_.data(), p);
      ForRows(tokens, 16 * p, [&](int64_t t) {
        GatedGelu(ple_gate_.data() + t * p, Floats(ple) + t * ple.width + layer.index * p, p);
      });
      rows_.Set(ple_gate_.data(), tokens, p, p);
      Matrix(layer.ple_projection).Multiply(team_, rows_, normed_.data(), x.width);
      ForRows(tokens, 4 * x.width, [&](int64_t t) {
        lapidary::AddNormed(normed_.data() + t * x.width, Vector(layer.ple_post_norm), x.width,
                            layer.norm_eps, scalar, Floats(x) + t * x.width);
      });
    });
  }

  void FinalNorm(const BatchRef& ref, const ModelWeights& model, Activation x,
                 Activation hidden) override {
    Enqueue([this, ref, &model, x, hidden] {
      const CpuBatch& batch = Cpu(ref);
      ForRows(batch.wanted, 2 * x.width, [&](int64_t i) {
        RmsNorm(Floats(x) + batch.wanted_tokens[i] * x.width, Vector(model.final_norm), x.width,
                model.norm_eps, Floats(hidden) + i * hidden.width);
      });
    });
  }

  void Head(const ModelWeights& model, Activation hidden, int64_t first, int64_t rows,
            Activation logits) override {
    Enqueue([this, &model, hidden, first, rows, logits] {
      if (!model.head || rows == 0) return;
      rows_.Set(Floats(hidden) + first * hidden.width, rows, hidden.width, hidden.width);
      Matrix(model.head).Multiply(team_, rows_, Floats(logits), logits.width);
      if (model.softcap == 0) return;
      const int64_t parts = team_.size();  // of a row's columns
      ForRows(rows * parts, 8 * logits.width / parts, [&](int64_t i) {
        const int64_t begin = logits.width * (i % parts) / parts;
        const int64_t end = logits.width * (i % parts + 1) / parts;
        SoftCap(Floats(logits) + i / parts * logits.width + begin, end - begin, model.softcap);
      });
    });
  }

  void AllReduce(Activation data, int64_t rows) override {
    if (comm_.size() > 1) comm_.AllReduceSum(Floats(data), rows * data.width, stream_);
  }
  void Inspect(Activation data, int64_t rows, int64_t columns,
               std::function<void(const float*)> see) override {
    Enqueue([see = std::move(see), data, rows, columns] {
      if (columns == data.width) {
        see(Floats(data));
        return;
      }
      std::vector<float> packed(rows * columns);
      for (int64_t r = 0; r < rows; ++r) {
        std::copy_n(Floats(data) + r * data.width, columns, packed.data() + r * columns);
      }
      see(packed.data());
    });
  }
  Stream& stream() override { return stream_; }

 private:
  struct Balance {  // see KeyBalance; empty: none
    std::vector<float> factor, inverse;
  };

  // -- Set-up.
  void PlacePages(const LayerWeights& layer) {
    rope_of_.push_back(ropes_.Add(layer.spec));
    if (page_rotations_.size() < ropes_.entries().size()) {
      page_rotations_.emplace_back(ropes_.entries().back().frequency);
    }
    turns_on_read_ = turns_on_read_ || layouts_[layer.index].format == KvFormat::kSingle;
    const int f = static_cast<int>(layer.spec.kind);
    FamilyLayout& family = families_[f];
    family.layer_offset.resize(layer.index + 1, -1);
    limits_.used[f] = true;
    // A family's oldest readable key: that of its widest window.
    if (layer.spec.window == 0 || all_keys_[f]) {
      all_keys_[f] = true;
      limits_.windows[f] = 0;
    } else {
      limits_.windows[f] = std::max(limits_.windows[f], layer.spec.window);
    }
    if (!layer.owns_kv()) return;
    family.layer_offset[layer.index] = family.page_bytes;
    family.page_bytes += layer.kv_heads * layouts_[layer.index].head_bytes();
  }

  void ReserveScratch(const ModelWeights& geometry) {
    const int64_t tokens = options_.max_step_tokens;
    int64_t mlp = 0;
    for (const LayerWeights& layer : geometry.layers) mlp = std::max(mlp, layer.mlp_width);
    if (geometry.moe.experts > 0) {
      mlp = std::max<int64_t>(mlp, geometry.moe.expert_width);
      top_k_ = geometry.moe.top_k;
      Reserve(router_logits_, tokens * geometry.moe.experts);
      Reserve(gathered_, tokens * geometry.hidden);
      Reserve(expert_out_, tokens * geometry.hidden);
      chosen_.resize(tokens * top_k_);
    }
    Reserve(normed_, tokens * geometry.hidden);
    Reserve(mlp_, tokens * 2 * mlp);
    Reserve(ple_gate_, tokens * geometry.ple.dim);
  }
  void Reserve(std::vector<float>& scratch, int64_t values) {
    scratch.resize(values);
    workspace_bytes_ += values * static_cast<int64_t>(sizeof(float));
  }

  // -- Access.
  template <class Fn>
  void Enqueue(Fn fn) {
    stream_.Enqueue([fn = std::move(fn)] {
      fn();
      return absl::OkStatus();
    });
  }
  static const CpuBatch& Cpu(const BatchRef& ref) { return static_cast<const CpuBatch&>(*ref); }
  const CpuMatrix& Matrix(MatrixHandle h) const { return matrices_[h.index]; }
  const float* Vector(VectorHandle h) const { return h ? vectors_[h.index].data() : nullptr; }
  const FamilyLayout& Family(KvFamily f) const { return families_[static_cast<int>(f)]; }

  // fn(row) for every row, on the team when rows * cost (values touched) is worth it.
  template <class Fn>
  void ForRows(int64_t rows, int64_t cost, const Fn& fn) {
    if (rows * cost < kValuesWorthThreads || team_.size() == 1) {
      for (int64_t r = 0; r < rows; ++r) fn(r);
      return;
    }
    team_.Run([&](int t) {
      for (int64_t r = ThreadTeam::Begin(rows, t, team_.size());
           r < ThreadTeam::Begin(rows, t + 1, team_.size()); ++r) {
        fn(r);
      }
    });
  }

  // -- Parts of operations.
  // The first time that a layer writes keys; who shares them comes later in the step.
  void BalanceKeys(const LayerWeights& layer) {
    if (layer.index < static_cast<int>(balances_.size())) return;
    balances_.resize(layer.index + 1);
    if (!layer.k_norm) return;
    Balance& balance = balances_[layer.index];
    balance.factor =
        KeyBalance(layouts_[layer.index], layer.spec.rope, vectors_[layer.k_norm.index]);
    for (const float f : balance.factor) balance.inverse.push_back(1.0f / f);
  }

  // Single pages: angles for all positions of the batch's sequences.
  void CoverPages(const CpuBatch& batch) {
    if (!turns_on_read_ || batch.tokens == 0) return;
    const int32_t last = *std::max_element(batch.positions.begin(), batch.positions.end());
    for (PageRotation& rotation : page_rotations_) rotation.Cover(last / kPageTokens + 1);
  }

  // normed_ = norm(x) and the inputs of the next products.
  void NormedInputs(int64_t tokens, const LayerWeights& layer, VectorHandle norm, Activation x) {
    ForRows(tokens, 2 * x.width, [&](int64_t t) {
      RmsNorm(Floats(x) + t * x.width, Vector(norm), x.width, layer.norm_eps,
              normed_.data() + t * x.width);
    });
    rows_.Set(normed_.data(), tokens, x.width, x.width);
  }

  // out[:, 0:M] = Wdown (gelu(gate) * up) of the inputs in rows_.
  void Mlp(int64_t rows, MatrixHandle gate_up, MatrixHandle down, int64_t width, float* out,
           int64_t out_stride) {
    Matrix(gate_up).Multiply(team_, rows_, mlp_.data(), 2 * width);
    ForRows(rows, 16 * width, [&](int64_t r) {
      float* gate = mlp_.data() + r * 2 * width;
      GatedGelu(gate, gate + width, width);
    });
    rows_.Set(mlp_.data(), rows, width, 2 * width);
    Matrix(down).Multiply(team_, rows_, out, out_stride);
  }

  void FinishQuery(const CpuBatch& batch, const LayerWeights& layer, int64_t token, float* q) {
    const int d = layer.spec.head_dim;
    if (layer.q_norm) RmsNorm(q, Vector(layer.q_norm), d, layer.norm_eps, q);
    Turn(batch, layer, token, q);
    if (layer.attention_scale != 1.0) ScaleRow(q, d, static_cast<float>(layer.attention_scale));
    const std::vector<float>& balance = balances_[layer.spec.kv_owner].factor;
    for (size_t i = 0; i < balance.size(); ++i) q[i] *= balance[i];
  }

  // qkv row: q heads, k heads, v heads. On K = V layers v is the raw k: normed before k is touched.
  void FinishKeyValue(const CpuBatch& batch, const LayerWeights& layer, int64_t token, int head,
                      float* row) {
    const int d = layer.spec.head_dim;
    float* k = row + layer.q_width() + int64_t{head} * d;
    const float* v = layer.spec.k_eq_v ? k : k + layer.kv_width();
    thread_local std::vector<float> value;
    value.resize(d);
    if (layer.v_norm) {
      RmsNorm(v, nullptr, d, layer.norm_eps, value.data());
    } else {
      std::copy_n(v, d, value.data());
    }
    if (layouts_[layer.index].format != KvFormat::kSingle) {
      if (layer.k_norm) RmsNorm(k, Vector(layer.k_norm), d, layer.norm_eps, k);
      Turn(batch, layer, token, k);
      const std::vector<float>& balance = balances_[layer.index].inverse;
      for (size_t i = 0; i < balance.size(); ++i) k[i] *= balance[i];
    }
    const FamilyLayout& family = Family(layer.spec.kind);
    const KvLayout& layout = layouts_[layer.index];
    uint8_t* page = family.pool.data() +
                    int64_t{batch.Page(layer.spec.kind, token)} * family.page_bytes +
                    family.layer_offset[layer.index] + head * layout.head_bytes();
    WriteKv(layout, page, batch.positions[token] % kPageTokens, k, value.data());
  }

  void Turn(const CpuBatch& batch, const LayerWeights& layer, int64_t token, float* head) {
    const int rope = rope_of_[layer.index];
    const int pairs = ropes_.entries()[rope].pairs();
    Rotate(batch.cos_sin[rope].data() + token * 2 * pairs, pairs, layer.spec.head_dim, head);
  }

  // partial[t, M:2M] += weight * expert(normed_[t]) for the tokens that chose expert e. Experts
  // come in ascending id, so each token's sum has the same order in every batch.
  void OneExpert(int64_t tokens, const MoeWeights& moe, int64_t e, int64_t m, Activation partial) {
    TokensOfExpert(chosen_.data(), tokens, top_k_, e, members_);
    const auto count = static_cast<int64_t>(members_.size());
    if (count == 0) return;
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(normed_.data() + int64_t{members_[i].token} * m, m, gathered_.data() + i * m);
    }
    rows_.Set(gathered_.data(), count, m, m);
    const MatrixHandle gate_up = moe.gate_up[e - moe.experts.begin];
    const MatrixHandle down = moe.down[e - moe.experts.begin];
    Mlp(count, gate_up, down, Matrix(down).inputs(), expert_out_.data(), m);
    ForRows(count, 2 * m, [&](int64_t i) {
      AddScaled(expert_out_.data() + i * m, members_[i].weight, m,
                Floats(partial) + int64_t{members_[i].token} * partial.width + m);
    });
  }

  const CpuBackendOptions options_;
  Stream& stream_;
  ThreadTeam& team_;
  Communicator& comm_;

  // Weights: constant after loading.
  std::vector<CpuMatrix> matrices_;
  std::vector<std::vector<float>> vectors_;
  int64_t weights_bytes_ = 0;

  // Pages and rotations: placed at construction, pools by AllocateKv.
  std::array<FamilyLayout, kKvFamilies> families_;
  std::array<bool, kKvFamilies> all_keys_ = {};
  BatchLimits limits_;
  RopeSet ropes_;
  std::vector<int> rope_of_;       // by layer
  std::vector<KvLayout> layouts_;  // by layer
  bool turns_on_read_ = false;     // some layer's pages are single

  // Activations and scratch: touched on the stream alone.
  std::vector<Balance> balances_;             // by layer
  std::vector<PageRotation> page_rotations_;  // by rope; grow with the longest context
  std::vector<HugeBuffer> activations_;
  int64_t workspace_bytes_ = 0;
  std::vector<TokenId> sampled_ids_;  // see SampledIds
  CpuRows rows_;
  std::vector<float> normed_;    // [T, M]
  std::vector<float> mlp_;       // [T, 2 width]
  std::vector<float> ple_gate_;  // [T, P]
  std::vector<float> router_logits_, gathered_, expert_out_;
  int top_k_ = 0;
  std::vector<ExpertChoice> chosen_;  // [T, top_k]
  std::vector<ExpertToken> members_;  // of one expert
};

}  // namespace

std::unique_ptr<Backend> CreateCpuBackend(const ModelWeights& geometry,
                                          const CpuBackendOptions& options, Stream& stream,
                                          ThreadTeam& team, Communicator& comm) {
  return std::make_unique<CpuBackend>(geometry, options, stream, team, comm);
}

}  // namespace lapidary
