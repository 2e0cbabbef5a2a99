"""The gates of gates.toml, and what a built kernel must show to pass them."""
import dataclasses
import pathlib
import re
import tomllib

from gpu_code import occupancy

FILE = pathlib.Path(__file__).with_name("gates.toml")
# Of a kernel; 16 bytes each, 80 KB. NVIDIA does not say how much an instruction cache holds.
MAX_INSTRUCTIONS = 5000
# Key of a gate -> (figure that it bounds, whether it is a lower bound).
BOUNDS = {
    "max_registers": ("registers", False),
    "min_warps": ("warps", True),
    "min_tensor": ("tensor", True),
    "min_wide": ("wide", True),
    "min_wide_in_kernel": ("wide_in_kernel", True),
    "max_narrow": ("narrow", False),
    "min_wide_shared": ("wide_shared", True),
    "max_barriers": ("barriers", False),
}
TITLES = {
    "registers": "registers of a thread",
    "warps": "warps on a processor",
    "local_bytes": "bytes of local memory of a thread (spills)",
    "local": "local memory accesses (spills)",
    "tensor": "tensor-core instructions in the hot loop",
    "wide": "16-byte loads of global memory in the hot loop",
    "wide_in_kernel": "16-byte loads of global memory",
    "narrow": "loads of global memory below 16 bytes in the hot loop",
    "wide_shared": "16-byte loads of shared memory in the hot loop",
    "barriers": "barriers in the hot loop",
    "instructions": "instructions",
}


class GateError(Exception):
    """gates.toml is not as it should be."""


# Families whose kernels must use tensor cores, unless a row says why one does not.
PRODUCTS = ("gemm/", "attention/")
# Keys of a row that say why it demands none.
REASONS = {"no_tensor": ("min_tensor",), "no_wide": ("min_wide", "min_wide_in_kernel")}


@dataclasses.dataclass
class Row:
    """Gates of the variants of a kernel whose template arguments the pattern matches in full."""
    kernel: str  # "gemm/stream_product.cu StreamProductKernel"
    variants: str
    bounds: dict  # key of BOUNDS -> number, or {chip: number, "other": number}

    def takes(self, variant):
        arguments = variant.name.partition("<")[2].removesuffix(">")
        return variant.kernel == self.kernel and re.fullmatch(self.variants, arguments)


@dataclasses.dataclass
class Gates:
    rows: list
    exceptions: list  # of {kernel, chip, figure, limit, reason}

    def row_for(self, variant):
        return next((row for row in self.rows if row.takes(variant)), None)


def read_row(entry, path):
    entry = dict(entry)
    name, variants = entry.pop("name"), entry.pop("variants", ".*")
    reasons = {key: entry.pop(key) for key in REASONS if key in entry}
    unknown = set(entry) - set(BOUNDS)
    if unknown:
        raise GateError(f"{path}: {name}: there is no gate {', '.join(sorted(unknown))}")
    missing = {"max_registers", "min_warps"} - set(entry)
    if missing:
        raise GateError(f"{path}: {name} has no {', '.join(sorted(missing))}")
    for reason, keys in REASONS.items():
        if reason == "no_tensor" and not name.startswith(PRODUCTS):
            continue
        demanded = any(key in entry for key in keys)
        if demanded == bool(reasons.get(reason, "").strip()):
            raise GateError(f"{path}: {name} needs either {' or '.join(keys)}, or {reason} with a "
                            "reason")
    return Row(name, variants, entry)


def load(path=FILE):
    data = tomllib.loads(pathlib.Path(path).read_text())
    for exception in data.get("exception", []):
        if set(exception) != {"kernel", "chip", "figure", "limit", "reason"} or (
                not exception["reason"].strip() or exception["figure"] not in TITLES):
            raise GateError(f"{path}: an exception has kernel, chip, figure, limit and a reason, "
                            f"and nothing else: {exception}")
    return Gates([read_row(entry, path) for entry in data["kernel"]], data.get("exception", []))


def bound(row, key, chip):
    value = row.bounds.get(key)
    return value.get(chip, value.get("other")) if isinstance(value, dict) else value


def misses(value, limit, at_least):
    return value < limit if at_least else value > limit


def complaints(gates, variants, source_kernels, chips):
    """What is wrong, one line each.

    variants: objects with kernel ("file Name"), name ("Name<arguments>"), name_in_file, chip, and a
    method figure(name), which is None where there is nothing to gate; source_kernels: the kernels
    that the sources define.
    """
    built = {variant.kernel for variant in variants}
    gated = {row.kernel for row in gates.rows}
    found = [f"{kernel}: is in the sources and not in the object files"
             for kernel in sorted(source_kernels - built)]
    found += [f"{kernel}: has no gates; give it a row in scripts/gpu_code/gates.toml"
              for kernel in sorted((built | source_kernels) - gated)]
    found += [f"{kernel}: has gates and does not exist; take its row out of gates.toml"
              for kernel in sorted(gated - built - source_kernels)]
    needed = set()  # exceptions without which a gate would fail

    def check(variant, figure, limit, at_least):
        value = variant.figure(figure)
        if value is None:
            return
        for i, exception in enumerate(gates.exceptions):
            if (exception["kernel"] in (variant.name_in_file, variant.kernel)
                    and exception["figure"] == figure
                    and exception["chip"] in ("all", variant.chip)
                    and misses(value, limit, at_least)):
                needed.add(i)
                limit = exception["limit"]
        if misses(value, limit, at_least):
            found.append(f"{variant.name_in_file}, sm_{variant.chip}: {value} {TITLES[figure]}, "
                         f"the limit is {'at least' if at_least else 'at most'} {limit}")

    for variant in variants:
        check(variant, "local_bytes", 0, False)
        check(variant, "local", 0, False)
        check(variant, "instructions", MAX_INSTRUCTIONS, False)
        row = gates.row_for(variant)
        if row is None and variant.kernel in gated:
            found.append(f"{variant.name_in_file}: no row of its kernel in gates.toml takes it")
        for key, (figure, at_least) in BOUNDS.items() if row else ():
            limit = bound(row, key, variant.chip)
            if limit is not None:
                check(variant, figure, limit, at_least)
    # With some of the chips, others may be what an exception is for.
    for i, exception in enumerate(gates.exceptions):
        if i not in needed and (exception["chip"] in chips or set(chips) == set(occupancy.CHIPS)):
            found.append(f"{exception['kernel']}, {exception['figure']}: the exception is not "
                         "needed any more; take it out of gates.toml")
    return list(dict.fromkeys(found))
