#!/usr/bin/env python3
"""Random blocks of every quantised format, and what the `gguf` package makes of them.

Writes tests/golden/quant/<TYPE>.bin: the number of elements (int32), the blocks, the elements as fp32
(little endian). Scales cover subnormal and large fp16, codes every bit pattern. Run it in an
environment with tests/golden/requirements.txt; the files are committed, tests need no Python.
"""
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

HERE = pathlib.Path(__file__).parent / "quant"
# Where a block keeps its fp16 numbers (bytes from its begin): any bits will do elsewhere.
HALVES = {T.Q8_0: [0], T.Q4_0: [0], T.Q5_0: [0], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
ELEMENTS = 2048


def random_halves(rng, count):
    """Finite fp16 of every exponent, as bytes [count, 2]."""
    bits = rng.integers(0, 1 << 16, count, dtype=np.uint16)
    special = (bits & 0x7C00) == 0x7C00  # infinities and NaN: no model has them
    bits[special] &= 0xBFFF
    return bits.view(np.uint8).reshape(count, 2)


def main():
    HERE.mkdir(exist_ok=True)
    rng = np.random.default_rng(20261124)
    for qtype, places in HALVES.items():
        elements, size = GGML_QUANT_SIZES[qtype]
        blocks = rng.integers(0, 256, (ELEMENTS // elements, size), dtype=np.uint8)
        for place in places:
            blocks[:, place : place + 2] = random_halves(rng, len(blocks))
        values = dequantize(blocks, qtype).astype("<f4")
        assert values.size == ELEMENTS and np.isfinite(values).all(), qtype
        header = np.array([ELEMENTS], dtype="<i4").tobytes()
        (HERE / f"{qtype.name}.bin").write_bytes(header + blocks.tobytes() + values.tobytes())
        print(f"{qtype.name}: {len(blocks)} blocks")


if __name__ == "__main__":
    main()
