#include "worker/cuda/cuda_weights.h"

#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/half.h"
#include "common/status_macros.h"
#include "worker/cuda/cuda_status.h"

namespace lapidary {
namespace {

constexpr int64_t kStageBytes = int64_t{16} << 20;
constexpr float kLargestE4m3 = 448;

int64_t RoundUp(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

int64_t RowBytes(const StoredTensor& tensor) {
  return tensor.inner() / Info(tensor.dtype).block_elements * Info(tensor.dtype).block_bytes;
}

// Rows of a source in the device's order, as bf16 bits or as e4m3 codes with a scale.
class RowReader {
 public:
  RowReader(const MatrixSource& source, const GpuMatrix& matrix)
      : source_(source), matrix_(matrix), bf16_(source.inputs()), codes_(source.inputs()) {}

  // The elements of the device's row; null for a row of zeros. *scale is set for e4m3.
  const void* Row(int64_t row, float* scale) {
    *scale = 1;
    const int64_t stored = source_.gated ? GatedSourceRow(row) : row;
    if (stored < 0) return nullptr;
    const MatrixPart* part = nullptr;
    int64_t within = stored;
    for (const MatrixPart& p : source_.parts) {
      part = &p;
      if (within < p.rows.size()) break;
      within -= p.rows.size();
    }
    const StoredTensor& tensor = *part->tensor;
    const uint8_t* const data = tensor.data + (part->rows.begin + within) * RowBytes(tensor);
    if (matrix_.number == GpuNumber::kBf16 && tensor.dtype == DType::kBf16) {
      std::memcpy(bf16_.data(), data + 2 * part->columns.begin,
                  static_cast<size_t>(2 * part->columns.size()));
      return bf16_.data();
    }
    const float* const values = Floats(*part, data);
    return matrix_.number == GpuNumber::kBf16 ? RoundToBits(values) : Quantize(values, scale);
  }

 private:
  int64_t GatedSourceRow(int64_t row) const {
    const int64_t width = source_.outputs() / 2;
    const int64_t output = row / 16 * 8 + row % 8;
    if (output >= width) return -1;
    return row % 16 < 8 ? output : width + output;
  }
  const float* Floats(const MatrixPart& part, const uint8_t* data) {
    const StoredTensor& tensor = *part.tensor;
    const int64_t block = Info(tensor.dtype).block_elements;
    const int64_t begin = part.columns.begin / block * block;
    const int64_t end = std::min(tensor.inner(), RoundUp(part.columns.end, block));
    floats_.resize(static_cast<size_t>(end - begin));
    Dequantize(tensor.dtype, data, begin, end, floats_.data());
    return floats_.data() + (part.columns.begin - begin);
  }
  const void* RoundToBits(const float* values) {
    for (size_t i = 0; i < bf16_.size(); ++i) bf16_[i] = ToBf16(values[i]);
    return bf16_.data();
  }
  const void* Quantize(const float* values, float* scale) {
    float largest = 0;
    for (size_t i = 0; i < codes_.size(); ++i) largest = std::max(largest, std::fabs(values[i]));
    *scale = largest > 0 ? largest / kLargestE4m3 : 1.0f;
    for (size_t i = 0; i < codes_.size(); ++i) {
      codes_[i] = __nv_cvt_float_to_fp8(values[i] / *scale, __NV_SATFINITE, __NV_E4M3);
    }
    return codes_.data();
  }

  const MatrixSource& source_;
  const GpuMatrix& matrix_;
  std::vector<float> floats_;
  std::vector<uint16_t> bf16_;
  std::vector<uint8_t> codes_;
};

}  // namespace

GpuMatrix GpuMatrixOf(const MatrixSource& source, ComputeType compute) {
  GpuMatrix matrix;
  matrix.number =
      compute == ComputeType::kFp8 && !source.at_least_bf16 ? GpuNumber::kE4m3 : GpuNumber::kBf16;
  matrix.tiled = source.stack.count > 0;
  matrix.n = source.gated ? GatedRows(source.outputs() / 2) : source.outputs();
  matrix.k = source.inputs();
  matrix.k_stride = matrix.tiled ? 0 : RoundUp(matrix.k, 16 / matrix.element_bytes());
  return matrix;
}

int64_t CudaWeights::MatrixBytes(const MatrixSource& source) const {
  if (source.keep_fp32) return source.outputs() * RoundUp(source.inputs(), 4) * 4;
  const GpuMatrix matrix = GpuMatrixOf(source, compute_);
  return matrix.bytes() + (matrix.number == GpuNumber::kE4m3 ? matrix.n * 4 : 0);
}

absl::StatusOr<DeviceBuffer> CudaWeights::NewMemory(int64_t bytes, const std::string& what) {
  ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Allocate(bytes, what));
  bytes_ += bytes;
  return buffer;
}

absl::Status CudaWeights::StreamUp(uint8_t* dst, int64_t units, int64_t unit_bytes,
                                   const std::function<void(int64_t, int64_t, uint8_t*)>& fill) {
  const int64_t at_once = std::max<int64_t>(1, kStageBytes / unit_bytes);
  for (int64_t first = 0; first < units; first += at_once) {
    const int64_t count = std::min(at_once, units - first);
    Stage& stage = stages_[next_stage_];
    next_stage_ = 1 - next_stage_;
    if (stage.memory.bytes() < count * unit_bytes) {
      ASSIGN_OR_RETURN(stage.memory, PinnedBuffer::Allocate(std::max(kStageBytes, unit_bytes),
                                                            "loading weights"));
      ASSIGN_OR_RETURN(stage.copied, CudaEvent::Create());
    }
    RETURN_IF_CUDA_ERROR("loading weights", cudaEventSynchronize(stage.copied.raw()));
    fill(first, count, stage.memory.data());
    RETURN_IF_CUDA_ERROR("loading weights",
                         cudaMemcpyAsync(dst + first * unit_bytes, stage.memory.data(),
                                         static_cast<size_t>(count * unit_bytes),
                                         cudaMemcpyHostToDevice, stream_.raw()));
    RETURN_IF_CUDA_ERROR("loading weights", cudaEventRecord(stage.copied.raw(), stream_.raw()));
  }
  return absl::OkStatus();
}

absl::StatusOr<MatrixHandle> CudaWeights::AddFp32(const MatrixSource& source) {
  Matrix matrix;
  matrix.outputs = source.outputs();
  matrix.fp32_stride = RoundUp(source.inputs(), 4);
  ASSIGN_OR_RETURN(DeviceBuffer memory, NewMemory(MatrixBytes(source), source.name));
  matrix.fp32 = memory.data<float>();
  const auto fill = [&](int64_t first, int64_t count, uint8_t* out) {
    auto* const rows = reinterpret_cast<float*>(out);
    std::fill_n(rows, count * matrix.fp32_stride, 0.0f);
    for (int64_t r = 0; r < count; ++r) {  // one part: the router's
      const MatrixPart& part = source.parts[0];
      const uint8_t* const data =
          part.tensor->data + (part.rows.begin + first + r) * RowBytes(*part.tensor);
      Dequantize(part.tensor->dtype, data, 0, part.tensor->inner(), rows + r * matrix.fp32_stride);
    }
  };
  RETURN_IF_ERROR(StreamUp(memory.data(), source.outputs(), matrix.fp32_stride * 4, fill));
  memory_.push_back(std::move(memory));
  matrices_.push_back(matrix);
  return MatrixHandle{static_cast<int32_t>(matrices_.size()) - 1};
}

absl::Status CudaWeights::PlaceStack(const MatrixSource& source, Matrix* matrix) {
  GpuMatrix& gpu = matrix->gpu;
  const auto is_this = [&](const OpenStack& s) { return s.gated == source.gated; };
  auto open = std::find_if(open_.begin(), open_.end(), is_this);
  if (source.stack.index == 0) {
    if (open != open_.end()) open_.erase(open);
    OpenStack stack{.gated = source.gated};
    ASSIGN_OR_RETURN(DeviceBuffer data,
                     NewMemory(source.stack.count * gpu.bytes(),
                               absl::StrFormat("%d experts", source.stack.count)));
    stack.data = data.data();
    memory_.push_back(std::move(data));
    if (gpu.number == GpuNumber::kE4m3) {
      ASSIGN_OR_RETURN(DeviceBuffer scales,
                       NewMemory(source.stack.count * gpu.n * 4, "the experts' scales"));
      stack.scales = scales.data<float>();
      memory_.push_back(std::move(scales));
    }
    open_.push_back(stack);
    open = open_.end() - 1;
  }
  if (open == open_.end()) {
    return absl::InternalError(
        absl::StrFormat("%s comes before the first of its stack", source.name));
  }
  gpu.data = open->data + source.stack.index * gpu.bytes();
  if (open->scales != nullptr) gpu.scale = open->scales + source.stack.index * gpu.n;
  return absl::OkStatus();
}

absl::StatusOr<MatrixHandle> CudaWeights::AddMatrix(const MatrixSource& source) {
  if (source.keep_fp32) return AddFp32(source);
  Matrix matrix;
  matrix.outputs = source.outputs();
  matrix.gpu = GpuMatrixOf(source, compute_);
  GpuMatrix& gpu = matrix.gpu;
  if (gpu.tiled) {
    RETURN_IF_ERROR(PlaceStack(source, &matrix));
  } else {
    ASSIGN_OR_RETURN(DeviceBuffer data, NewMemory(gpu.bytes(), source.name));
    gpu.data = data.data();
    memory_.push_back(std::move(data));
    if (gpu.number == GpuNumber::kE4m3) {
      ASSIGN_OR_RETURN(DeviceBuffer scales, NewMemory(gpu.n * 4, source.name));
      gpu.scale = scales.data<float>();
      memory_.push_back(std::move(scales));
    }
  }
  // A unit is a row, or a row of tiles.
  const int64_t unit_rows = gpu.tiled ? GpuMatrix::kTileRows : 1;
  const int64_t unit_bytes =
      gpu.tiled ? gpu.tiles_k() * GpuMatrix::kTileBytes : gpu.k_stride * gpu.element_bytes();
  const int64_t units = (gpu.n + unit_rows - 1) / unit_rows;
  std::vector<float> scales(static_cast<size_t>(gpu.n), 1.0f);
  RowReader reader(source, gpu);
  const auto fill = [&](int64_t first, int64_t count, uint8_t* out) {
    std::memset(out, 0, static_cast<size_t>(count * unit_bytes));
    GpuMatrix piece = gpu;
    const int64_t begin = first * unit_rows;
    piece.n = std::min(gpu.n - begin, count * unit_rows);
    for (int64_t r = 0; r < piece.n; ++r) {
      const void* const elements = reader.Row(begin + r, &scales[begin + r]);
      if (elements != nullptr) PlaceMatrixRow(piece, r, elements, out);
    }
  };
  auto* const dst = static_cast<uint8_t*>(const_cast<void*>(gpu.data));
  RETURN_IF_ERROR(StreamUp(dst, units, unit_bytes, fill));
  if (gpu.scale != nullptr) {
    RETURN_IF_CUDA_ERROR(
        "loading weights",
        cudaMemcpyAsync(const_cast<float*>(gpu.scale), scales.data(), scales.size() * sizeof(float),
                        cudaMemcpyHostToDevice, stream_.raw()));
    RETURN_IF_ERROR(stream_.Synchronize());  // `scales` goes
  }
  matrices_.push_back(matrix);
  return MatrixHandle{static_cast<int32_t>(matrices_.size()) - 1};
}

absl::StatusOr<VectorHandle> CudaWeights::AddVector(const std::vector<float>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(float));
  ASSIGN_OR_RETURN(DeviceBuffer memory, NewMemory(bytes, "a vector of weights"));
  RETURN_IF_CUDA_ERROR("loading weights",
                       cudaMemcpyAsync(memory.data(), values.data(), static_cast<size_t>(bytes),
                                       cudaMemcpyHostToDevice, stream_.raw()));
  RETURN_IF_ERROR(stream_.Synchronize());
  vectors_.push_back(std::move(memory));
  return VectorHandle{static_cast<int32_t>(vectors_.size()) - 1};
}

absl::Status CudaWeights::AddPleTable(const StoredTensor& table) {
  const int64_t columns = table.inner();
  ASSIGN_OR_RETURN(ple_table_, NewMemory(table.rows() * columns * 2, "per-layer embeddings"));
  ple_rows_ = table.rows();
  std::vector<float> floats(static_cast<size_t>(columns));
  return StreamUp(ple_table_.data(), table.rows(), columns * 2,
                  [&](int64_t first, int64_t count, uint8_t* out) {
                    for (int64_t r = 0; r < count; ++r) {
                      const uint8_t* const row = table.data + (first + r) * RowBytes(table);
                      auto* const bits = reinterpret_cast<uint16_t*>(out) + r * columns;
                      if (table.dtype == DType::kBf16) {
                        std::memcpy(bits, row, static_cast<size_t>(columns * 2));
                        continue;
                      }
                      Dequantize(table.dtype, row, 0, columns, floats.data());
                      for (int64_t i = 0; i < columns; ++i) bits[i] = ToBf16(floats[i]);
                    }
                  });
}

}  // namespace lapidary
