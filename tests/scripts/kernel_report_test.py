#!/usr/bin/env python3
"""Tests of scripts/kernel_report.py: control flow, occupancy, gates, and planted.cu, compiled.

LAPIDARY_NVCC names the compiler; without it or without disassemblers the tests that need them skip.
"""
import itertools
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import kernel_report  # noqa: E402
from gpu_code import device_code, gates, occupancy, pages, sass  # noqa: E402

NVCC = os.environ.get("LAPIDARY_NVCC")


def program(text):
    """Instructions from lines "[@predicate] opcode operands"; a jump names a line's number."""
    code = []
    for line in text.strip().splitlines():
        words = line.split()
        predicate = words.pop(0) if words[0].startswith("@") else ""
        operands = " ".join(words[1:])
        if words[0].split(".")[0] in ("BRA", "BSSY"):
            parts = operands.split(",")
            operands = ",".join(parts[:-1] + [hex(int(parts[-1]) * 16)])
        code.append(sass.Instruction(words[0], operands, predicate))
    return code


class SassTest(unittest.TestCase):
    def test_accesses_are_counted_by_the_bits_of_a_lane(self):
        mix = sass.Mix(program("""
            LDG.E.128 R4
            LDG.E.U16 R4
            LDG.E R4
            LDG.E.64.CONSTANT R4
            LDGSTS.E.BYPASS.128 [R1]
            UBLKCP [UR4]
            STG.E.128 R4
            LDS.128 R4
            LDS R4
            LDSM.16.M88.4 R4
            STL.64 [R1]
            LDL R1
            SYNCS.PHASECHK R1
            BAR.SYNC 0
            HMMA.16816.F32.BF16 R4
            QMMA.16832.F32.E4M3 R4"""))
        self.assertEqual((mix.wide, mix.narrow), (3, 3))
        self.assertEqual((mix.wide_shared, mix.narrow_shared), (2, 1))
        self.assertEqual((mix.local, mix.barriers, mix.tensor, mix.total()), (2, 2, 2, 16))

    def test_the_hot_loop_is_the_inner_one_with_the_work(self):
        hot, depth = sass.hot_loop(program("""
            MOV R1
            LDG.E.128 R4
            HMMA.16816 R4
            HMMA.16816 R4
            HMMA.16816 R4
            @P0 BRA 2
            HMMA.16816 R4
            @P1 BRA 1
            IADD3 R1
            IADD3 R1
            @P2 BRA 8
            EXIT"""))
        self.assertEqual((depth, dict(hot)), (2, {"HMMA": 3, "BRA": 1}))

    def test_work_that_is_mostly_outside_the_inner_loop_is_not_left(self):
        hot, depth = sass.hot_loop(program("""
            HMMA.16816 R4
            HMMA.16816 R4
            HMMA.16816 R4
            HMMA.16816 R4
            @P0 BRA 3
            @P1 BRA 0
            EXIT"""))
        self.assertEqual((depth, hot.tensor), (1, 4))

    def test_without_loops_everything_is_counted(self):
        # The branch back is out of the way of a divergent warp, the padding behind EXIT is no code.
        code = sass.without_padding(program("""
            LDG.E.128 R4
            BRA.DIV UR4,4
            STG.E.128 R4
            EXIT
            WARPSYNC R1
            BRA 2
            BRA 6
            NOP"""))
        self.assertEqual(len(code), 6)
        hot, depth = sass.hot_loop(code)
        self.assertEqual((depth, hot.total()), (0, 6))

    def test_a_loop_that_leaves_in_the_middle(self):
        hot, depth = sass.hot_loop(program("""
            MOV R1
            @P0 BRA 4
            LDG.E.128 R4
            BRA 1
            EXIT"""))
        self.assertEqual((depth, dict(hot)), (1, {"BRA": 2, "LDG.128": 1}))

    def test_threads_that_meet_go_on_where_the_barrier_says(self):
        # BSYNC at 3 goes on at 4 only by BSSY; the loop is 1 to 4.
        hot, depth = sass.hot_loop(program("""
            MOV R1
            BSSY B0,5
            @P0 BRA 4
            LDG.E.128 R4
            BSYNC B0
            @P1 BRA 1
            EXIT"""))
        self.assertEqual((depth, hot.total()), (1, 5))

    def test_a_body_that_its_chip_cannot_run(self):
        self.assertTrue(sass.does_nothing(program("LDC R1\nMOV R1\nEXIT")))
        self.assertFalse(sass.does_nothing(program("LDC R1\nSTG.E R1\nEXIT")))


OCCUPANCY = r"""
#include <cuda_occupancy.h>
#include <cstdio>
int main() {
  int chip, major, minor, warps, blocks, shared, block_shared, registers, threads, bytes;
  while (std::scanf("%d %d %d %d %d %d %d %d", &chip, &warps, &blocks, &shared, &block_shared,
                    &registers, &threads, &bytes) == 8) {
    major = chip / 10, minor = chip % 10;
    cudaOccDeviceProp device;
    device.computeMajor = major, device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = warps * 32;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536, device.warpSize = 32;
    device.sharedMemPerBlock = 48 << 10, device.sharedMemPerMultiprocessor = shared << 10;
    device.sharedMemPerBlockOptin = block_shared << 10, device.numSms = 1;
    device.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes function;
    function.maxThreadsPerBlock = 1024, function.numRegs = registers;
    function.sharedSizeBytes = 0, function.partitionedGCConfig = PARTITIONED_GC_OFF;
    function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    function.maxDynamicSharedSizeBytes = bytes, function.numBlockBarriers = 1;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    const cudaOccError e = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function,
                                                                   &state, threads, bytes);
    std::printf("%d\n", e == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1);
  }
}
"""


class OccupancyTest(unittest.TestCase):
    def test_known_blocks(self):
        # By registers, by warps, by blocks, by shared memory, and one too large.
        for chip, registers, threads, shared, blocks in (
                ("80", 128, 256, 0, 2), ("80", 32, 256, 0, 8), ("89", 32, 256, 0, 6),
                ("80", 16, 32, 0, 32), ("90a", 64, 128, 75904, 3), ("89", 64, 128, 75904, 1),
                ("89", 64, 128, 110000, 0)):
            self.assertEqual(
                occupancy.blocks_per_processor(chip, registers, threads, shared), blocks,
                (chip, registers, threads, shared))

    @unittest.skipUnless(NVCC, "no CUDA toolkit")
    def test_the_toolkit_says_the_same(self):
        # The wheels' include folder is where nvcc is.
        include = pathlib.Path(NVCC).resolve().parents[1] / "include"
        if not (include / "cuda_occupancy.h").exists():
            self.skipTest("the toolkit has no cuda_occupancy.h")
        cases = [(chip, registers, threads, shared)
                 for chip, registers, threads, shared in itertools.product(
                     occupancy.CHIPS, (16, 32, 40, 41, 64, 72, 96, 128, 168, 255),
                     (32, 96, 128, 256, 288, 512, 1024),
                     (0, 1, 1000, 12376, 49280, 98432, 101376, 131136, 232448))
                 if registers * threads <= 65536 and shared <= (
                     occupancy.CHIPS[chip].block_shared_kib << 10)]
        lines = []
        for chip, registers, threads, shared in cases:
            limits = occupancy.CHIPS[chip]
            lines.append(f"{chip.rstrip('a')} {limits.warps} {limits.blocks} {limits.shared_kib} "
                         f"{limits.block_shared_kib} {registers} {threads} {shared}")
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder, "occupancy.cc")
            source.write_text(OCCUPANCY)
            subprocess.run(["c++", "-O1", "-w", "-I", include, source, "-o", f"{folder}/occupancy"],
                           check=True)
            theirs = subprocess.run([f"{folder}/occupancy"], input="\n".join(lines), text=True,
                                    capture_output=True, check=True).stdout.split()
        self.assertGreater(len(cases), 1000)
        ours = [str(occupancy.blocks_per_processor(*case)) for case in cases]
        self.assertEqual([(case, a, b) for case, a, b in zip(cases, ours, theirs, strict=True)
                          if a != b], [])


class FakeVariant:
    def __init__(self, figures=None, chip="90a", name="GoodKernel<1>", file="gemm/good.cu"):
        self.kernel, self.name, self.chip = f"{file} {name.split('<')[0]}", name, chip
        self.name_in_file = f"{file} {name}"
        self.figures = {"local_bytes": 0, "local": 0, "registers": 64, "warps": 16, "tensor": 8,
                        "wide": 4, "narrow": 0, "instructions": 900, **(figures or {})}

    def figure(self, name):
        return self.figures.get(name)


ROW = """
[[kernel]]
name = "gemm/good.cu GoodKernel"
max_registers = 64
min_warps = { "89" = 8, other = 16 }
min_tensor = 8
min_wide = 4
max_narrow = 0
"""


def load(text):
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        return gates.load(file.name)


class GatesTest(unittest.TestCase):
    def complaints(self, variants, text=ROW, sources=("gemm/good.cu GoodKernel",), chips=("90a",)):
        return gates.complaints(load(text), variants, set(sources), chips)

    def test_a_good_kernel_passes(self):
        self.assertEqual(self.complaints([FakeVariant()]), [])
        self.assertEqual(self.complaints([FakeVariant({"warps": 8}, chip="89")]), [])

    def test_each_gate_fails_and_says_what(self):
        for figure, value, limit in (
                ("local_bytes", 8, "at most 0"), ("local", 2, "at most 0"),
                ("registers", 65, "at most 64"), ("warps", 15, "at least 16"),
                ("tensor", 7, "at least 8"), ("wide", 3, "at least 4"), ("narrow", 1, "at most 0"),
                ("instructions", 5001, "at most 5000")):
            found = self.complaints([FakeVariant({figure: value})])
            self.assertEqual(found, [f"gemm/good.cu GoodKernel<1>, sm_90a: {value} "
                                     f"{gates.TITLES[figure]}, the limit is {limit}"])

    def test_every_kernel_has_a_row_and_every_row_a_kernel(self):
        new = FakeVariant(name="NewKernel")
        self.assertIn("NewKernel: has no gates", self.complaints([FakeVariant(), new])[0])
        self.assertIn("not in the object files", self.complaints(
            [FakeVariant()], sources=("gemm/good.cu GoodKernel", "gemm/good.cu LostKernel"))[0])
        self.assertIn("does not exist", self.complaints([], sources=())[0])
        only = ROW + "variants = '2, .*'\n"
        self.assertIn("no row of its kernel", self.complaints([FakeVariant()], only)[0])

    def test_the_first_row_that_takes_a_variant_counts(self):
        text = ROW + "variants = '2'\n" + ROW.replace("64", "32")
        self.assertEqual(len(self.complaints([FakeVariant()], text)), 1)
        self.assertEqual(self.complaints([FakeVariant(name="GoodKernel<2>")], text), [])

    def test_exceptions(self):
        def exception(limit, chip="90a"):
            return (f'[[exception]]\nkernel = "gemm/good.cu GoodKernel"\nchip = "{chip}"\n'
                    f'figure = "local_bytes"\nlimit = {limit}\nreason = "a test"\n' + ROW)
        spilling = FakeVariant({"local_bytes": 16})
        self.assertEqual(self.complaints([spilling], exception(16)), [])
        self.assertIn("at most 8", self.complaints([spilling], exception(8))[0])
        self.assertIn("not needed", self.complaints([FakeVariant()], exception(16))[0])
        other = self.complaints([spilling], exception(16, chip="89"), chips=("90a",))
        self.assertEqual(len(other), 1)
        self.assertIn("at most 0", other[0])

    def test_rows_that_demand_too_little_are_refused(self):
        for line in ("min_tensor = 8\n", "min_wide = 4\n", "max_registers = 64\n"):
            with self.assertRaises(gates.GateError):
                load(ROW.replace(line, ""))
        with self.assertRaises(gates.GateError):
            load(ROW + "min_tensors = 8\n")
        with self.assertRaises(gates.GateError):
            load(ROW.replace("min_wide = 4\n", 'no_wide = " "\n'))
        load(ROW.replace("min_wide = 4\n", 'no_wide = "loads nothing"\n'))

    def test_the_gates_of_the_project_are_valid(self):
        self.assertGreater(len(gates.load().rows), 30)


class PagesTest(unittest.TestCase):
    def test_the_part_by_hand_stays(self):
        with tempfile.TemporaryDirectory() as folder:
            page = pathlib.Path(folder, "page.md")
            part = f"{pages.BY_HAND[0]}\n\n## What\n{pages.BY_HAND[1]}\n"
            page.write_text("# Old\n" + part + "rest")
            self.assertEqual(pages.part_by_hand(page), part)

    def test_runs_on_hardware_name_what_they_leave_out(self):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write('[[run]]\nchip = "90a"\nkernels = ["all"]\nexcept = ["a.cu A"]\n'
                       '[[run]]\nchip = "80"\nkernels = ["a.cu A"]\n')
            file.flush()
            hardware = pages.read_hardware(file.name)
        self.assertTrue(pages.ran_on("b.cu B", "90a", hardware))
        self.assertFalse(pages.ran_on("a.cu A", "90a", hardware))
        self.assertTrue(pages.ran_on("a.cu A", "80", hardware))
        self.assertFalse(pages.ran_on("b.cu B", "80", hardware))
        self.assertFalse(pages.ran_on("a.cu A", "89", hardware))

    def test_sources_are_searched_for_kernels(self):
        found = kernel_report.source_kernels()
        self.assertIn("gemm/stream_product.cu StreamProductKernel", found)
        self.assertIn("moe/router.cu RouterTopKKernel", found)  # name on the line of the bounds
        # As many as a dumber search finds.
        count = sum(file.read_text().count("__global__")
                    for file in (ROOT / "kernels").glob("*/*.cu"))
        self.assertEqual(len(found), count)


class NotBuiltTest(unittest.TestCase):
    """Builds without device code: of them the script reads what CMake remembers, and no more."""

    CACHES = {
        "was configured with LAPIDARY_CUDA=OFF": (
            "LAPIDARY_CUDA:STRING=OFF\n", "LAPIDARY_CUDA:BOOL=OFF\n",
            # Once it was on.
            "LAPIDARY_CUDA:STRING=OFF\nLAPIDARY_NVCC:FILEPATH=/usr/local/cuda/bin/nvcc\n"),
        "was configured where there was no nvcc": (
            "LAPIDARY_CUDA:STRING=AUTO\nLAPIDARY_NVCC:FILEPATH=LAPIDARY_NVCC-NOTFOUND\n",),
    }
    OFF = "LAPIDARY_CUDA:STRING=OFF\n"
    PAGES = ("gpu-kernels.md", "gpu-status.md")

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.build = pathlib.Path(folder.name).resolve()
        docs = {ROOT / "docs" / name: (ROOT / "docs" / name).read_bytes() for name in self.PAGES}
        self.addCleanup(self.expect_untouched, docs)

    def expect_untouched(self, docs):
        touched = [path for path, content in docs.items() if path.read_bytes() != content]
        for path in touched:
            path.write_bytes(docs[path])
        self.assertEqual(touched, [])

    def report(self, cache, *arguments):
        (self.build / "CMakeCache.txt").write_text(cache)
        return subprocess.run(
            [sys.executable, ROOT / "scripts/kernel_report.py", "--build", self.build, *arguments],
            capture_output=True, text=True)

    def expect_not_built(self, kernels_page, status_page):
        chips = len(occupancy.CHIPS)
        sources = kernel_report.source_kernels()
        self.assertGreater(len(sources), 30)
        rows = re.findall(r"^\| (\S+\.cu \w+) \|(.*)\|$", status_page, re.MULTILINE)
        self.assertEqual([kernel for kernel, _ in rows], sorted(sources))
        for kernel, cells in rows:
            self.assertEqual(cells.split("|"), [" not built "] * chips, kernel)
        self.assertEqual(
            re.findall(r"^### (\w+)\n\n\[kernels/(\S+)\]", kernels_page, re.MULTILINE),
            [tuple(reversed(kernel.split(" "))) for kernel in sorted(sources)])
        rows = re.findall(r"^\| sm_(\w+) \|(.*)\|$", kernels_page, re.MULTILINE)
        self.assertEqual([chip for chip, _ in rows], list(occupancy.CHIPS) * len(sources))
        self.assertEqual({cell for _, cells in rows for cell in cells.split("|")}, {" not built "})

    def test_both_tables_are_printed_and_say_why(self):
        for why, caches in self.CACHES.items():
            for cache in caches:
                done = self.report(cache)
                self.assertEqual((done.returncode, done.stderr), (0, ""), cache)
                kernels_page, status_page = done.stdout.split("# GPU status")
                self.expect_not_built(kernels_page, status_page)
                for page in kernels_page, status_page:
                    self.assertIn(f"**Not built**: {self.build} {why}.", page)

    def test_another_folder_gets_them_with_links_that_lead_somewhere(self):
        folder = self.build / "report"
        done = self.report(self.OFF, "--output", folder)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        texts = [(folder / name).read_text() for name in self.PAGES]
        self.expect_not_built(*texts)
        links = {link for text in texts for link in re.findall(r"\]\((.*?)\)", text)}
        self.assertGreater(len(links), 10)
        self.assertEqual([link for link in links if not (folder / link).exists()], [])

    def test_the_documents_of_all_chips_are_refused(self):
        done = self.report(self.OFF, "--output", ROOT / "docs")
        self.assertEqual(done.returncode, 1)
        self.assertIn("all five chips", done.stderr)

    def test_there_is_nothing_to_check(self):
        for why, (cache, *_) in self.CACHES.items():
            for what in "check", "list", "emulate":
                done = self.report(cache, f"--{what}")
                self.assertEqual((done.returncode, done.stdout), (kernel_report.SKIPPED, ""))
                self.assertIn(f"{self.build} {why}: there is no device code to {what}", done.stderr)

    def test_a_build_that_is_only_not_made_yet_is_no_such_build(self):
        for cache in ("", "LAPIDARY_CUDA:STRING=AUTO\nLAPIDARY_NVCC:FILEPATH=/usr/bin/nvcc\n"):
            done = self.report(cache)
            self.assertEqual((done.returncode, done.stdout), (kernel_report.SKIPPED, ""))
            self.assertIn("build lapidary_kernels_cuda", done.stderr)


@unittest.skipUnless(NVCC, "no CUDA toolkit")
class PlantedTest(unittest.TestCase):
    """planted.cu, compiled: what it is known to contain is found."""

    @classmethod
    def setUpClass(cls):
        try:
            device_code.tool("cuobjdump"), device_code.tool("nvdisasm")
        except device_code.NoTool as error:
            raise unittest.SkipTest(str(error)) from error
        with tempfile.TemporaryDirectory() as folder:
            target = pathlib.Path(folder, "planted.cu.o")
            subprocess.run([NVCC, "-std=c++20", "-O3", "-I", ROOT,
                            "--generate-code=arch=compute_80,code=sm_80",
                            "--generate-code=arch=compute_90a,code=sm_90a",
                            "-c", ROOT / "tests/scripts/planted.cu", "-o", target], check=True)
            cache = pathlib.Path(folder, "facts")
            kernels = device_code.read_objects([target], cache)
            cls.again = device_code.read_objects([target], cache)
        cls.fresh = kernels
        cls.kernels = {(kernel.template, kernel.chip): kernel for kernel in kernels}

    def test_all_kernels_on_all_chips(self):
        self.assertEqual(set(self.kernels), set(itertools.product(
            ("TiledKernel", "SpillingKernel", "NewChipsKernel"), ("80", "90a"))))
        self.assertEqual(self.again, self.fresh, "the cache changes something")

    def test_names_have_enumerators(self):
        self.assertEqual(self.kernels["TiledKernel", "80"].name, "TiledKernel<kFolded>")

    def test_resources(self):
        for chip in ("80", "90a"):
            tiled = self.kernels["TiledKernel", chip]
            spilling = self.kernels["SpillingKernel", chip]
            self.assertEqual((tiled.max_threads, spilling.max_threads), (128, 1024))
            self.assertEqual((tiled.stack_bytes, tiled.static_shared_bytes), (0, 0))
            self.assertTrue(tiled.has_dynamic_shared)
            self.assertEqual(spilling.static_shared_bytes, 1024)
            self.assertFalse(spilling.has_dynamic_shared)
            self.assertLessEqual(spilling.registers, 32)
            self.assertGreaterEqual(spilling.stack_bytes, 4 * 32)

    def test_empty_where_the_chip_lacks_something(self):
        self.assertTrue(self.kernels["NewChipsKernel", "80"].empty)
        self.assertFalse(self.kernels["NewChipsKernel", "90a"].empty)

    def test_the_hot_loop(self):
        for chip in ("80", "90a"):
            variant = kernel_report.Variant(self.kernels["TiledKernel", chip], [(128, 2048)])
            self.assertEqual(variant.code.loop_depth, 2)
            self.assertEqual([variant.figure(name) for name in
                              ("tensor", "wide", "narrow", "barriers", "local")], [2, 2, 0, 0, 0])
            self.assertEqual(variant.figure("wide_in_kernel"), 3)
            self.assertEqual(variant.warps, 64)

    def test_gates_catch_the_bad_one(self):
        row = ROW.replace("gemm/good.cu GoodKernel", "gemm/planted.cu SpillingKernel")
        code = self.kernels["SpillingKernel", "90a"]
        code.source = "gemm/planted.cu"
        variant = kernel_report.Variant(code, [])
        found = gates.complaints(load(row), [variant], set(), ["90a"])
        for figure in ("local_bytes", "local", "tensor", "wide", "narrow"):
            self.assertTrue(any(gates.TITLES[figure] in line for line in found), (figure, found))

    def test_a_kernel_that_nothing_launches_has_no_occupancy(self):
        variant = kernel_report.Variant(self.kernels["TiledKernel", "80"], [])
        self.assertFalse(variant.started)
        self.assertIsNone(variant.figure("warps"))
        self.assertEqual(variant.figure("local_bytes"), 0)


if __name__ == "__main__":
    unittest.main(verbosity=1)
