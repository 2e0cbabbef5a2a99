"""The kernel benchmarks' JSON files as a table: time, and the share of the roof, of each case.

    python3 bench/gpu/table.py OUT/*.json     (what bench/gpu/measure wrote)

Roofs are the vendor's figures at the clocks that the driver reports, bytes or FLOPs, whichever limits.
"""

import json
import pathlib
import sys

print("| benchmark | case | time | rate | of the roof |\n|---|---|---|---|---|")
for path in sys.argv[1:]:
    for run in json.loads(pathlib.Path(path).read_text())["benchmarks"]:
        name, *arguments = run["name"].removesuffix("/manual_time").split("/")
        if run.get("error_occurred"):
            print(f"| {name} | {' '.join(arguments)} | {run['error_message']} | | |")
            continue
        rate = f"{run['flop_per_s'] / 1e12:.0f} TFLOP/s" if "flop_per_s" in run else \
            f"{run['bytes_per_s'] / 1e9:.0f} GB/s"
        case = " ".join(filter(None, [run.get("label"), *arguments]))
        print(f"| {name.removeprefix('BM_')} | {case} | {run['real_time'] / 1e3:.1f} µs | {rate} "
              f"| {100 * run['share_of_roof']:.1f} % |")
