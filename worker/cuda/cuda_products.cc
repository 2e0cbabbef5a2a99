#include "worker/cuda/cuda_products.h"

#include <algorithm>

#include "common/status_macros.h"
#include "kernels/elementwise/row_ops_cuda.h"

namespace lapidary {
namespace {

int64_t RoundUp(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace

absl::Status CudaProducts::Init(CudaWorkspace& workspace, const Sizes& sizes) {
  ASSIGN_OR_RETURN(lt_, CublasLt::Create());
  gate_up_stride_ = RoundUp(sizes.gate_up, 16);
  ASSIGN_OR_RETURN(
      gate_up_, workspace.Scratch<__nv_bfloat16>(CublasLt::PaddedRows(sizes.rows) * gate_up_stride_,
                                                 "gate and up"));
  ASSIGN_OR_RETURN(codes_, workspace.Scratch<uint8_t>(sizes.code_bytes, "codes"));
  ASSIGN_OR_RETURN(code_scales_, workspace.Scratch<float>(sizes.code_rows, "scales of codes"));
  return absl::OkStatus();
}

absl::Status CudaProducts::Prepare(const GpuMatrix& w, int64_t x_stride, const ProductOutput& out,
                                   int64_t max_rows) {
  const ProductInput in{.stride = x_stride};
  for (int64_t rows = kMaxStreamTokens + 1; rows <= CublasLt::PaddedRows(max_rows);
       rows += CublasLt::kRowStep) {
    const absl::Status found = lt_->Prepare(CublasLt::ShapeOf(w, in, rows, out));
    if (absl::IsUnimplemented(found)) return absl::OkStatus();  // streamed in slices then
    RETURN_IF_ERROR(found);
  }
  return absl::OkStatus();
}

ProductInput CudaProducts::Quantized(const __nv_bfloat16* x, int64_t x_stride, int64_t rows,
                                     int64_t dim) {
  QuantizeRowsParams p;
  p.x = x;
  p.x_stride = x_stride;
  p.codes = codes_;
  p.codes_stride = CodesStride(dim);
  p.scale = code_scales_;
  p.rows = rows;
  p.dim = dim;
  stream_.Check("quantize_rows", LaunchQuantizeRows(p, stream_.raw()));
  return {.x = codes_, .stride = p.codes_stride, .scale = code_scales_};
}

void CudaProducts::Multiply(const char* name, const GpuMatrix& w, const __nv_bfloat16* x,
                            int64_t x_stride, int64_t rows, const ProductOutput& out) {
  if (w.number == GpuNumber::kE4m3) {
    Multiply(name, w, Quantized(x, x_stride, rows, w.k), rows, out);
  } else {
    Multiply(name, w, {.x = x, .stride = x_stride}, rows, out);
  }
}

void CudaProducts::Multiply(const char* name, const GpuMatrix& w, const ProductInput& in,
                            int64_t rows, const ProductOutput& out) {
  if (rows == 0) return;
  if (rows <= kMaxStreamTokens || !lt_->IsPrepared(CublasLt::ShapeOf(w, in, rows, out))) {
    Stream(name, w, in, rows, out);
    return;
  }
  if (absl::Status s = lt_->Product(w, in, rows, out, stream_.raw()); !s.ok()) {
    stream_.Fail(std::move(s));
  }
  if (out.epilogue != ProductEpilogue::kFp32 || out.softcap == 0) return;
  const SoftCapParams cap{.x = static_cast<float*>(out.y),
                          .stride = out.stride,
                          .rows = rows,
                          .dim = w.n,
                          .cap = out.softcap};
  stream_.Check("soft_cap", LaunchSoftCap(cap, stream_.raw()));
}

void CudaProducts::Gated(const char* name, const GpuMatrix& w, const ProductInput& in, int64_t rows,
                         __nv_bfloat16* out, int64_t out_stride, int64_t width) {
  if (rows == 0) return;
  const ProductOutput wide{.y = gate_up_, .stride = gate_up_stride_};
  if (rows <= kMaxStreamTokens || !lt_->IsPrepared(CublasLt::ShapeOf(w, in, rows, wide))) {
    Stream(name, w, in, rows,
           {.y = out, .stride = out_stride, .epilogue = ProductEpilogue::kGatedGelu});
    return;
  }
  if (absl::Status s = lt_->Product(w, in, rows, wide, stream_.raw()); !s.ok()) {
    stream_.Fail(std::move(s));
  }
  GatedGeluParams p;
  p.gate_up = gate_up_;
  p.in_stride = gate_up_stride_;
  p.out = out;
  p.out_stride = out_stride;
  p.rows = rows;
  p.width = width;
  stream_.Check("gated_gelu", LaunchGatedGelu(p, stream_.raw()));
}

// In slices where there are more rows than a launch takes: right, and slower than it need be.
void CudaProducts::Stream(const char* name, const GpuMatrix& w, const ProductInput& in,
                          int64_t rows, const ProductOutput& out) {
  const int64_t in_bytes = in.stride * w.element_bytes();
  const int64_t out_bytes = out.stride * (out.epilogue == ProductEpilogue::kFp32 ? 4 : 2);
  for (int64_t first = 0; first < rows; first += kMaxStreamTokens) {
    const auto count = static_cast<int>(std::min<int64_t>(kMaxStreamTokens, rows - first));
    ProductInput slice = in;
    slice.x = static_cast<const uint8_t*>(in.x) + first * in_bytes;
    if (in.scale != nullptr) slice.scale = in.scale + first;
    ProductOutput to = out;
    to.y = static_cast<uint8_t*>(out.y) + first * out_bytes;
    const StreamPlan plan = PlanStream(w, count, chip_);
    stream_.Check(name, LaunchStreamProduct(w, slice, count, to, plan, chip_, stream_.raw()));
  }
}

}  // namespace lapidary
