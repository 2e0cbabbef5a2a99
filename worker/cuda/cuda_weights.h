// Matrices, vectors and tables of a model in a GPU's memory, streamed there from the mapped
// checkpoint through pinned buffers.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/gemm/stream_product_cuda.h"
#include "worker/cuda/cuda_memory.h"
#include "worker/cuda/cuda_stream.h"
#include "worker/weights.h"

namespace lapidary {

// What a MatrixSource becomes: number, layout and strides. Data and scale are set by Add().
//   bf16 compute   bf16; a file's quantised blocks are widened and rounded
//   fp8 compute    e4m3 with a scale per output, but bf16 where the source says so (at_least_bf16)
//   a stack        tiled, one matrix behind the other
//   gated          gate and up rows interleaved by 8, padded to whole eights
GpuMatrix GpuMatrixOf(const MatrixSource& source, ComputeType compute);

class CudaWeights {
 public:
  CudaWeights(ComputeType compute, CudaStream& stream) : compute_(compute), stream_(stream) {}

  int64_t MatrixBytes(const MatrixSource& source) const;
  absl::StatusOr<MatrixHandle> AddMatrix(const MatrixSource& source);
  absl::StatusOr<VectorHandle> AddVector(const std::vector<float>& values);
  // In bf16: [rows, columns].
  absl::Status AddPleTable(const StoredTensor& table);
  // The pinned buffers go.
  void FinishLoading() { stages_ = {}; }

  // fp32 matrices (keep_fp32) have no GpuMatrix: data is [n, stride] floats.
  struct Matrix {
    GpuMatrix gpu;
    const float* fp32 = nullptr;
    int64_t fp32_stride = 0;
    int64_t outputs = 0;  // gate and up count as one
  };
  const Matrix& matrix(MatrixHandle h) const { return matrices_[static_cast<size_t>(h.index)]; }
  const float* vector(VectorHandle h) const {
    return h ? vectors_[static_cast<size_t>(h.index)].data<float>() : nullptr;
  }
  const void* ple_table() const { return ple_table_.data(); }
  int64_t ple_rows() const { return ple_rows_; }
  int64_t bytes() const { return bytes_; }

 private:
  struct Stage {
    PinnedBuffer memory;
    CudaEvent copied;
  };
  // Fills `bytes` at dst from pieces of whole units: fill(first unit, count, memory).
  absl::Status StreamUp(uint8_t* dst, int64_t units, int64_t unit_bytes,
                        const std::function<void(int64_t, int64_t, uint8_t*)>& fill);
  absl::StatusOr<DeviceBuffer> NewMemory(int64_t bytes, const std::string& what);
  absl::StatusOr<MatrixHandle> AddFp32(const MatrixSource& source);
  // The stack's memory for its first member, else that of the members before.
  absl::Status PlaceStack(const MatrixSource& source, Matrix* matrix);

  const ComputeType compute_;
  CudaStream& stream_;
  std::array<Stage, 2> stages_;
  int next_stage_ = 0;
  std::vector<DeviceBuffer> memory_;
  std::vector<Matrix> matrices_;
  std::vector<DeviceBuffer> vectors_;
  // Stacks that are being filled: gate_up and down of a layer.
  struct OpenStack {
    bool gated = false;
    uint8_t* data = nullptr;
    float* scales = nullptr;
  };
  std::vector<OpenStack> open_;
  DeviceBuffer ple_table_;
  int64_t ple_rows_ = 0;
  int64_t bytes_ = 0;
};

}  // namespace lapidary
