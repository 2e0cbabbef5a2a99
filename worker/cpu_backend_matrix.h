// A matrix on the CPU: one packed weight per stored format, side by side along the output, and the
// rows of a product in whatever form those formats read.
#pragma once
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/dtype.h"
#include "kernels/gemm/matmul.h"
#include "kernels/gemm/packed_weight.h"
#include "kernels/thread_team.h"
#include "worker/mapped_ranges.h"
#include "worker/weights.h"

namespace lapidary {

// The instructions of a group's products (docs/numerics.md).
struct CpuArithmetic {
  Arithmetic quantized = Arithmetic::kInt8Avx2;  // int8 compute: block formats
  Arithmetic floating = Arithmetic::kFmaAvx2;    // bf16 and fp32 weights
  Arithmetic exact = Arithmetic::kFmaAvx2;       // fp32 weights (the router): always FMA
  bool round_to_bf16 = false;                    // inputs of bf16 compute
};

// The format a part is packed in. int8: the file's own where it has one, else bf16.
WeightFormat CpuFormat(const MatrixSource& source, const MatrixPart& part, ComputeType compute);

// Bytes of the packed matrix.
int64_t CpuMatrixBytes(const MatrixSource& source, ComputeType compute);
// Of all that LoadWeights makes resident for this rank on the CPU backend; nothing is read.
absl::StatusOr<int64_t> CpuWeightsBytes(const Checkpoint& checkpoint, const RankShard& shard,
                                        ComputeType compute);

// Inputs of one or several products, brought into a form when the first matrix asks for it.
class CpuRows {
 public:
  CpuRows(ThreadTeam& team, const CpuArithmetic& arithmetic)
      : team_(team), arithmetic_(arithmetic) {}

  // x [rows, k], x_stride apart. Must stay until the products are done.
  void Set(const float* x, int64_t rows, int64_t k, int64_t x_stride);
  int64_t rows() const { return rows_; }
  int64_t k() const { return k_; }

  const ActivationRows& Quantized(ActivationBlocks blocks);
  const ActivationRows& Floating();
  const ActivationRows& Exact();  // fp32 FMA without rounding: fp32 weights

 private:
  ThreadTeam& team_;
  const CpuArithmetic arithmetic_;
  const float* x_ = nullptr;
  int64_t rows_ = 0, k_ = 0, x_stride_ = 0;
  ActivationRows quantized_, floating_, exact_;
  bool has_quantized_ = false, has_floating_ = false, has_exact_ = false;
  ActivationBlocks blocks_ = ActivationBlocks::k32;
};

class CpuMatrix {
 public:
  // Reads and packs on the team. RESOURCE_EXHAUSTED when memory is short. Mapped pages of the
  // source are given back on the way, so the peak is the result and a few megabytes.
  static absl::StatusOr<CpuMatrix> Pack(const MatrixSource& source, ComputeType compute,
                                        ThreadTeam& team, const MappedRanges& mapped);

  int64_t outputs() const { return outputs_; }
  int64_t inputs() const { return inputs_; }
  int64_t bytes() const;

  // y [rows.rows(), y_stride] = x W^T in columns [0, outputs())
  void Multiply(ThreadTeam& team, CpuRows& rows, float* y, int64_t y_stride) const;

  // out [inputs()] = row `output`
  void Unpack(int64_t output, float* out) const;

 private:
  struct Piece {
    int64_t first_output = 0;
    PackedWeight weight;
  };
  const ActivationRows& InputsOf(const Piece& piece, CpuRows& rows) const;

  int64_t outputs_ = 0, inputs_ = 0;
  bool keep_fp32_ = false;
  ActivationBlocks blocks_ = ActivationBlocks::k32;
  std::vector<Piece> pieces_;
};

}  // namespace lapidary
