#!/usr/bin/env python3
"""What nvcc made of the kernels: registers, spills, occupancy, hot loops; and whether that will do.

    scripts/kernel_report.py           writes docs/gpu-kernels.md and docs/gpu-status.md
    scripts/kernel_report.py --check   applies scripts/gpu_code/gates.toml; 1 if a kernel fails
    scripts/kernel_report.py --list    every variant of every kernel, tab-separated

Reads the object files of the build folder (--build, build/release): build the targets
lapidary_kernels_cuda and kernel_launches before. A build for some chips only is checked for those;
the documents want all five. Which kernels have run under emulation is what the emulated tests said
(--launches, a folder that the tests got as SIMT_LAUNCHES; scripts/kernel_report.py --emulate runs
them). No GPU is used. Exit 77: there is nothing to read with, or nothing to read.

Of a build configured without device code (LAPIDARY_CUDA=OFF, or no nvcc) both documents say "not
built" in every cell. They are printed, or written to the folder --output; never to docs.
"""
import argparse
import collections
import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from gpu_code import device_code, emulation, gates, occupancy, pages, sass  # noqa: E402

ROOT = device_code.ROOT
SKIPPED = 77


class Variant:
    """A variant of a kernel on a chip, with how it is launched there."""

    def __init__(self, kernel, launches):
        self.code = kernel
        self.chip = kernel.chip
        self.name = kernel.name
        self.kernel = f"{kernel.source} {kernel.template}"
        self.name_in_file = f"{kernel.source} {kernel.name}"
        self.launches = launches  # [(threads, dynamic shared bytes)]
        self.hot, self.whole = sass.Mix(), sass.Mix()
        self.hot.update(kernel.hot)
        self.whole.update(kernel.whole)
        # A kernel without dynamic shared memory may be launched in any way.
        self.started = bool(launches) or not kernel.has_dynamic_shared
        self.threads = max((t for t, _ in launches), default=kernel.max_threads)
        self.dynamic_shared = max((s for _, s in launches), default=0)
        self.blocks = occupancy.blocks_per_processor(
            self.chip, kernel.registers, self.threads,
            kernel.static_shared_bytes + self.dynamic_shared)
        self.warps = self.blocks * ((self.threads + 31) // 32)

    def figure(self, name):
        """None where nothing is to be gated: a kernel that no launcher starts on this chip has
        figures, and nobody waits for it."""
        if name in ("local_bytes", "local"):
            return self.code.stack_bytes if name == "local_bytes" else self.whole.local
        if not self.started:
            return None
        own = {"registers": self.code.registers, "warps": self.warps,
               "instructions": self.whole.total(), "wide_in_kernel": self.whole.wide}
        return own[name] if name in own else getattr(self.hot, name)


def source_kernels():
    """{"gemm/stream_product.cu StreamProductKernel", ...} of kernels/*/*.cu."""
    bounds = r"(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?"
    found = set()
    for file in sorted((ROOT / "kernels").glob("*/*.cu")):
        for match in re.finditer(rf"__global__\s+void\s+{bounds}(\w+)\s*\(", file.read_text()):
            found.add(f"{file.relative_to(ROOT / 'kernels')} {match[1]}")
    return found


def why_no_device_code(build):
    """How CMake was told, or found, to leave device code out of a build; None where it was not."""
    cache = build / "CMakeCache.txt"
    text = cache.read_text() if cache.exists() else ""
    if re.search(r"^LAPIDARY_CUDA:\w+=OFF$", text, re.MULTILINE):
        return "was configured with LAPIDARY_CUDA=OFF"
    if re.search(r"^LAPIDARY_NVCC:\w+=LAPIDARY_NVCC-NOTFOUND$", text, re.MULTILINE):
        return "was configured where there was no nvcc"
    return None


def read_launches(build):
    """{(chip, symbol): [(threads, dynamic shared bytes)]}."""
    found = collections.defaultdict(list)
    program = build / "kernels/cuda/kernel_launches"
    for line in device_code.run(program).splitlines():
        launch = json.loads(line)
        found[launch["chip"], launch["kernel"]].append((launch["threads"], launch["shared"]))
    return found


def read_variants(build):
    """[Variant] of what is in the object files, kernels/simt/tests left out."""
    folder = build / "kernels/cuda/CMakeFiles/lapidary_kernels_cuda.dir"
    objects = [path for path in folder.rglob("*.cu.o")
               if re.fullmatch(r"\w+/\w+\.cu", device_code.source_of(path))
               and (ROOT / "kernels" / device_code.source_of(path)).exists()]
    if not objects or not (build / "kernels/cuda/kernel_launches").exists():
        print(f"kernel_report: {build} has no device code: build lapidary_kernels_cuda and "
              "kernel_launches with a CUDA toolkit", file=sys.stderr)
        sys.exit(SKIPPED)
    launches = read_launches(build)
    variants = [Variant(kernel, launches.get((kernel.chip, kernel.symbol), []))
                for kernel in device_code.read_objects(objects, build / "kernels/cuda/kernel_facts")
                if not kernel.empty]
    return sorted(variants, key=lambda v: (v.kernel, list(occupancy.CHIPS).index(v.chip), v.name))


def nvcc_version(build):
    compiler = re.search(r"LAPIDARY_NVCC:FILEPATH=(.*)", (build / "CMakeCache.txt").read_text())[1]
    return re.search(r"V([\d.]+)", device_code.run(compiler, "--version"))[1]


def never_started(variants):
    """Variants with dynamic shared memory that no launcher starts on any chip in this build."""
    started = {v.name_in_file for v in variants if v.started}
    return sorted({v.name_in_file for v in variants} - started)


def check(variants, chips):
    wrong = gates.complaints(gates.load(), variants, source_kernels(), chips)
    if len(chips) == len(occupancy.CHIPS):
        wrong += [f"{name}: kernels/cuda/kernel_launches.cc never starts it: give it a case there"
                  for name in never_started(variants)]
        wrong += pages.stale(variants, ROOT / "docs")
    for line in wrong:
        print(f"kernel_report: {line}", file=sys.stderr)
    started = sum(v.started for v in variants)
    print(f"kernel_report: {len({v.kernel for v in variants})} kernels, {started} started "
          f"variants, {len(variants) - started} others, for sm_{', sm_'.join(chips)}: "
          + (f"{len(wrong)} complaints" if wrong else "all gates passed"))
    return 1 if wrong else 0


def report_not_built(arguments, build, why):
    """Both documents of a build without device code: never where those of all five chips are."""
    if arguments.check or arguments.list or arguments.emulate:
        print(f"kernel_report: {build} {why}: there is no device code to "
              + ("check" if arguments.check else "list" if arguments.list else "emulate"),
              file=sys.stderr)
        return SKIPPED
    documents = pages.not_built(source_kernels(), build, why)
    if arguments.output is None:
        print("\n".join(documents.values()), end="")
        return 0
    if arguments.output.resolve() == ROOT / "docs":
        raise device_code.ReadError(f"docs is about all five chips, and {build} {why}: name "
                                    "another folder, or none to have the tables printed")
    pages.write(documents, arguments.output)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--check", action="store_true", help="apply the gates, write nothing")
    parser.add_argument("--list", action="store_true", help="print every variant")
    parser.add_argument("--launches", type=pathlib.Path, help="what the emulated tests launched")
    parser.add_argument("--emulate", action="store_true", help="run the emulated tests first")
    parser.add_argument("--output", type=pathlib.Path, help="folder of the documents (docs)")
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    why = why_no_device_code(build)
    if why:
        return report_not_built(arguments, build, why)
    launches = arguments.launches or build / "kernels/cuda/emulated_launches"
    variants = read_variants(build)
    chips = [chip for chip in occupancy.CHIPS if any(v.chip == chip for v in variants)]
    if arguments.list:
        print(pages.listing(variants), end="")
        return 0
    if arguments.check:
        return check(variants, chips)
    if len(chips) != len(occupancy.CHIPS):
        raise device_code.ReadError("the documents are about all five chips; this build has sm_"
                                    + ", sm_".join(chips))
    if arguments.emulate:
        emulation.run_tests(build, launches)
    emulated = emulation.read(launches)
    pages.write(pages.built(variants, emulated, gates.load(), nvcc_version(build)),
                arguments.output or ROOT / "docs")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (device_code.ReadError, gates.GateError) as error:
        print(f"kernel_report: {error}", file=sys.stderr)
        # Without disassemblers there is nothing to check; anything else is an error.
        sys.exit(SKIPPED if isinstance(error, device_code.NoTool) else 1)
