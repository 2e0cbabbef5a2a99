#!/usr/bin/env python3
"""Writes fragment_layouts.h: where the matrix instructions keep their elements, computed from the
layouts that CUTLASS publishes (CuTe, compiled with g++; no GPU and no nvcc).

usage: make_layouts.py [CUTLASS_INCLUDE_DIR]   without one, takes the wheel nvidia-cutlass from PyPI
"""
import pathlib
import subprocess
import sys
import tempfile
import zipfile

WHEEL = "nvidia-cutlass==4.2.0.0"
CUDA = "/usr/local/cuda/include"

PROGRAM = r"""
#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm89.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>
using namespace cute;

template <class Index>
void Table(const char* comment, const char* name, int threads, int values, Index index) {
  printf("// %s\ninline constexpr uint16_t %s[%d][%d] = {\n", comment, name, threads, values);
  for (int t = 0; t < threads; ++t) {
    printf("    {");
    for (int v = 0; v < values; ++v) printf("%s%d", v ? ", " : "", int(index(t, v)));
    printf("},\n");
  }
  printf("};\n\n");
}

// CuTe's coordinates are (row, column) with the row first: row + column * rows. Ours: row-major.
template <class Layout>
auto RowMajor(Layout layout, int rows, int columns) {
  return [=](int t, int v) {
    const int i = layout(t, v);
    return i % rows * columns + i / rows;
  };
}

// Which 16-bit element of the source (thread * 8 + element) a register's half holds.
template <class Traits>
auto Source(Traits) {
  return [](int t, int v) {
    typename Traits::DstLayout to;
    typename Traits::SrcLayout from;
    const int bit = to(t, v * 16);
    for (int s = 0; s < 32; ++s) {
      if (from(s, 0) <= bit && bit < from(s, 0) + 128) return s * 8 + (bit - from(s, 0)) / 16;
    }
    return -1;
  };
}
// movmatrix.trans turns what ldmatrix gives into what ldmatrix.trans gives (PTX ISA; CuTe's own
// traits for it are a placeholder): lane * 2 + half.
int Movmatrix(int t, int v) {
  const auto plain = Source(Copy_Traits<SM75_U32x1_LDSM_N>{});
  const auto transposed = Source(Copy_Traits<SM75_U16x2_LDSM_T>{});
  for (int i = 0; i < 64; ++i) {
    if (plain(i / 2, i % 2) == transposed(t, v)) return i;
  }
  return -1;
}

int main() {
  using Bf16 = MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>;
  using E4m3 = MMA_Traits<SM89_16x8x32_F32E4M3E4M3F32_TN>;
  Table("m16n8k16: lane's elements of A [16, 16], row-major", "kMmaBf16A", 32, 8, RowMajor(Bf16::ALayout{}, 16, 16));
  Table("... of B^T [8, 16]", "kMmaBf16B", 32, 4, RowMajor(Bf16::BLayout{}, 8, 16));
  Table("... of D [16, 8]", "kMmaD", 32, 4, RowMajor(Bf16::CLayout{}, 16, 8));
  Table("m16n8k32: A [16, 32]", "kMmaE4m3A", 32, 16, RowMajor(E4m3::ALayout{}, 16, 32));
  Table("... B^T [8, 32]", "kMmaE4m3B", 32, 8, RowMajor(E4m3::BLayout{}, 8, 32));
  Table("... D [16, 8]", "kMmaE4m3D", 32, 4, RowMajor(E4m3::CLayout{}, 16, 8));
  Table("ldmatrix.x4: element (lane that gave the row) * 8 + column, by register half", "kLdmatrix4", 32, 8, Source(Copy_Traits<SM75_U32x4_LDSM_N>{}));
  Table("ldmatrix.x4.trans", "kLdmatrix4Trans", 32, 8, Source(Copy_Traits<SM75_U16x8_LDSM_T>{}));
  Table("ldmatrix.x2", "kLdmatrix2", 32, 4, Source(Copy_Traits<SM75_U32x2_LDSM_N>{}));
  Table("movmatrix: lane * 2 + half", "kMovmatrix", 32, 2, Movmatrix);
  Table("wgmma m64n64: thread's elements of D [64, 64]", "kWgmmaD", 128, 32, RowMajor(SM90::GMMA::CLayout_64x64{}, 64, 64));
  // K-major tile of 64 x 64 bf16 with the 128-byte swizzle: 16-byte chunk (row, chunk) lies at
  // this multiple of 16 bytes.
  auto tile = as_position_independent_swizzle_layout(
      tile_to_shape(SM90::GMMA::Layout_K_SW128_Atom<bfloat16_t>{}, Shape<_64, _64>{}));
  Table("128-byte swizzle: place of chunk (row, column) of a K-major tile [64, 64] bf16, in chunks", "kSwizzledChunk", 64, 8, [&](int row, int chunk) { return tile(row, chunk * 8) / 8; });
}
"""


def main():
    here = pathlib.Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as work:
        if len(sys.argv) > 1:
            include = sys.argv[1]
        else:
            subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", work, WHEEL],
                           check=True)
            zipfile.ZipFile(next(pathlib.Path(work).glob("*.whl"))).extractall(work)
            include = str(next(pathlib.Path(work).rglob("include/cute")).parent)
        source = pathlib.Path(work, "layouts.cc")
        source.write_text(PROGRAM)
        program = source.with_suffix("")
        subprocess.run(["g++", "-std=c++17", "-w", "-I", include, "-isystem", CUDA, "-isystem", CUDA + "/cccl", source, "-o", program],
                       check=True)
        tables = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    (here / "fragment_layouts.h").write_text(
        "// Where the matrix instructions keep their elements, as CUTLASS publishes it. Made by\n"
        f"// make_layouts.py from {WHEEL.replace('==', ' ')}; do not edit.\n"
        "// clang-format off\n"
        "#pragma once\n#include <cstdint>\n\nnamespace lapidary::simt {\n\n" + tables +
        "}  // namespace lapidary::simt\n")


if __name__ == "__main__":
    main()
