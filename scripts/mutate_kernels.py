#!/usr/bin/env python3
"""Mutation test of device sources: plants one mistake at a time and says which flavour of the
emulated test notices it.

  scripts/mutate_kernels.py --test block_sum_cuda_test kernels/simt/tests/block_sum.cu
  scripts/mutate_kernels.py --test paged_decode_cuda_test kernels/attention/paged_decode.cu \\
      --header kernels/attention/internal/decode_tile.h --sample 60 --json decode.json

The build folder must hold the test and its _checked twin, built. A header is mutated in the files
given, which must include it. Mutants are written to a temporary folder that hides the tree's files;
nothing in the source tree is touched.

A mutant counts as caught by a flavour whose test fails, crashes or hangs; `slow` means that bank
conflicts grew. The plain flavour runs in several orders until one catches the mutant (`-`: not run).
Survivors are printed at the end: each is a hole in the tests, or no mistake at all (then say why in
docs/gpu-mutations.md).

  scripts/mutate_kernels.py --summary build/mutations/*.json

prints one table of several runs. scripts/mutations is the run that check-all makes.
"""
import argparse
import itertools
import json
import os
import pathlib
import random
import re
import shlex
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Name, pattern, replacements (templates of re.Match.expand, or functions of the match). Patterns see
# the source without comments and strings.
ARGUMENT = r"((?:[^(),]|\((?:[^()]|\([^()]*\))*\))*)"  # up to two brackets deep
CALL = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
OPERATORS = [
    ("drop-syncthreads", r"__syncthreads\(\);", [";"]),
    ("drop-syncwarp", rf"__syncwarp{CALL};", [";"]),
    ("drop-named-barrier", rf"gpu::NamedBarrier(?:Sync|Arrive){CALL};", [";"]),
    ("sync-to-arrive", r"gpu::NamedBarrierSync\(", ["gpu::NamedBarrierArrive("]),
    ("drop-mbarrier", rf"gpu::Mbarrier(?:Wait|Arrive|ArriveExpect|Init){CALL};", [";"]),
    ("drop-fence", rf"(?:gpu::(?:FenceMbarrierInit|FenceProxyAsync|WgmmaFence)|__threadfence\w*){CALL};",
     [";"]),
    ("wrong-parity", rf"(gpu::MbarrierWait\({ARGUMENT}, ){ARGUMENT}\)", [r"\1(\3) ^ 1)"]),
    ("expect-less", rf"(gpu::MbarrierArriveExpect\({ARGUMENT}, ){ARGUMENT}\)", [r"\1(\3) / 2)"]),
    ("drop-commit", r"gpu::(?:CpAsync|Wgmma)Commit\(\);", [";"]),
    ("drop-wait", r"gpu::(?:CpAsync|Wgmma)Wait<[^<>]*>\(\);", [";"]),
    ("loosen-wait", r"(gpu::(?:CpAsync|Wgmma)Wait)<([^<>]*)>", [r"\1<(\2) + 1>"]),
    ("drop-predicate", rf"(gpu::CpAsync16\({ARGUMENT}, {ARGUMENT}, ){ARGUMENT}\)", [r"\1true)"]),
    ("swap-ldmatrix", r"gpu::Ldmatrix4(Trans)?\(",
     [lambda m: "gpu::Ldmatrix4(" if m[1] else "gpu::Ldmatrix4Trans("]),
    ("drop-movmatrix", rf"gpu::Movmatrix\({ARGUMENT}\)", [r"(\1)"]),
    ("wrong-stage", r"(\w+|\([^()]*\)) % (k?\w*[sS]tages)", [r"((\1) + 1) % \2"]),
    ("shuffle-distance", r"(__shfl_\w+_sync\([^,]*, [^,]*, )([^,()]+)([,)])", [r"\1(\2) * 2 % 32\3"]),
    ("lane-mask", r"0xffffffffu?\b", ["0x7fffffffu"]),
    ("max-min", r"\b(fmaxf|fminf|max|min|gpu::WarpMax)\(",
     [lambda m: {"fmaxf": "fminf", "fminf": "fmaxf", "max": "min", "min": "max",
                 "gpu::WarpMax": "gpu::WarpSum"}[m[1]] + "("]),
    ("index-off-by-one", r"(?<=[\w\])])\[([^\[\]]+)\](?!\s*[({])", [r"[(\1) + 1]"]),
    ("swap-fragments", r"\b(\w+)\[([0-3])\]", [lambda m: f"{m[1]}[{int(m[2]) ^ 1}]"]),
    ("compare", r" (<=|>=|<|>|==|!=) ",
     [lambda m: " " + {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}[m[1]] + " "]),
    ("add-subtract", r"(?<=[\w)\]]) ([+-]) (?=[\w(])", [lambda m: " - " if m[1] == "+" else " + "]),
    ("multiply-divide", r"(?<=[\w)\]]) ([*/%]) (?=[\w(])",
     [lambda m: {"*": " + ", "/": " * ", "%": " / "}[m[1]]]),
    ("and-or", r" (&&|\|\|) ", [lambda m: " || " if m[1] == "&&" else " && "]),
    ("shift", r" (<<|>>) ", [lambda m: " >> " if m[1] == "<<" else " << "]),
    ("swizzle", r"(\w+|\([^()]*\)) \^ (\w+|\([^()]*\))", [r"(\1)"]),
    ("drop-scaling", rf"[\w.\[\]]+ \*= (?:[^;(){{}}]|{CALL})+;", [";"]),
    ("drop-addition", rf"[\w.\[\]]+ \+= (?:[^;(){{}}]|{CALL})+;", [";"]),
    ("negate-if", rf"\bif \(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)", [r"if (!(\1))"]),
    ("drop-return", rf"\bif {CALL} (?:return|continue|break);", [";"]),
    ("drop-else-zero", r"([^=?;{}()]+|\([^()]*\)) \? ([^:?;]+) : (0(?:\.0f|u)?|uint4\{\}|-INFINITY)(?=[;,)])",
     [r" (\2)"]),
    ("constant", r"(?<![\w.\[<])(\d+\.\d+f|[2-9]|\d\d+)(?![\w.\]>])",
     [lambda m: f"({m[1]} * 2)" if m[1].endswith("f") else f"({m[1]} + 1)"]),
]
# Who waits for whom: few places, and what a GPU forgives most often.
ORDERING = {"drop-syncthreads", "drop-syncwarp", "drop-named-barrier", "sync-to-arrive", "drop-mbarrier",
            "drop-fence", "wrong-parity", "expect-less", "drop-commit", "drop-wait", "loosen-wait", "wrong-stage"}


def blank(source):
    """The source with comments, strings, preprocessor lines and what only nvcc reads blanked, the same length."""
    pattern = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|^[ \t]*#[^\n]*(?:\\\n[^\n]*)*|__launch_bounds__' + CALL,
                         re.S | re.M)
    return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), source)


def without_launchers(source):
    """Host functions, which begin with cudaError_t or a plan's type at the line's start, blanked."""
    pattern = re.compile(r"^(?:template <[^\n]*>\n)?(?:inline )?(?:cudaError_t|\w+Plan|int64_t|int|bool|void) \w+\([^;{]*\{\n.*?^\}", re.S | re.M)

    def host(m):
        return m[0] if "__global__" in m[0] or "GPU_DEVICE" in m[0] else re.sub(r"[^\n]", " ", m[0])
    return pattern.sub(host, source)


def find_mutants(path, operators):
    source = (ROOT / path).read_text()
    seen = blank(source)
    if path.endswith(".cu"):
        seen = without_launchers(seen)
    mutants = []
    for name, pattern, replacements in OPERATORS:
        if operators and name not in operators:
            continue
        for match in re.finditer(pattern, seen):
            line_start = seen.rfind("\n", 0, match.start()) + 1
            line = seen[line_start:seen.find("\n", match.start())]
            # Declarations of arrays and templates are no expressions.
            if name in ("index-off-by-one", "swap-fragments", "constant") and re.match(
                    r"\s*(constexpr|static|template|GPU_SHARED|GPU_DYN_SMEM|struct|using|enum)\b", line):
                continue
            declared = re.match(r"\s*(?:const )?[\w:]+(?:<[^<>]*>)?((?: |, )\w+(?:\[[^\]]*\])+)+(?=\s*[=;{])", line)
            if name == "index-off-by-one" and declared and match.start() - line_start < declared.end():
                continue
            for replacement in replacements:
                after = replacement(match) if callable(replacement) else match.expand(replacement)
                if after == match[0]:
                    continue
                mutants.append({
                    "operator": name, "file": path, "line": seen.count("\n", 0, match.start()) + 1,
                    "before": " ".join(match[0].split()), "after": " ".join(after.split()),
                    "source": source[:match.start()] + after + source[match.end():]})
    mutants.sort(key=lambda m: (m["file"], m["line"]))
    return mutants


def draw(mutants, count, seed):
    """One of every operator in turn, in a random order (ordering and others by turns), up to `count`."""
    generator = random.Random(seed)
    groups = {}
    for m in mutants:
        groups.setdefault(m["operator"], []).append(m)
    names = sorted(groups)
    generator.shuffle(names)
    ordering, others = ([n for n in names if (n in ORDERING) == kind] for kind in (True, False))
    order = [n for pair in itertools.zip_longest(ordering, others) for n in pair if n]
    for name in order:
        generator.shuffle(groups[name])
    drawn = []
    while len(drawn) < count and any(groups.values()):
        for name in order:
            if groups[name] and len(drawn) < count:
                drawn.append(groups[name].pop())
    return sorted(drawn, key=lambda m: (m["file"], m["line"]))


class Build:
    """Compiles units of one flavour and links the test against them."""

    def __init__(self, folder, units, test, library, entries):
        self.folder, self.test = folder, test
        self.compile = {}
        for unit in units:
            for command in entries:
                if command.endswith("-c " + str(ROOT / unit)) and f"/{library}.dir/" in command:
                    self.compile[unit] = command
            if unit not in self.compile:
                sys.exit(f"{unit} is not compiled for {library}: is the build configured?")
        listing = subprocess.run(["ninja", "-C", folder, "-t", "commands", test], capture_output=True, text=True)
        if listing.returncode != 0:
            sys.exit(f"no target {test} in {folder}")
        self.link = listing.stdout.strip().split("\n")[-1]

    def run(self, work, changed):
        """The test's binary with one file changed; None if it does not compile."""
        objects = []
        for unit, command in self.compile.items():
            source = work / "overlay" / unit if unit in changed else ROOT / unit
            words = shlex.split(command)
            words = words[:words.index("-o")] + words[words.index("-o") + 4:]
            if os.path.basename(words[0]) == "ccache":
                words = words[1:]  # no mutant comes twice
            for option, arguments in ("-MD", 0), ("-MT", 1), ("-MF", 1):  # the build folder stays
                if option in words:
                    at = words.index(option)
                    del words[at:at + 1 + arguments]
            object_file = work / (self.test + "_" + pathlib.Path(unit).name + ".o")
            first = next(i for i, w in enumerate(words) if w.startswith("-I"))
            words.insert(first, f"-I{work / 'overlay'}")  # its headers hide the tree's
            done = subprocess.run(words + ["-w", "-O1", "-c", str(source), "-o", str(object_file)],
                                  cwd=self.folder, capture_output=True, text=True)
            if done.returncode != 0:
                return None, done.stderr
            objects.append(str(object_file))
        binary = work / self.test
        # The objects come before the library that holds the unchanged ones.
        link = re.sub(r" -o \S+ ", f" {' '.join(objects)} -o {binary} ", self.link, count=1)
        done = subprocess.run(link, shell=True, cwd=self.folder, capture_output=True, text=True)
        return (binary, "") if done.returncode == 0 else (None, done.stderr)


MODES = [  # name, checked, environment
    ("fwd/lazy", False, {"SIMT_ORDER": "fwd", "SIMT_ASYNC": "lazy"}),
    ("fwd/eager", False, {"SIMT_ORDER": "fwd", "SIMT_ASYNC": "eager"}),
    ("rev/lazy", False, {"SIMT_ORDER": "rev", "SIMT_ASYNC": "lazy"}),
    ("rand/lazy", False, {"SIMT_ORDER": "rand", "SIMT_ASYNC": "lazy"}),
    ("checker", True, {"SIMT_ORDER": "rand", "SIMT_PERF_REPORT": "1"}),
]


def run_test(binary, environment, limit, extra):
    """(caught, why, bank conflicts)"""
    try:
        done = subprocess.run([str(binary), "--gtest_brief=1", "--gtest_fail_fast", *extra], cwd=ROOT, capture_output=True, text=True,
                              errors="replace", timeout=limit, env={**os.environ, **environment})
    except subprocess.TimeoutExpired:
        return True, "hangs", 0
    conflicts = 0.0
    for line in done.stderr.split("\n"):
        if "<-- bank conflicts" in line:
            words = line.split()
            conflicts += float(words[-6]) * (float(words[-5]) - float(words[-4]))
    if done.returncode == 0:
        return False, "", conflicts
    reason = re.search(r"\[simt\] ERROR (.*?)(?:, by thread|, kernel| at )", done.stderr)
    if reason:
        return True, reason[1][:60], conflicts
    return True, f"signal {-done.returncode}" if done.returncode < 0 else "wrong result", conflicts


def summarize(paths, at_least):
    """A table of the results in JSON files, as Markdown; 1 if too few mutants were caught."""
    def caught(mutant, checked):
        return any(mutant["caught"].get(name) for name, is_checked, _ in MODES if is_checked == checked)

    def row(name, mutants):
        ran = [m for m in mutants if m["caught"] is not None]
        plain, checked = ({i for i, m in enumerate(ran) if caught(m, c)} for c in (False, True))
        print(f"| {name} | {len(ran)} | {len(plain)} | {len(checked)} | {len(checked - plain)} "
              f"| {len(plain | checked)} | {len(ran) - len(plain | checked)} |")
        return len(ran), len(plain | checked)

    print("| kernel | mutants | plain | checked | checked alone | caught | survived |\n|---|---|---|---|---|---|---|")
    everything = []
    for path in paths:
        mutants = json.loads(pathlib.Path(path).read_text())["mutants"]
        row(pathlib.Path(path).stem, mutants)
        everything += mutants
    ran, total = row("all", everything)
    drawn = {m["operator"] for m in everything if m["caught"] is not None}
    print(f"\n{total} of {ran} caught ({100 * total / max(ran, 1):.1f} %), "
          f"{len(everything) - ran} did not compile. Operators: {len(drawn)} of {len(OPERATORS)}; "
          f"not drawn: {', '.join(o[0] for o in OPERATORS if o[0] not in drawn) or 'none'}")
    return 0 if total >= at_least * ran else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("units", nargs="+", help="device sources (.cu) that are compiled anew")
    parser.add_argument("--test", help="target of the test, for example block_sum_cuda_test")
    parser.add_argument("--header", action="append", default=[], help="mutate these files, and not the units")
    parser.add_argument("--build", default="build/release")
    parser.add_argument("--operators", help="comma-separated; default all: " + ", ".join(o[0] for o in OPERATORS))
    parser.add_argument("--lines", help="only lines a-b")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random, evenly over operators")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", action="store_true", help="no checker for a mutant that the plain flavour catches")
    parser.add_argument("--every-order", action="store_true", help="all orders of the plain flavour, always")
    parser.add_argument("--summary", action="store_true", help="the arguments are JSON files: print their table")
    parser.add_argument("--at-least", type=float, default=0, help="with --summary: fail below this share caught")
    parser.add_argument("--filter", help="--gtest_filter of the test")
    parser.add_argument("--json", help="write the results there")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    arguments = parser.parse_args()
    if arguments.summary:
        return summarize(arguments.units, arguments.at_least)
    if not arguments.test:
        parser.error("--test is missing")

    operators = arguments.operators.split(",") if arguments.operators else None
    mutants = [m for path in (arguments.header or arguments.units) for m in find_mutants(path, operators)]
    if arguments.lines:
        low, high = map(int, arguments.lines.split("-"))
        mutants = [m for m in mutants if low <= m["line"] <= high]
    if arguments.sample and arguments.sample < len(mutants):
        mutants = draw(mutants, arguments.sample, arguments.seed)
    if arguments.list:
        for m in mutants:
            print(f"{m['file']}:{m['line']}  {m['operator']:18}  {m['before'][:50]}  ->  {m['after'][:50]}")
        print(len(mutants), "mutants")
        return 0

    folder = ROOT / arguments.build
    entries = [e["command"] for e in json.loads((folder / "compile_commands.json").read_text())]
    builds = {False: Build(folder, arguments.units, arguments.test, "lapidary_kernels_emulated", entries),
              True: Build(folder, arguments.units, arguments.test + "_checked", "lapidary_kernels_checked", entries)}
    extra = [f"--gtest_filter={arguments.filter}"] if arguments.filter else []
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)

        def build(checked, mutant):
            overlay = work / "overlay"
            subprocess.run(["rm", "-rf", str(overlay)], check=True)
            if mutant:
                target = overlay / mutant["file"]
                target.parent.mkdir(parents=True)
                target.write_text(mutant["source"])
            return builds[checked].run(work, {mutant["file"]} if mutant else set())

        # Without a mistake everything must pass; it also says how long to wait.
        limits, base_conflicts, binaries = {}, 0.0, {}
        for name, checked, environment in MODES:
            if checked not in binaries:
                binaries[checked], errors = build(checked, None)
            binary = binaries[checked]
            if not binary:
                sys.exit("the unchanged source does not build:\n" + errors[:3000])
            begin = time.time()
            caught, why, conflicts = run_test(binary, environment, 600, extra)
            if caught:
                sys.exit(f"the unchanged test fails under {name}: {why}")
            limits[name] = max(20.0, 10 * (time.time() - begin))
            base_conflicts = max(base_conflicts, conflicts)
        names = [m[0] for m in MODES]
        print(f"{len(mutants)} mutants. Caught by " + ", ".join(names) + "; slow: more bank conflicts")
        for index, mutant in enumerate(mutants):
            result = {k: mutant[k] for k in ("operator", "file", "line", "before", "after")}
            result["caught"], result["why"], result["slow"] = {}, "", False
            binaries = {}
            for name, checked, environment in MODES:
                if any(result["caught"].values()) and (arguments.first if checked else not arguments.every_order):
                    continue
                if checked not in binaries:
                    binaries[checked], _ = build(checked, mutant)
                if not binaries[checked]:
                    result["caught"] = None
                    break
                caught, why, conflicts = run_test(binaries[checked], environment, limits[name], extra)
                result["caught"][name] = caught
                if caught and (checked or not result["why"]):
                    result["why"] = why
                if checked:
                    result["slow"] = conflicts > base_conflicts
            results.append(result)
            marks = ("does not compile" if result["caught"] is None else
                     " ".join({True: "x", False: ".", None: "-"}[result["caught"].get(n)] for n in names))
            print(f"{index + 1:4}  {marks:16} {'slow' if result['slow'] else '    '} "
                  f"{pathlib.Path(mutant['file']).name}:{mutant['line']:<4} {mutant['operator']:17} "
                  f"{mutant['before'][:34]:34} -> {mutant['after'][:34]:34} {result['why']}", flush=True)

    ran = [r for r in results if r["caught"] is not None]
    survivors = [r for r in ran if not any(r["caught"].values())]
    print(f"\n{len(ran)} ran, {len(ran) - len(survivors)} caught, {len(survivors)} survived, "
          f"{len(results) - len(ran)} did not compile")
    for name in names:
        print(f"  {name:10} {sum(bool(r['caught'].get(name)) for r in ran):4}")
    only = [r for r in ran if r["caught"].get("checker") and sum(map(bool, r["caught"].values())) == 1]
    print(f"  by the checker alone {len(only)}")
    for r in survivors:
        print(f"survivor{' (slow)' if r['slow'] else ''}: {r['file']}:{r['line']} {r['operator']}: "
              f"{r['before']} -> {r['after']}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps({"test": arguments.test, "mutants": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
