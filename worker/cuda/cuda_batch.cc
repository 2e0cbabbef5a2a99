#include "worker/cuda/cuda_batch.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "worker/cuda/cuda_status.h"

namespace lapidary {
namespace {

constexpr int64_t kAlign = 256;

// The memory being laid out: the same offsets in the pinned copy and on the device.
class Block {
 public:
  Block(const PinnedBuffer& host, const DeviceBuffer& device)
      : host_(host.data()), device_(device.data()), capacity_(host.bytes()) {}

  // Room for `count` elements: the host's pointer, and the device's in *device.
  template <class T>
  T* Add(int64_t count, const T** device) {
    T* const host = reinterpret_cast<T*>(host_ + used_);
    *device = reinterpret_cast<const T*>(device_ + used_);
    used_ = (used_ + count * static_cast<int64_t>(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
    return used_ <= capacity_ ? host : nullptr;
  }
  template <class T>
  bool Copy(const std::vector<T>& values, const T** device) {
    T* const host = Add(std::ssize(values), device);
    if (host == nullptr) return false;
    std::copy(values.begin(), values.end(), host);
    return true;
  }
  int64_t used() const { return used_; }

 private:
  uint8_t* const host_;
  uint8_t* const device_;
  const int64_t capacity_;
  int64_t used_ = 0;
};

// One batch, or the part of it that is wanted, in host memory.
struct Layout {
  std::vector<int32_t> known, sampled_from, positions, wanted;
  std::vector<int32_t> sequence;  // of each run, decode first
  std::vector<AttentionRun> decode, prefill;

  // Tokens [first, first + len) of the batch at consecutive positions of a sequence.
  void AddRun(int64_t b, int32_t first, int32_t len, int32_t position) {
    (len == 1 ? decode : prefill).push_back({.token = first, .len = len, .position = position});
    (len == 1 ? decode_sequence : prefill_sequence).push_back(static_cast<int32_t>(b));
  }
  std::vector<int32_t> decode_sequence, prefill_sequence;
};

// Page tables of all sequences of a family, and where each begins in it. On the device the
// families' tables are one array, this one's from `base` on.
struct Tables {
  std::vector<int32_t> entries;
  std::vector<int32_t> begin;  // [B]
  int32_t base = 0;
};

Layout WholeLayout(const HostBatch& host, int64_t padded) {
  Layout layout;
  layout.known = host.token_ids;
  layout.sampled_from = host.sampled_from;
  layout.positions = host.positions;
  layout.wanted = host.logits_index;
  for (int64_t b = 0; b + 1 < std::ssize(host.seq_begin); ++b) {
    const int32_t begin = host.seq_begin[b], len = host.seq_begin[b + 1] - begin;
    if (len > 0) layout.AddRun(b, begin, len, host.positions[begin]);
  }
  const auto tokens = std::ssize(host.token_ids);
  if (layout.sampled_from.empty()) layout.sampled_from.assign(static_cast<size_t>(tokens), -1);
  for (int64_t t = tokens; t < padded; ++t) {  // padding: computed, written and read by nobody
    layout.known.push_back(0);
    layout.sampled_from.push_back(-1);
    layout.positions.push_back(0);
    layout.wanted.push_back(static_cast<int32_t>(t));
    layout.decode.push_back({});
    layout.decode_sequence.push_back(-1);
  }
  return layout;
}

// The wanted tokens in a row; neighbours of one sequence stay a run.
Layout WantedLayout(const HostBatch& host) {
  Layout layout;
  int64_t b = 0;
  int32_t run = 0, run_len = 0, run_position = 0;
  int64_t run_sequence = -1;
  const auto flush = [&] {
    if (run_len > 0) layout.AddRun(run_sequence, run, run_len, run_position);
    run_len = 0;
  };
  int32_t previous = -2;
  for (int32_t i = 0; i < std::ssize(host.logits_index); ++i) {
    const int32_t token = host.logits_index[i];
    while (host.seq_begin[b + 1] <= token) ++b;
    if (run_len == 0 || token != previous + 1 || b != run_sequence) {
      flush();
      run = i;
      run_sequence = b;
      run_position = host.positions[token];
    }
    ++run_len;
    previous = token;
    layout.positions.push_back(host.positions[token]);
    layout.wanted.push_back(i);
  }
  flush();
  return layout;
}

bool AddRuns(const Layout& layout, const std::array<Tables, kKvFamilies>& tables,
             const std::vector<int>& block_tokens, Block& block, CudaBatch* batch) {
  const auto placed = [](std::vector<AttentionRun> runs, const std::vector<int32_t>& sequence,
                         const Tables& family) {
    for (size_t r = 0; r < runs.size(); ++r) {
      if (sequence[r] >= 0)
        runs[r].table = family.base + family.begin[static_cast<size_t>(sequence[r])];
    }
    return runs;
  };
  for (int f = 0; f < kKvFamilies; ++f) {
    FamilyBatch& family = batch->families[f];
    if (!block.Copy(placed(layout.decode, layout.decode_sequence, tables[f]), &family.decode) ||
        !block.Copy(placed(layout.prefill, layout.prefill_sequence, tables[f]), &family.prefill)) {
      return false;
    }
  }
  batch->decode_runs = static_cast<int>(layout.decode.size());
  batch->prefill_runs = static_cast<int>(layout.prefill.size());
  for (const int tokens : block_tokens) {
    std::vector<PrefillBlock> cut;
    if (!layout.prefill.empty()) CutPrefill(layout.prefill, tokens, &cut);
    CudaBatch::Blocks blocks{.tokens = tokens, .count = static_cast<int>(cut.size())};
    if (!block.Copy(cut, &blocks.blocks)) return false;
    batch->prefill_blocks.push_back(blocks);
  }
  return true;
}

}  // namespace

const CudaBatch::Blocks& CudaBatch::BlocksOf(int block_tokens) const {
  const auto found = std::find_if(prefill_blocks.begin(), prefill_blocks.end(),
                                  [&](const Blocks& b) { return b.tokens == block_tokens; });
  return found == prefill_blocks.end() ? prefill_blocks.front() : *found;
}

absl::StatusOr<BatchUploader> BatchUploader::Create(const Options& options) {
  BatchUploader uploader;
  uploader.options_ = options;
  const int64_t tokens =
      std::max(options.limits.max_tokens, options.buckets.empty() ? 0 : options.buckets.back());
  // Arrays of ints and runs, for the whole and for the part, and the cuts; then the tables.
  const auto cuts = static_cast<int64_t>(options.block_tokens.size());
  const int64_t per_token = 2 * (6 * 4 + kKvFamilies * static_cast<int64_t>(sizeof(AttentionRun)) +
                                 cuts * static_cast<int64_t>(sizeof(PrefillBlock)));
  const int64_t arrays = 2 * (12 + 3 * kKvFamilies + cuts);
  const int64_t bytes =
      tokens * per_token + arrays * kAlign + kKvFamilies * (options.max_table_entries * 4 + kAlign);
  ASSIGN_OR_RETURN(uploader.device_, DeviceBuffer::Allocate(bytes, "the batch"));
  ASSIGN_OR_RETURN(uploader.ids_, DeviceBuffer::Allocate(tokens * 4, "token ids"));
  for (Slot& slot : uploader.slots_) {
    ASSIGN_OR_RETURN(slot.memory, PinnedBuffer::Allocate(bytes, "the batch"));
    ASSIGN_OR_RETURN(slot.copied, CudaEvent::Create());
  }
  return uploader;
}

// Recorded steps are those of decode rows alone, all of whose logits are wanted.
int64_t BatchUploader::PaddedTokens(const HostBatch& host) const {
  const auto tokens = std::ssize(host.token_ids);
  const bool decode_only = tokens > 0 && std::ssize(host.logits_index) == tokens &&
                           std::ssize(host.context_len) == tokens;
  if (!decode_only) return tokens;
  for (int64_t b = 0; b < tokens; ++b) {
    if (host.seq_begin[b + 1] - host.seq_begin[b] != 1) return tokens;
  }
  const auto bucket = std::lower_bound(options_.buckets.begin(), options_.buckets.end(), tokens);
  return bucket == options_.buckets.end() ? tokens : *bucket;
}

absl::StatusOr<BatchUploader::Uploaded> BatchUploader::Upload(const HostBatch& host,
                                                              CudaStream& stream) {
  RETURN_IF_ERROR(CheckBatch(host, options_.limits));
  return UploadPadded(host, PaddedTokens(host), stream);
}

absl::StatusOr<std::shared_ptr<CudaBatch>> BatchUploader::Padding(int64_t tokens,
                                                                  CudaStream& stream) {
  HostBatch nothing;
  nothing.seq_begin = {0};
  ASSIGN_OR_RETURN(Uploaded uploaded, UploadPadded(nothing, tokens, stream));
  return std::move(uploaded.whole);
}

absl::StatusOr<BatchUploader::Uploaded> BatchUploader::UploadPadded(const HostBatch& host,
                                                                    int64_t padded,
                                                                    CudaStream& stream) {
  std::array<Tables, kKvFamilies> tables;
  for (int f = 0; f < kKvFamilies; ++f) {
    for (int64_t b = 0; b < std::ssize(host.context_len); ++b) {
      tables[f].begin.push_back(static_cast<int32_t>(tables[f].entries.size()));
      RETURN_IF_ERROR(CopyPages(host, options_.limits, f, b, tables[f].entries));
    }
    if (std::ssize(tables[f].entries) > options_.max_table_entries) {
      return absl::InternalError(absl::StrFormat("page tables of %d entries, there is room for %d",
                                                 tables[f].entries.size(),
                                                 options_.max_table_entries));
    }
  }
  tables[1].base = static_cast<int32_t>(tables[0].entries.size());
  Slot& slot = slots_[next_slot_];
  next_slot_ = (next_slot_ + 1) % static_cast<int>(slots_.size());
  RETURN_IF_CUDA_ERROR("waiting for an earlier batch", cudaEventSynchronize(slot.copied.raw()));

  Uploaded uploaded;
  uploaded.whole = std::make_shared<CudaBatch>();
  CudaBatch& whole = *uploaded.whole;
  const Layout layout = WholeLayout(host, padded);
  whole.real_tokens = std::ssize(host.token_ids);
  whole.tokens = padded;
  whole.wanted = std::ssize(layout.wanted);
  whole.decode_only =
      std::binary_search(options_.buckets.begin(), options_.buckets.end(), padded) &&
      std::ssize(layout.decode) == padded && whole.wanted == padded;
  whole.ids = ids_.data<int32_t>();

  Block block(slot.memory, device_);
  bool fits = block.Copy(layout.known, &whole.known_ids) &&
              block.Copy(layout.sampled_from, &whole.sampled_from) &&
              block.Copy(layout.positions, &whole.positions) &&
              block.Copy(layout.wanted, &whole.wanted_tokens);
  for (int f = 0; fits && f < kKvFamilies; ++f) {
    int32_t* const page_of = block.Add(padded, &whole.families[f].page_of);
    fits = page_of != nullptr;
    if (!fits) break;
    std::fill_n(page_of, padded, -1);
    if (!options_.limits.used[f]) continue;
    for (int64_t b = 0; b + 1 < std::ssize(host.seq_begin); ++b) {
      for (int32_t t = host.seq_begin[b]; t < host.seq_begin[b + 1]; ++t) {
        page_of[t] = tables[f].entries[tables[f].begin[b] + host.positions[t] / kPageTokens];
      }
    }
  }
  const Layout part_layout = whole.wanted < padded ? WantedLayout(host) : Layout();
  if (whole.wanted < padded) {
    uploaded.part = std::make_shared<CudaBatch>();
    CudaBatch& part = *uploaded.part;
    part.is_part = true;
    part.tokens = part.wanted = part.real_tokens = std::ssize(part_layout.wanted);
    fits = fits && block.Copy(part_layout.positions, &part.positions) &&
           block.Copy(part_layout.wanted, &part.wanted_tokens);
  }
  fits = fits && AddRuns(layout, tables, options_.block_tokens, block, &whole) &&
         (uploaded.part == nullptr ||
          AddRuns(part_layout, tables, options_.block_tokens, block, uploaded.part.get()));
  // Last: their length varies, and recorded steps count on the places before it.
  const int32_t* device_tables = nullptr;
  std::vector<int32_t> all = tables[0].entries;
  all.insert(all.end(), tables[1].entries.begin(), tables[1].entries.end());
  fits = fits && block.Copy(all, &device_tables);
  for (CudaBatch* batch : {uploaded.whole.get(), uploaded.part.get()}) {
    for (int f = 0; batch != nullptr && f < kKvFamilies; ++f) {
      batch->families[f].page_table = device_tables;
    }
  }
  if (!fits) return absl::InternalError("the batch does not fit its buffer");
  RETURN_IF_CUDA_ERROR("copying the batch", cudaMemcpyAsync(device_.data(), slot.memory.data(),
                                                            static_cast<size_t>(block.used()),
                                                            cudaMemcpyHostToDevice, stream.raw()));
  RETURN_IF_CUDA_ERROR("copying the batch", cudaEventRecord(slot.copied.raw(), stream.raw()));
  return uploaded;
}

}  // namespace lapidary
