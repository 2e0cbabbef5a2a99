#include "worker/cpu_backend_matrix.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/check.h"

namespace lapidary {
namespace {

constexpr int64_t kChunkBytes = 8 << 20;  // stored bytes between two returns of mapped pages

int64_t RowBytes(const StoredTensor& tensor) {
  return tensor.inner() / Info(tensor.dtype).block_elements * Info(tensor.dtype).block_bytes;
}

// Consecutive parts of one format: the rows of one PackedWeight.
struct Run {
  WeightFormat format;
  std::vector<MatrixPart> parts;
  int64_t rows = 0;
};

std::vector<Run> SplitByFormat(const MatrixSource& source, ComputeType compute) {
  std::vector<Run> runs;
  for (const MatrixPart& part : source.parts) {
    const WeightFormat format = CpuFormat(source, part, compute);
    if (runs.empty() || runs.back().format != format) runs.push_back({format, {}, 0});
    runs.back().parts.push_back(part);
    runs.back().rows += part.rows.size();
  }
  return runs;
}

// One thread's share of what a team would run. Several products, each of which threads share
// without meeting in between, then cost one meeting.
class OneThread final : public ThreadTeam {
 public:
  OneThread(int thread, int size) : thread_(thread), size_(size) {}
  int size() const override { return size_; }
  void Run(const std::function<void(int)>& work) override { work(thread_); }

 private:
  const int thread_, size_;
};

// One thread's buffers and the conversion of one row.
class RowReader {
 public:
  // Row `row` of the run as floats.
  const float* Floats(const Run& run, int64_t row) {
    const MatrixPart& part = Find(run, row);
    const StoredTensor& tensor = *part.tensor;
    const int64_t block = Info(tensor.dtype).block_elements;
    const int64_t begin = part.columns.begin / block * block;
    const int64_t end = std::min(tensor.inner(), (part.columns.end + block - 1) / block * block);
    floats_.resize(end - begin);
    Dequantize(tensor.dtype, Address(part, row), begin, end, floats_.data());
    return floats_.data() + (part.columns.begin - begin);
  }
  // The same as codes, scales and mins.
  void Codes(const Run& run, int64_t row) {
    const MatrixPart& part = Find(run, row);
    const int64_t count = part.columns.size();
    const int64_t padded = (count + kBlockK - 1) / kBlockK * kBlockK;
    codes_.resize(padded);
    scales_.resize(padded / 16);
    mins_.resize(padded / 16);
    DecodeBlocks(part.tensor->dtype, Address(part, row), part.columns.begin, part.columns.end,
                 codes_.data(), scales_.data(), mins_.data());
  }
  float LargestScale(const Run& run, int64_t row, bool has_min, int block_k) {
    Codes(run, row);
    float largest = 0;
    const size_t blocks = codes_.size() / block_k;
    for (size_t i = 0; i < blocks; ++i) {
      largest = std::max(largest, std::fabs(scales_[i]));
      if (has_min) largest = std::max(largest, std::fabs(mins_[i]));
    }
    return largest;
  }

  const uint8_t* codes() const { return codes_.data(); }
  const float* scales() const { return scales_.data(); }
  const float* mins() const { return mins_.data(); }

 private:
  static const MatrixPart& Find(const Run& run, int64_t& row) {
    for (const MatrixPart& part : run.parts) {
      if (row < part.rows.size()) return part;
      row -= part.rows.size();
    }
    LAPIDARY_CHECK(false);
    return run.parts[0];
  }
  static const uint8_t* Address(const MatrixPart& part, int64_t row) {
    return part.tensor->data + (part.rows.begin + row) * RowBytes(*part.tensor);
  }

  std::vector<float> floats_, scales_, mins_;
  std::vector<uint8_t> codes_;
};

void GiveBackRows(const Run& run, int64_t begin, int64_t end, const MappedRanges& mapped) {
  for (const MatrixPart& part : run.parts) {
    const int64_t first = std::clamp<int64_t>(begin, 0, part.rows.size());
    const int64_t last = std::clamp<int64_t>(end, 0, part.rows.size());
    if (first < last) {
      const int64_t bytes = RowBytes(*part.tensor);
      mapped.GiveBack(part.tensor->data + (part.rows.begin + first) * bytes,
                      (last - first) * bytes);
    }
    begin -= part.rows.size();
    end -= part.rows.size();
  }
}

// The K formats' scales are products, so their range is not fp16's: find it first.
float OutputScale(const Run& run, ThreadTeam& team) {
  const WeightFormatInfo& info = Info(run.format);
  if (!info.has_min && run.format != WeightFormat::kQ8Block16) return 1.0f;
  std::vector<float> largest(team.size(), 0.0f);
  team.Run([&](int t) {
    RowReader reader;
    for (int64_t r = ThreadTeam::Begin(run.rows, t, team.size());
         r < ThreadTeam::Begin(run.rows, t + 1, team.size()); ++r) {
      largest[t] = std::max(largest[t], reader.LargestScale(run, r, info.has_min, info.block_k));
    }
  });
  return ChooseOutputScale(*std::max_element(largest.begin(), largest.end()));
}

}  // namespace

WeightFormat CpuFormat(const MatrixSource& source, const MatrixPart& part, ComputeType compute) {
  if (source.keep_fp32 || compute == ComputeType::kFp32) return WeightFormat::kFp32;
  if (compute == ComputeType::kBf16) return WeightFormat::kBf16;
  const bool whole_blocks =
      part.columns.begin % kBlockK == 0 &&
      (part.columns.end % kBlockK == 0 || part.columns.end == part.tensor->inner());
  if (!whole_blocks) return WeightFormat::kBf16;  // a head size that cuts through a block
  switch (part.tensor->dtype) {
    case DType::kQ8_0:
      return WeightFormat::kQ8;
    case DType::kQ4_0:
      return WeightFormat::kQ4;
    case DType::kQ5_0:
      return WeightFormat::kQ5;
    case DType::kQ4K:
      return WeightFormat::kQ4Min;
    case DType::kQ5K:
      return WeightFormat::kQ5Min;
    case DType::kQ6K:
      return WeightFormat::kQ8Block16;
    case DType::kF32:
    case DType::kF16:
    case DType::kBf16:
      break;
  }
  return WeightFormat::kBf16;
}

int64_t CpuMatrixBytes(const MatrixSource& source, ComputeType compute) {
  int64_t total = 0;
  for (const Run& run : SplitByFormat(source, compute)) {
    PackedWeight shape;  // without memory
    shape.format = run.format;
    shape.n = run.rows;
    shape.k = source.inputs();
    total += shape.bytes();
  }
  return total;
}

absl::StatusOr<int64_t> CpuWeightsBytes(const Checkpoint& checkpoint, const RankShard& shard,
                                        ComputeType compute) {
  return WeightsBytes(checkpoint, shard, [compute](const MatrixSource& source) {
    return CpuMatrixBytes(source, compute);
  });
}

void CpuRows::Set(const float* x, int64_t rows, int64_t k, int64_t x_stride) {
  x_ = x;
  rows_ = rows;
  k_ = k;
  x_stride_ = x_stride;
  has_quantized_ = has_floating_ = has_exact_ = false;
}

const ActivationRows& CpuRows::Quantized(ActivationBlocks blocks) {
  if (has_quantized_ && (blocks_ == blocks || blocks_ == ActivationBlocks::kBoth)) {
    return quantized_;
  }
  blocks_ = has_quantized_ ? ActivationBlocks::kBoth : blocks;
  quantized_.Set(team_, x_, rows_, k_, x_stride_, arithmetic_.quantized, false, blocks_);
  has_quantized_ = true;
  return quantized_;
}

const ActivationRows& CpuRows::Floating() {
  if (!has_floating_) {
    floating_.Set(team_, x_, rows_, k_, x_stride_, arithmetic_.floating, arithmetic_.round_to_bf16);
    has_floating_ = true;
  }
  return floating_;
}

const ActivationRows& CpuRows::Exact() {
  if (!has_exact_) {
    exact_.Set(team_, x_, rows_, k_, x_stride_, arithmetic_.exact, false);
    has_exact_ = true;
  }
  return exact_;
}

absl::StatusOr<CpuMatrix> CpuMatrix::Pack(const MatrixSource& source, ComputeType compute,
                                          ThreadTeam& team, const MappedRanges& mapped) {
  CpuMatrix matrix;
  matrix.outputs_ = source.outputs();
  matrix.inputs_ = source.inputs();
  matrix.keep_fp32_ = source.keep_fp32;
  bool has32 = false, has16 = false;
  int64_t first_output = 0;
  for (const Run& run : SplitByFormat(source, compute)) {
    PackedWeight weight(run.format, run.rows, source.inputs());
    if (weight.data.data() == nullptr && weight.bytes() > 0) {
      return absl::ResourceExhaustedError(
          absl::StrFormat("no memory for %s: %d bytes", source.name, weight.bytes()));
    }
    const bool quantized = IsQuantized(run.format);
    if (quantized) weight.output_scale = OutputScale(run, team);
    (run.format == WeightFormat::kQ8Block16 ? has16 : has32) |= quantized;

    int64_t stored_row_bytes = 1;
    for (const MatrixPart& part : run.parts) {
      stored_row_bytes = std::max(stored_row_bytes, RowBytes(*part.tensor));
    }
    const int64_t chunk_panels =
        std::max<int64_t>(team.size(), kChunkBytes / (stored_row_bytes * kPanelColumns));
    for (int64_t p = 0; p < weight.panels(); p += chunk_panels) {
      const int64_t panels = std::min(chunk_panels, weight.panels() - p);
      const int64_t row_end = std::min(run.rows, (p + panels) * kPanelColumns);
      team.Run([&](int t) {  // whole panels: rows of one are one thread's
        RowReader reader;
        const int64_t begin = (p + ThreadTeam::Begin(panels, t, team.size())) * kPanelColumns;
        const int64_t end = (p + ThreadTeam::Begin(panels, t + 1, team.size())) * kPanelColumns;
        for (int64_t r = begin; r < std::min(end, row_end); ++r) {
          if (quantized) {
            reader.Codes(run, r);
            PackQuantizedRow(weight, r, reader.codes(), reader.scales(), reader.mins());
          } else {
            PackFloatRow(weight, r, reader.Floats(run, r));
          }
        }
      });
      GiveBackRows(run, p * kPanelColumns, row_end, mapped);
    }
    matrix.pieces_.push_back({first_output, std::move(weight)});
    first_output += run.rows;
  }
  matrix.blocks_ =
      has16 ? (has32 ? ActivationBlocks::kBoth : ActivationBlocks::k16) : ActivationBlocks::k32;
  return matrix;
}

int64_t CpuMatrix::bytes() const {
  int64_t total = 0;
  for (const Piece& piece : pieces_) total += piece.weight.bytes();
  return total;
}

const ActivationRows& CpuMatrix::InputsOf(const Piece& piece, CpuRows& rows) const {
  if (IsQuantized(piece.weight.format)) return rows.Quantized(blocks_);
  const bool exact = keep_fp32_ || piece.weight.format == WeightFormat::kFp32;
  return exact ? rows.Exact() : rows.Floating();
}

void CpuMatrix::Multiply(ThreadTeam& team, CpuRows& rows, float* y, int64_t y_stride) const {
  LAPIDARY_CHECK(rows.k() == inputs_);
  if (pieces_.size() == 1) {
    Matmul(team, pieces_[0].weight, InputsOf(pieces_[0], rows), y, y_stride);
    return;
  }
  std::vector<const ActivationRows*> inputs;
  for (const Piece& piece : pieces_) inputs.push_back(&InputsOf(piece, rows));
  team.Run([&](int thread) {  // one meeting of the threads for all pieces
    OneThread share(thread, team.size());
    for (size_t i = 0; i < pieces_.size(); ++i) {
      Matmul(share, pieces_[i].weight, *inputs[i], y + pieces_[i].first_output, y_stride);
    }
  });
}

void CpuMatrix::Unpack(int64_t output, float* out) const {
  for (const Piece& piece : pieces_) {
    if (output < piece.first_output + piece.weight.n) {
      UnpackRow(piece.weight, output - piece.first_output, out);
      return;
    }
  }
  LAPIDARY_CHECK(false);
}

}  // namespace lapidary
