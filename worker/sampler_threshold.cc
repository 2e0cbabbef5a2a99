#include "worker/sampler_threshold.h"

#include <algorithm>
#include <array>
#include <limits>

#include "absl/status/status.h"

namespace lapidary {

namespace {

constexpr int64_t kBlock = 1024;  // columns whose weights are in the first-level cache at once
constexpr int kBuckets = 2048;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
struct Round {
  int shift;
  int bits;
};
constexpr std::array<Round, 3> kRounds = {Round{21, 11}, Round{10, 11}, Round{0, 10}};

using Histogram = std::array<int64_t, kBuckets>;

// Everything whose key is above `key`, and the first `ties` by id of those with that key.
struct Threshold {
  uint32_t key = 0;  // no value has key 0 but NaN, which weighs nothing
  int64_t ties = 0;
  int64_t equal = 0;  // how many have the key, on all ranks
};

struct Found {
  TokenId id = -1;
  float raw = 0;
};

// One thread's part of a row's histogram.
struct Share {
  Histogram histogram;
  std::vector<float> candidates;
};

struct RowState {
  Softmax softmax;
  Threshold threshold;
  // The search in progress: the key's bits found so far, and what of the target lies below them.
  bool searching = false;
  uint32_t prefix = 0;
  int64_t target = 0;
  // The draw.
  int owner = -1;  // the rank in whose shard it falls
  std::vector<KeptMass> blocks;
  int64_t ties_before = 0;  // kept by earlier ranks and by this one, before the block at hand
  int64_t point = 0;        // from the shard's begin
};

// The work of one step's rows, run piece by piece on the stream.
class Work {
 public:
  Work(ThreadTeam& team, Communicator& comm, std::shared_ptr<std::vector<ThresholdRow>> rows)
      : team_(team),
        rank_(comm.rank().value),
        ranks_(comm.size()),
        rows_(std::move(rows)),
        states_(rows_->size()) {
    const size_t all = static_cast<size_t>(ranks_) * rows_->size();
    if (NeedsCount() || NeedsMass()) histograms_.resize(all);
    kept_.resize(all);
    found_.resize(all);
  }

  bool NeedsCount() const {
    return Any([](const Filter& f) { return f.top_k > 0; });
  }
  bool NeedsMass() const {
    return Any([](const Filter& f) { return f.top_p < 1; });
  }

  void Begin() {
    for (size_t i = 0; i < states_.size(); ++i) {
      states_[i].softmax = MakeSoftmax(row(i).best.value, row(i).filter.temperature);
    }
  }

  void FillHistograms(bool mass, int round);
  void Narrow(bool mass, int round);
  void MeasureShard();
  void ChooseOwner();
  void FindToken();
  void Finish();

  Histogram* histograms() { return histograms_.data(); }
  Histogram* own_histograms() { return &histograms_[rank_ * rows_->size()]; }
  int64_t histogram_bytes() const { return Bytes<Histogram>(); }
  KeptMass* kept() { return kept_.data(); }
  KeptMass* own_kept() { return &kept_[rank_ * rows_->size()]; }
  int64_t kept_bytes() const { return Bytes<KeptMass>(); }
  Found* found() { return found_.data(); }
  Found* own_found() { return &found_[rank_ * rows_->size()]; }
  int64_t found_bytes() const { return Bytes<Found>(); }

 private:
  template <class T>
  int64_t Bytes() const {
    return static_cast<int64_t>(sizeof(T) * rows_->size());
  }
  template <class Predicate>
  bool Any(Predicate predicate) const {
    for (const ThresholdRow& r : *rows_) {
      if (predicate(r.filter)) return true;
    }
    return false;
  }
  ThresholdRow& row(size_t i) { return (*rows_)[i]; }
  const ThresholdRow& row(size_t i) const { return (*rows_)[i]; }
  template <class T>
  const T& Of(const std::vector<T>& gathered, int rank, size_t i) const {
    return gathered[static_cast<size_t>(rank) * rows_->size() + i];
  }
  void AddToHistogram(size_t i, bool mass, int round, int64_t begin, int64_t end, Share& share);
  int64_t TieWeight(size_t i) const {
    const int64_t w = WeightOf(FromOrderKey(states_[i].threshold.key), states_[i].softmax);
    return w >= row(i).filter.min_weight ? w : 0;
  }

  ThreadTeam& team_;
  const int rank_, ranks_;
  std::shared_ptr<std::vector<ThresholdRow>> rows_;
  std::vector<RowState> states_;
  std::vector<Histogram> histograms_;  // [ranks][rows]
  std::vector<Share> shares_;          // [threads][rows]
  std::vector<KeptMass> kept_;         // [ranks][rows]
  std::vector<Found> found_;           // [ranks][rows]
};

// Columns [begin, end) into buckets by their next bits, if they agree with the bits found so far.
// The second round collects these few, which is all that the third has to look at.
void Work::AddToHistogram(size_t i, bool mass, int round, int64_t begin, int64_t end,
                          Share& share) {
  const RowState& state = states_[i];
  const auto [shift, bits] = kRounds[round];
  const uint32_t mask = (1u << bits) - 1;
  const float* values = row(i).logits + begin;
  int64_t count = end - begin;
  if (round > 0) {
    if (round == 1) {
      share.candidates.clear();
      // Of the keys with the prefix, those of numbers: between the infinities'.
      const uint32_t first = state.prefix << (shift + bits);
      const uint32_t last = first | ((1u << (shift + bits)) - 1);
      CollectBetween(values, count, FromOrderKey(std::max(first, OrderKey(-kInfinity))),
                     FromOrderKey(std::min(last, OrderKey(kInfinity))), &share.candidates);
    }
    values = share.candidates.data();
    count = static_cast<int64_t>(share.candidates.size());
  }
  int64_t weights[kBlock];
  uint32_t keys[kBlock];
  std::fill_n(weights, kBlock, 1);
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t block = std::min(kBlock, count - at);
    if (mass) ComputeWeights(values + at, block, state.softmax, weights);
    ComputeOrderKeys(values + at, block, keys);
    for (int64_t c = 0; c < block; ++c) {
      const uint32_t key = keys[c];
      if (round > 0 && key >> (shift + bits) != state.prefix) continue;
      if (key < state.threshold.key) continue;
      share.histogram[(key >> shift) & mask] += weights[c];
    }
  }
}

void Work::FillHistograms(bool mass, int round) {
  for (size_t i = 0; i < states_.size(); ++i) {
    const Filter& filter = row(i).filter;
    if (round == 0) {
      states_[i].searching = row(i).best.id >= 0 && (mass ? filter.top_p < 1 : filter.top_k > 0);
      states_[i].prefix = 0;
    }
  }
  const int threads = team_.size();
  shares_.resize(static_cast<size_t>(threads) * rows_->size());
  team_.Run([&](int thread) {
    for (size_t i = 0; i < states_.size(); ++i) {
      if (!states_[i].searching) continue;
      Share& share = shares_[thread * states_.size() + i];
      share.histogram.fill(0);
      AddToHistogram(i, mass, round, ThreadTeam::Begin(row(i).columns, thread, threads),
                     ThreadTeam::Begin(row(i).columns, thread + 1, threads), share);
    }
  });
  for (size_t i = 0; i < states_.size(); ++i) {
    if (!states_[i].searching) continue;
    Histogram& sum = own_histograms()[i];
    sum.fill(0);
    for (int thread = 0; thread < threads; ++thread) {
      const Histogram& h = shares_[thread * states_.size() + i].histogram;
      for (int b = 0; b < kBuckets; ++b) sum[b] += h[b];
    }
  }
}

// All ranks' histograms are here: finds the bucket in which the target is reached.
void Work::Narrow(bool mass, int round) {
  const auto [shift, bits] = kRounds[round];
  for (size_t i = 0; i < states_.size(); ++i) {
    RowState& state = states_[i];
    if (!state.searching) continue;
    Histogram sum = {};
    for (int r = 0; r < ranks_; ++r) {
      for (int b = 0; b < kBuckets; ++b) sum[b] += Of(histograms_, r, i)[b];
    }
    Threshold& threshold = state.threshold;
    if (mass && threshold.equal > threshold.ties) {
      // A top-k before kept only some of the equal ones, all of which were counted.
      const bool here = round == 0 || threshold.key >> (shift + bits) == state.prefix;
      const uint32_t bucket = (threshold.key >> shift) & ((1u << bits) - 1);
      const int64_t w = WeightOf(FromOrderKey(threshold.key), state.softmax);
      if (here) sum[bucket] -= w * (threshold.equal - threshold.ties);
    }
    if (round == 0) {
      int64_t all = 0;
      for (int64_t m : sum) all += m;
      state.target = mass ? TopPTarget(row(i).filter.top_p, all) : row(i).filter.top_k;
      if (all < state.target || all == 0) {  // fewer than top_k, or nothing but infinities
        state.searching = false;
        continue;
      }
    }
    int bucket = (1 << bits) - 1;
    while (bucket > 0 && sum[bucket] < state.target) state.target -= sum[bucket--];
    state.prefix = state.prefix << bits | static_cast<uint32_t>(bucket);
    if (round + 1 < static_cast<int>(kRounds.size())) continue;

    const bool same = mass && state.prefix == threshold.key;
    threshold.key = state.prefix;
    if (!mass) {
      threshold.equal = sum[bucket];
      threshold.ties = state.target;
    } else {
      const int64_t w = std::max<int64_t>(1, WeightOf(FromOrderKey(threshold.key), state.softmax));
      if (!same) threshold.equal = sum[bucket] / w;
      threshold.ties = (state.target + w - 1) / w;
    }
    state.searching = false;
  }
}

void Work::MeasureShard() {
  const int threads = team_.size();
  for (size_t i = 0; i < states_.size(); ++i) {
    states_[i].blocks.assign((row(i).columns + kBlock - 1) / kBlock, KeptMass());
  }
  team_.Run([&](int thread) {
    for (size_t i = 0; i < states_.size(); ++i) {
      RowState& state = states_[i];
      // Without a threshold everything is above -inf, but what weighs nothing.
      const float threshold =
          state.threshold.key == 0 ? -kInfinity : FromOrderKey(state.threshold.key);
      const auto blocks = static_cast<int64_t>(state.blocks.size());
      const int64_t end = ThreadTeam::Begin(blocks, thread + 1, threads);
      for (int64_t b = ThreadTeam::Begin(blocks, thread, threads); b < end; ++b) {
        state.blocks[b] =
            MassAbove(row(i).logits + b * kBlock, std::min(kBlock, row(i).columns - b * kBlock),
                      state.softmax, threshold, row(i).filter.min_weight);
      }
    }
  });
  for (size_t i = 0; i < states_.size(); ++i) {
    KeptMass sum;
    for (const KeptMass& block : states_[i].blocks) {
      sum.above += block.above;
      sum.equal += block.equal;
    }
    own_kept()[i] = sum;
  }
}

// All ranks know what each keeps: the shard in which the random point falls.
void Work::ChooseOwner() {
  for (size_t i = 0; i < states_.size(); ++i) {
    RowState& state = states_[i];
    const int64_t tie_weight = TieWeight(i);
    const auto visit = [&](auto each) {  // each(rank, mass, ties before it)
      int64_t ties_before = 0;
      for (int r = 0; r < ranks_; ++r) {
        const KeptMass& kept = Of(kept_, r, i);
        const int64_t ties = std::clamp<int64_t>(state.threshold.ties - ties_before, 0, kept.equal);
        if (each(r, kept.above + ties * tie_weight, ties_before)) return;
        ties_before += kept.equal;
      }
    };
    int64_t mass = 0;
    visit([&](int, int64_t m, int64_t) {
      mass += m;
      return false;
    });
    state.owner = -1;
    if (mass == 0) continue;
    int64_t point = DrawPoint(row(i).bits, mass);
    visit([&](int r, int64_t m, int64_t ties_before) {
      if (point >= m) {
        point -= m;
        return false;
      }
      state.owner = r;
      state.point = point;
      state.ties_before = ties_before;
      return true;
    });
  }
}

void Work::FindToken() {
  for (size_t i = 0; i < states_.size(); ++i) {
    own_found()[i] = Found();
    if (states_[i].owner != rank_) continue;
    const RowState& state = states_[i];
    const int64_t tie_weight = TieWeight(i);
    int64_t point = state.point, ties_left = state.threshold.ties - state.ties_before;
    for (size_t b = 0; b < state.blocks.size(); ++b) {
      const KeptMass& block = state.blocks[b];
      const int64_t mass =
          block.above + std::clamp<int64_t>(ties_left, 0, block.equal) * tie_weight;
      if (point >= mass) {
        point -= mass;
        ties_left -= block.equal;
        continue;
      }
      const auto begin = static_cast<int64_t>(b) * kBlock;
      const int64_t count = std::min(kBlock, row(i).columns - begin);
      int64_t weights[kBlock];
      ComputeWeights(row(i).logits + begin, count, state.softmax, weights);
      for (int64_t c = 0; c < count; ++c) {
        const uint32_t key = OrderKey(row(i).logits[begin + c]);
        int64_t w = weights[c] >= row(i).filter.min_weight ? weights[c] : 0;
        if (key == state.threshold.key) {
          w = ties_left-- > 0 ? tie_weight : 0;
        } else if (key < state.threshold.key) {
          w = 0;
        }
        if (point < w) {
          own_found()[i].id = row(i).first_id + static_cast<TokenId>(begin + c);
          own_found()[i].raw = RawLogit(*row(i).edits, row(i).logits, begin + c);
          break;
        }
        point -= w;
      }
      break;
    }
  }
}

void Work::Finish() {
  for (size_t i = 0; i < states_.size(); ++i) {
    const int owner = states_[i].owner;
    const TokenCandidate& best = row(i).best;
    row(i).id = owner < 0 ? best.id : Of(found_, owner, i).id;
    row(i).raw = owner < 0 ? best.raw : Of(found_, owner, i).raw;
  }
}

}  // namespace

void ThresholdSampler::Enqueue(std::shared_ptr<std::vector<ThresholdRow>> rows, Stream& stream) {
  const auto work = std::make_shared<Work>(team_, comm_, std::move(rows));
  const auto run = [&](auto piece) {
    stream.Enqueue([work, piece] {
      piece(*work);
      return absl::OkStatus();
    });
  };
  run([](Work& w) { w.Begin(); });
  for (const bool mass : {false, true}) {
    if (!(mass ? work->NeedsMass() : work->NeedsCount())) continue;
    for (int round = 0; round < static_cast<int>(kRounds.size()); ++round) {
      run([mass, round](Work& w) { w.FillHistograms(mass, round); });
      comm_.AllGather(work->own_histograms(), work->histogram_bytes(), work->histograms(), stream);
      run([mass, round](Work& w) { w.Narrow(mass, round); });
    }
  }
  run([](Work& w) { w.MeasureShard(); });
  comm_.AllGather(work->own_kept(), work->kept_bytes(), work->kept(), stream);
  run([](Work& w) {
    w.ChooseOwner();
    w.FindToken();
  });
  comm_.AllGather(work->own_found(), work->found_bytes(), work->found(), stream);
  run([](Work& w) { w.Finish(); });
}

}  // namespace lapidary
