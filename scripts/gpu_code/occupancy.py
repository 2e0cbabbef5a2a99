"""How many blocks of a kernel a processor of each chip holds at once.

The limits are those of the CUDA programming guide's table of compute capabilities; the test
compares the results with the toolkit's cuda_occupancy.h.
"""
import dataclasses


@dataclasses.dataclass
class Chip:
    title: str
    warps: int  # of a processor
    blocks: int
    shared_kib: int
    block_shared_kib: int


CHIPS = {
    "80": Chip("A100", 64, 32, 164, 163),
    "89": Chip("L40S", 48, 24, 100, 99),
    "90a": Chip("H100", 64, 32, 228, 227),
    "100a": Chip("B200", 64, 32, 228, 227),
    "120a": Chip("RTX 50", 48, 24, 100, 99),
}
REGISTERS = 65536  # of a processor; a warp's are given out in units of 256, by 4 schedulers
RESERVED_SHARED_BYTES = 1024  # of each block
SCHEDULERS = 4


def round_up(n, unit):
    return (n + unit - 1) // unit * unit


def blocks_per_processor(chip, registers, threads, shared_bytes):
    """0: a block of this size cannot start."""
    limits = CHIPS[chip]
    warps = round_up(threads, 32) // 32
    warp_registers = round_up(max(registers, 1) * 32, 256)
    by_registers = REGISTERS // SCHEDULERS // warp_registers * SCHEDULERS // warps
    if shared_bytes > limits.block_shared_kib * 1024:
        return 0
    shared = round_up(shared_bytes + RESERVED_SHARED_BYTES, 128)
    by_shared = limits.shared_kib * 1024 // shared
    return min(limits.warps // warps, limits.blocks, by_registers, by_shared)
