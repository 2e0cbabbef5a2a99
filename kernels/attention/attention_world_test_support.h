// A world of sequences for the tests of the attention kernels: random raw heads, pages that
// LaunchNormRopeWrite has filled as the model fills them, and attention in double.
//
// Two references, since together they are sharper than one:
//
// Attend starts from the numbers in the pages and the packed query, so what is left is the
// attention kernel's own error, and a sharp bound. With p the softmax weights and A = sum p |v|:
//   2^-8 |out|            rounding the output (bf16: half a step is 2^-8 of the number at most)
//   2^-8 A                rounding the weights, each at most
//   2 d A                 d: error of a score. Sums in fp32, perhaps truncated ones in the tensor
//                         cores: (columns + 16) 2^-23 sum |q k|, and 2^-22 |score| for what exp2
//                         and its argument's rounding make of it; both again in the sum of weights
//
// AttendRaw starts from the raw heads, in the model's own formula (K = V, rotation, w_k folded into
// nothing). Then every stored number has been rounded, hundreds of independent ones to a score, and
// worst cases added up would allow anything. So the bound is six standard deviations: a rounding is
// uniform over a step, of variance (half step)^2 / 3. The query's rounding is common to all keys:
// its part is added up before it is squared.
#pragma once
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <tuple>

#include "kernels/attention/device_test_support.h"
#include "kernels/attention/norm_rope_write_cuda.h"
#include "kernels/attention/paged_attention_cuda.h"

namespace lapidary {

struct WorldConfig {
  GpuKvLayout layout;
  std::vector<int> groups;   // query heads of each kv head
  std::vector<int> lengths;  // tokens of each sequence
  int window = 0;
  uint32_t seed = 1;
  float query_scale = 0.125f;

  friend std::ostream& operator<<(std::ostream& out, const WorldConfig& c) {
    return out << (c.layout.type == GpuKvType::kBf16 ? "bf16" : "e4m3")
               << (c.layout.format == KvFormat::kSplit ? " split " : " folded ")
               << c.layout.head_dim << " window " << c.window << " groups "
               << testing::PrintToString(c.groups) << " lengths "
               << testing::PrintToString(c.lengths);
  }
};

class AttentionWorld {
 public:
  explicit AttentionWorld(const WorldConfig& config) : config(config) {
    q_heads_ = std::accumulate(config.groups.begin(), config.groups.end(), 0);
    std::mt19937 random(config.seed);
    std::normal_distribution<float> normal;
    PlacePages(&random);
    const GpuKvLayout& layout = config.layout;
    const int d = layout.head_dim;
    folded_ = layout.format == KvFormat::kFolded;
    pairs_ = folded_ ? layout.rotated_pairs : d / 2;
    stride_ = (q_heads_ + kv_heads() * (folded_ ? 1 : 2)) * int64_t{d};
    raw_.resize(tokens() * stride_);
    for (size_t i = 0; i < raw_.size(); ++i) {
      raw_[i] = __float2bfloat16(normal(random) * (i % 131 == 7 ? 8 : 1));
    }
    for (int i = 0; i < d; ++i) {
      q_norm_.push_back(1 + 0.3f * normal(random));
      k_norm_.push_back(1 + 0.3f * normal(random));
    }
    for (const int32_t position : positions_) {
      for (int part = 0; part < 2; ++part) {
        for (int i = 0; i < pairs_; ++i) {
          const double angle = position * std::pow(1e4, -2.0 * i / d);
          cos_sin_.push_back(static_cast<float>(part == 0 ? std::cos(angle) : std::sin(angle)));
        }
      }
    }
    WritePages();
    ReadPages();
  }

  const WorldConfig config;

  int64_t tokens() const { return static_cast<int64_t>(positions_.size()); }
  int q_heads() const { return q_heads_; }
  int kv_heads() const { return static_cast<int>(config.groups.size()); }
  int largest_group() const {
    return *std::max_element(config.groups.begin(), config.groups.end());
  }
  int64_t width() const { return int64_t{q_heads_} * config.layout.head_dim; }

  // Tokens [first, first + len) of a sequence.
  AttentionRun Run(int sequence, int first, int len) const {
    return {.token = static_cast<int32_t>(first_token_[sequence] + first),
            .len = len,
            .position = first,
            .table = table_of_[sequence]};
  }

  // What lies behind the window of position `position` becomes garbage: entries of whole pages, and
  // the slots of the page that the window begins in.
  void ForgetBehind(int sequence, int position) {
    const int seen = config.window > 0 ? std::max(position + 1 - config.window, 0) : 0;
    const GpuKvLayout& layout = config.layout;
    if (seen % kPageTokens != 0) {
      const int64_t page = table_[table_of_[sequence] + seen / kPageTokens];
      std::vector<uint8_t> pool = pool_->Get();
      for (int h = 0; h < kv_heads(); ++h) {
        const int64_t tile = page * page_bytes_ + layer_offset_ + int64_t{h} * layout.head_bytes();
        for (int slot = 0; slot < seen % kPageTokens; ++slot) {
          std::fill_n(pool.begin() + tile + slot * layout.row_bytes(), layout.row_bytes(), 0xff);
          for (int i = 0; i < 2 && layout.scale_bytes() > 0; ++i) {
            const int64_t scale = layout.tile_bytes() + 4 * (i * kPageTokens + slot);
            std::fill_n(pool.begin() + tile + scale, 4, 0xff);
          }
        }
      }
      pool_->Set(pool);
    }
    for (int i = 0; i < seen / kPageTokens; ++i) table_[table_of_[sequence] + i] = 0x7ffffff0;
    device_table_->Set(table_);
  }

  // Everything but out.
  GpuAttentionParams Params() const {
    GpuAttentionParams p;
    p.layout = config.layout;
    p.query = query_->data();
    p.out_stride = width();
    p.q_heads = q_heads_;
    p.kv_heads = kv_heads();
    for (int h = 0; h < kv_heads(); ++h) {
      p.group_begin[h + 1] = static_cast<int16_t>(p.group_begin[h] + config.groups[h]);
    }
    p.window = config.window;
    p.page_table = device_table_->data();
    p.pool = pool_->data();
    p.page_bytes = page_bytes_;
    p.layer_offset = layer_offset_;
    return p;
  }

  struct Expected {
    std::vector<double> out, tolerance;  // [head_dim]
  };

  Expected Attend(int64_t token, int head, int begin, int end) const {
    const GpuKvLayout& layout = config.layout;
    const int d = layout.head_dim, columns = layout.score_columns();
    const __nv_bfloat16* q = &query_copy_[(token * q_heads_ + head) * columns];
    const Row* rows = Keys(token, head);
    std::vector<double> score;
    double worst = 0;
    for (int s = begin; s < end; ++s) {
      double sum = 0, sizes = 0;
      for (int i = 0; i < columns; ++i) {
        const double product =
            double{Float(q[i])} * rows[s].stored[layout.ScoreBlock(i / 16) + i % 16];
        sum += product;
        sizes += std::abs(product);
      }
      const double scale = rows[s].key_scale;
      score.push_back(sum * scale);
      worst = std::max(worst,
                       (columns + 16) * 0x1p-23 * sizes * scale + 0x1p-22 * std::abs(sum * scale));
    }
    const std::vector<double> weight = Softmax(score);
    Expected e{std::vector<double>(d), std::vector<double>(d)};
    for (int s = begin; s < end; ++s) {
      const double p = weight[s - begin] * rows[s].value_scale;
      for (int c = 0; c < d; ++c) {
        const double v = p * rows[s].stored[c];
        e.out[c] += v;
        e.tolerance[c] += std::abs(v) * (0x1p-8 + 2 * worst + 0x1p-20);
      }
    }
    for (int c = 0; c < d; ++c) e.tolerance[c] += 0x1p-8 * std::abs(e.out[c]) + 1e-30;
    return e;
  }

  Expected AttendRaw(int64_t token, int head, int begin, int end) const {
    const int d = config.layout.head_dim;
    const std::vector<double> q = Finished(token, head, &q_norm_, true, config.query_scale);
    std::vector<double> q_step;
    for (const double x : q) q_step.push_back(HalfStepBf16(x));
    const Row* rows = Keys(token, head);
    std::vector<double> score, key_variance, query_deviation;
    for (int s = begin; s < end; ++s) {
      const Row& row = rows[s];
      double sum = 0, of_key = 0, of_query = 0;
      for (int c = 0; c < d; ++c) {
        sum += q[c] * row.key[c];
        const double by_key = q[c] * row.key_step[c], by_query = row.key[c] * q_step[c];
        of_key += by_key * by_key;
        of_query += by_query * by_query;
      }
      score.push_back(sum);
      key_variance.push_back(of_key * kSlack * kSlack / 3);
      query_deviation.push_back(std::sqrt(of_query / 3) * kSlack);
    }
    const std::vector<double> weight = Softmax(score);
    Expected e{std::vector<double>(d), std::vector<double>(d)};
    for (int c = 0; c < d; ++c) {
      for (int s = begin; s < end; ++s) e.out[c] += weight[s - begin] * rows[s].value[c];
      double variance = 0, common = 0;
      for (int s = begin; s < end; ++s) {
        const double w = weight[s - begin], v = rows[s].value[c];
        const double far = w * (v - e.out[c]), by_value = w * rows[s].value_step[c];
        variance += far * far * key_variance[s - begin] + by_value * by_value / 3;
        common += std::abs(far) * query_deviation[s - begin];
        e.tolerance[c] += 0x1p-8 * w * std::abs(v);
      }
      e.tolerance[c] += 6 * std::sqrt(variance + common * common) + 0x1p-8 * std::abs(e.out[c]);
    }
    return e;
  }

  // Rows of `runs` against both references; all other rows must be poison still. `spans`: as the
  // kernels take them, or empty.
  void ExpectRows(const std::vector<AttentionRun>& runs, const std::vector<int32_t>& spans,
                  const std::vector<__nv_bfloat16>& out, bool raw = true) const {
    std::vector<bool> written(tokens());
    double worst = 0, worst_raw = 0;
    for (const AttentionRun& run : runs) {
      for (int i = 0; i < run.len; ++i) {
        const int64_t token = run.token + i;
        written[token] = true;
        const int position = run.position + i;
        const int begin = config.window > 0 ? std::max(position - config.window + 1, 0) : 0;
        int end = position + 1;
        if (!spans.empty() && spans[2 * token] <= position && position < spans[2 * token + 1]) {
          end = std::max(end, spans[2 * token + 1]);
        }
        for (int head = 0; head < q_heads_; ++head) {
          const auto key = std::make_tuple(token, head, begin, end);
          Expected& pages = from_pages_[key];
          if (pages.out.empty()) pages = Attend(token, head, begin, end);
          ExpectRow(pages, out, token, head, "pages", &worst);
          if (!raw) continue;
          Expected& heads = from_raw_[key];
          if (heads.out.empty()) heads = AttendRaw(token, head, begin, end);
          ExpectRow(heads, out, token, head, "raw", &worst_raw);
        }
      }
    }
    for (int64_t t = 0; t < tokens(); ++t) {
      if (written[t]) continue;
      for (int64_t i = 0; i < width(); ++i) {
        ASSERT_TRUE(std::isnan(Float(out[t * width() + i]))) << "row " << t << " was written";
      }
    }
    ::testing::Test::RecordProperty("share_of_tolerance", std::to_string(worst));
    ::testing::Test::RecordProperty("share_of_raw_tolerance", std::to_string(worst_raw));
  }

 private:
  // Folded pages round v and w_k q instead of k and q: the same share of a product, but a number's
  // step may be up to twice as far.
  static constexpr double kSlack = 2;

  void PlacePages(std::mt19937* random) {
    int pages = 0;
    for (const int length : config.lengths) {
      first_token_.push_back(tokens());
      table_of_.push_back(pages);
      pages += (length + kPageTokens - 1) / kPageTokens;
      for (int i = 0; i < length; ++i) {
        positions_.push_back(i);
        sequence_of_.push_back(static_cast<int>(first_token_.size()) - 1);
      }
    }
    pages_ = pages + 3;
    std::vector<int32_t> shuffled(pages_);
    std::iota(shuffled.begin(), shuffled.end(), 0);
    std::shuffle(shuffled.begin(), shuffled.end(), *random);
    table_.assign(shuffled.begin(), shuffled.begin() + pages);
    layer_offset_ = 384;
    page_bytes_ = layer_offset_ + int64_t{kv_heads()} * config.layout.head_bytes() + 256;
  }

  void WritePages() {
    const GpuKvLayout& layout = config.layout;
    pool_ = std::make_unique<DeviceArray<uint8_t>>(pages_ * page_bytes_);
    query_ =
        std::make_unique<DeviceArray<__nv_bfloat16>>(tokens() * q_heads_ * layout.score_columns());
    device_table_ = std::make_unique<DeviceArray<int32_t>>(table_);
    std::vector<int32_t> page_of;
    for (int64_t t = 0; t < tokens(); ++t) {
      page_of.push_back(table_[table_of_[sequence_of_[t]] + positions_[t] / kPageTokens]);
    }
    const DeviceArray<__nv_bfloat16> raw(raw_);
    const DeviceArray<float> q_norm(q_norm_), k_norm(k_norm_), cos_sin(cos_sin_);
    const DeviceArray<int32_t> pages(page_of), positions(positions_);
    const NormRopeWriteParams p{.layout = layout,
                                .qkv = raw.data(),
                                .qkv_stride = stride_,
                                .tokens = tokens(),
                                .q_heads = q_heads_,
                                .kv_heads = kv_heads(),
                                .k_eq_v = folded_,
                                .query_scale = config.query_scale,
                                .q_norm = q_norm.data(),
                                .k_norm = k_norm.data(),
                                .key_weight = k_norm.data(),
                                .cos_sin = cos_sin.data(),
                                .pairs = pairs_,
                                .query = query_->data(),
                                .page_of = pages.data(),
                                .positions = positions.data(),
                                .pool = pool_->data(),
                                .page_bytes = page_bytes_,
                                .layer_offset = layer_offset_};
    EXPECT_EQ(LaunchNormRopeWrite(p, nullptr), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }

  int SequenceOf(int64_t token) const { return sequence_of_[token]; }
  int KvHead(int head) const {
    int h = 0;
    for (int end = config.groups[0]; head >= end; end += config.groups[h]) ++h;
    return h;
  }

  // A token of a kv head: its row in the page, scales not applied, and what the formula says with
  // half a step of what is stored.
  struct Row {
    std::vector<double> stored;
    double key_scale = 1, value_scale = 1;
    std::vector<double> key, value, key_step, value_step;
  };
  // By position, of the sequence of a token and the kv head of a query head.
  const Row* Keys(int64_t token, int head) const {
    return &rows_[KvHead(head) * tokens() + first_token_[SequenceOf(token)]];
  }

  void ReadPages() {
    const GpuKvLayout& layout = config.layout;
    const std::vector<uint8_t> pool = pool_->Get();
    for (int h = 0; h < kv_heads(); ++h) {
      for (int64_t t = 0; t < tokens(); ++t) {
        const int64_t page = table_[table_of_[sequence_of_[t]] + positions_[t] / kPageTokens];
        const int slot = positions_[t] % kPageTokens;
        const uint8_t* tile =
            &pool[page * page_bytes_ + layer_offset_ + int64_t{h} * layout.head_bytes()];
        Row row;
        for (int c = 0; c < layout.row_columns(); ++c) {
          const int byte = c * layout.element_bytes();
          const uint8_t* at = tile + layout.ChunkOffset(slot, byte / 16) + byte % 16;
          __nv_bfloat16 x;
          memcpy(&x, at, layout.element_bytes());
          row.stored.push_back(layout.type == GpuKvType::kBf16 ? Float(x) : E4m3(*at));
        }
        if (layout.type == GpuKvType::kE4m3) {
          float scale;
          memcpy(&scale, tile + layout.tile_bytes() + 4 * slot, sizeof scale);
          row.key_scale = scale;
          memcpy(&scale, tile + layout.tile_bytes() + 4 * (kPageTokens + slot), sizeof scale);
          row.value_scale = scale;
        }
        const int raw_key = q_heads_ + h;
        row.key = Finished(t, raw_key, &k_norm_, true, 1);
        row.value = Finished(t, folded_ ? raw_key : raw_key + kv_heads(), nullptr, false, 1);
        const double key_largest = Largest(row.key), value_largest = Largest(row.value);
        for (int c = 0; c < layout.head_dim; ++c) {
          row.key_step.push_back(HalfStep(row.key[c], key_largest));
          row.value_step.push_back(HalfStep(
              row.value[c], folded_ ? std::max(key_largest, value_largest) : value_largest));
        }
        rows_.push_back(std::move(row));
      }
    }
    query_copy_ = query_->Get();
  }

  // A raw head: normed, times w, turned, scaled.
  std::vector<double> Finished(int64_t token, int index, const std::vector<float>* w, bool turn,
                               double scale) const {
    const int d = config.layout.head_dim;
    std::vector<double> x(d);
    double squares = 0;
    for (int i = 0; i < d; ++i) {
      x[i] = Float(raw_[token * stride_ + int64_t{index} * d + i]);
      squares += x[i] * x[i];
    }
    for (int i = 0; i < d; ++i) x[i] *= scale * (w ? (*w)[i] : 1) / std::sqrt(squares / d + 1e-6);
    for (int i = 0; turn && i < pairs_; ++i) {
      const double cosine = cos_sin_[token * 2 * pairs_ + i];
      const double sine = cos_sin_[token * 2 * pairs_ + pairs_ + i];
      const double a = x[i], b = x[i + d / 2];
      x[i] = a * cosine - b * sine;
      x[i + d / 2] = b * cosine + a * sine;
    }
    return x;
  }

  static std::vector<double> Softmax(const std::vector<double>& score) {
    const double most = *std::max_element(score.begin(), score.end());
    std::vector<double> weight;
    double total = 0;
    for (const double s : score) {
      weight.push_back(std::exp(s - most));
      total += weight.back();
    }
    for (double& w : weight) w /= total;
    return weight;
  }
  static double Largest(const std::vector<double>& x) {
    double largest = 0;
    for (const double v : x) largest = std::max(largest, std::abs(v));
    return largest;
  }
  // Of a number of a row whose largest is given, in the pages' type.
  double HalfStep(double x, double largest) const {
    if (config.layout.type == GpuKvType::kBf16) return HalfStepBf16(x);
    const double scale = largest / 448;
    return HalfStepE4m3(x / scale) * scale;
  }

  void ExpectRow(const Expected& e, const std::vector<__nv_bfloat16>& out, int64_t token, int head,
                 const char* reference, double* worst) const {
    const int d = config.layout.head_dim;
    int at = 0;
    double share = -1;
    for (int c = 0; c < d; ++c) {
      const double got = Float(out[token * width() + int64_t{head} * d + c]);
      const double s = std::abs(got - e.out[c]) / e.tolerance[c];
      if (!(s <= share)) at = c, share = s;
      if (std::isnan(s)) break;
    }
    *worst = std::max(*worst, share);
    EXPECT_LE(share, 1) << "token " << token << " head " << head << " column " << at << " is "
                        << Float(out[token * width() + int64_t{head} * d + at]) << " and not "
                        << e.out[at] << " +- " << e.tolerance[at] << " (" << reference << ")";
  }

  int q_heads_ = 0, pairs_ = 0, pages_ = 0;
  bool folded_ = false;
  int64_t stride_ = 0, page_bytes_ = 0, layer_offset_ = 0;
  std::vector<int64_t> first_token_;
  std::vector<int32_t> table_of_, sequence_of_, positions_, table_;
  std::vector<__nv_bfloat16> raw_, query_copy_;
  std::vector<float> q_norm_, k_norm_, cos_sin_;
  std::vector<Row> rows_;
  // What has been computed, by token, head and keys: several chips ask for the same.
  mutable std::map<std::tuple<int64_t, int, int, int>, Expected> from_pages_, from_raw_;
  std::unique_ptr<DeviceArray<uint8_t>> pool_;
  std::unique_ptr<DeviceArray<__nv_bfloat16>> query_;
  std::unique_ptr<DeviceArray<int32_t>> device_table_;
};

// The shapes that the tuned kernels are compiled for.
inline std::vector<GpuKvLayout> TunedLayouts() {
  std::vector<GpuKvLayout> layouts;
  for (const GpuKvType type : {GpuKvType::kBf16, GpuKvType::kE4m3}) {
    for (const int d : {64, 128, 256, 512}) layouts.push_back({type, KvFormat::kSplit, d, 0});
    layouts.push_back({type, KvFormat::kFolded, 128, 16});
    layouts.push_back({type, KvFormat::kFolded, 512, 64});
  }
  return layouts;
}

}  // namespace lapidary
