"""Which kernels the emulated tests have launched: they say it by place in a binary."""
import os
import pathlib
import shutil
import subprocess
import sys

from gpu_code import device_code


TESTS = "_cuda_test$"  # the kernels' own, in the plain flavour


def run_tests(build, folder):
    """The kernels' tests; their launches into `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = subprocess.run(["ctest", "--test-dir", build, "-R", TESTS, "-L", "emulation", "-j2",
                           "--no-tests=error", "--output-on-failure"],
                          env={**os.environ, "SIMT_LAUNCHES": str(folder)}, stdout=sys.stderr)
    if done.returncode != 0:
        shutil.rmtree(folder)
        raise device_code.ReadError("an emulated test fails: nothing is said of what was emulated")


def functions(binary):
    """{offset in the binary: symbol}."""
    found = {}
    for line in device_code.run("nm", binary).splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in "tTwW":
            found[int(words[0], 16)] = words[2]
    return found


def read(folder):
    """Names of the launched kernels' variants, as device_code.readable_names makes them."""
    if not folder.is_dir() or not any(folder.iterdir()):
        raise device_code.ReadError(f"{folder} does not say which kernels ran under emulation; "
                                    "scripts/kernel_report.py --emulate runs the tests that do")
    places = {}  # binary -> offsets
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            offset, binary = line.split(" ", 1)
            places.setdefault(binary, set()).add(int(offset, 16))
    symbols = set()
    for binary, offsets in places.items():
        if not pathlib.Path(binary).exists():
            raise device_code.ReadError(f"{binary} launched kernels and is gone: --emulate again")
        known = functions(binary)
        symbols.update(known[offset] for offset in offsets if offset in known)
    return set(device_code.readable_names(sorted(symbols)).values())
