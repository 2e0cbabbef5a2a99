#!/usr/bin/env python3
"""Fails on an include that crosses a layer the wrong way, and on sources that CMake never builds.

The layers and what each may use are the table of docs/architecture.md.
"""
import pathlib
import re
import subprocess
import sys

# Folder -> our folders it may include from (itself always).
ALLOWED = {
    "common/base": set(),
    "common": {"common/base", "proto"},
    "model": {"common", "common/base"},
    "engine": {"common", "common/base", "model"},
    "kernels": {"common/base"},
    "worker": {"common", "common/base", "model", "engine", "kernels", "proto"},
    "coordinator": {"common", "common/base", "model", "proto"},
    "cli": None,  # everything
    "tests": None,
    "bench": None,
}
# Third-party headers that only some folders may include: prefix -> allowed folders.
THIRD_PARTY = {
    "absl/": {"common", "model", "engine", "worker", "coordinator", "cli", "tests", "bench"},
    "CLI/": {"cli"},
    "spdlog/": {"common"},
    "boost/": {"common", "cli"},
    "simdjson": {"model"},
}
GRPC_FILES = re.compile(
    r"_(service|client|channel|server)(_test)?\.(cc|h)$|^coordinator/server\.|^common/grpc_status\."
    r"|^cli/|^tests/")
INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)')
CLI11_FILES = re.compile(r"^cli/flags[^/]*\.cc$")


def folder_of(path):
    for name in sorted(ALLOWED, key=len, reverse=True):
        if path.startswith(name + "/"):
            return name
    return None


def check_file(file, problems):
    folder = folder_of(file)
    if folder is None:
        problems.append(f"{file}: outside the layers")
        return
    allowed = ALLOWED[folder]
    top = file.split("/")[0]
    is_test = file.endswith(("_test.cc", "_bench.cc"))
    for number, line in enumerate(pathlib.Path(file).read_text().splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        ours, system = match.groups()
        header = ours or system
        where = f"{file}:{number}"
        if ours and allowed is not None and not is_test:
            target = "proto" if ours.endswith(".pb.h") else folder_of(ours)
            if target and target != folder and target not in allowed:
                problems.append(f"{where}: {folder} may not include {ours}")
        if header.startswith("grpcpp/") and not GRPC_FILES.search(file):
            problems.append(f"{where}: only *_service, *_server, *_client and *_channel include grpcpp")
        if header.startswith("CLI/") and not CLI11_FILES.match(file):
            problems.append(f"{where}: CLI11 belongs in cli/flags*.cc")
        if file.endswith(".h") and "/internal/" not in file and header in ("nlohmann/json.hpp", "spdlog/spdlog.h"):
            problems.append(f"{where}: {header} in a header costs every includer seconds")
        for prefix, folders in THIRD_PARTY.items():
            if header.startswith(prefix) and top not in folders and not is_test:
                problems.append(f"{where}: {top} may not include {header}")


def main():
    listing = ["git", "ls-files", "-co", "--exclude-standard", "*.cc", "*.h", "*.cu", "*.cuh"]
    files = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
    files = [f for f in files if pathlib.Path(f).exists()]
    cmake = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*CMakeLists.txt", "*.cmake"],
                           capture_output=True, text=True, check=True).stdout.split()
    built = "\n".join(pathlib.Path(p).read_text() for p in cmake)
    problems = []
    for file in files:
        check_file(file, problems)
        # A foreach over test names leaves out the _test.cc.
        name = pathlib.Path(file).name
        if file.endswith(".cc") and name not in built and name.removesuffix("_test.cc") not in built:
            problems.append(f"{file}: no CMakeLists.txt builds it")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
