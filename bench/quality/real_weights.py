"""Compares Lapidary with other programs on a page of English and real weights.

    python3 bench/quality/real_weights.py models/gemma-3-270m-q4_k_m.gguf [--compute fp32 bf16 int8]
        [--kv-type auto int8]

Standard library only. Scores page.txt with `lapidary generate ... --prompt-logprobs 0` and compares
with expected_270m.json (make_expected.py). Prints the perplexity and the differences per token, names
the tokens that differ most, and exits with 1 when a limit is exceeded:

    fp32   every token within 1e-3 of transformers in fp32
    bf16   |mean difference| at most 0.003 nat
    int8   |mean difference| at most 0.01 nat
    any of them with int8 KV pages: |mean difference| at most 0.01 nat
"""

import argparse
import itertools
import json
import math
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MAX_MEAN = {"fp32": 1e-3, "bf16": 0.003, "int8": 0.01}
MAX_MEAN_INT8_KV = 0.01
MAX_SINGLE = {"fp32": 1e-3}


def score(lapidary, gguf, ids, compute, kv_type, tp):
    """Log-probability of every id but the first."""
    command = [str(lapidary), "generate", str(gguf), "--prompt-ids", ",".join(map(str, ids)),
               "--max-tokens", "1", "--temperature", "0", "--prompt-logprobs", "0",
               "--compute", compute, "--kv-type", kv_type, "--tp", str(tp), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    logprobs = json.loads(done.stdout)["prompt_logprobs"]
    assert logprobs[0] is None and len(logprobs) == len(ids), "prompt_logprobs has the wrong shape"
    return logprobs[1:]


def mean(values):
    return sum(values) / len(values)


def report(name, values, base):
    differences = [a - b for a, b in zip(values, base)]
    worst = sorted(range(len(values)), key=lambda i: -abs(differences[i]))[:3]
    spread = math.sqrt(mean([d * d for d in differences]))
    print(f"{name:22} perplexity {math.exp(-mean(values)):7.3f}  mean {mean(values):+.4f}  "
          f"mean difference {mean(differences):+.5f}  root mean square {spread:.5f}  "
          f"largest {abs(differences[worst[0]]):.5f}")
    return differences, worst


def ranks(values):
    """Places in ascending order."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    places = [0] * len(values)
    for place, i in enumerate(order):
        places[i] = place
    return places


def rank_correlation(a, b):
    """Spearman's: 1 when the same tokens are the sensitive ones, 0 when it is chance."""
    a, b = ranks(a), ranks(b)
    middle = (len(a) - 1) / 2
    both = sum((x - middle) * (y - middle) for x, y in zip(a, b))
    return both / sum((x - middle) ** 2 for x in a)


def explain(differences, base, others):
    """Whose differences are large on the same tokens, and how unlikely these tokens are."""
    sizes = [abs(d) for d in differences]
    largest = set(sorted(range(len(sizes)), key=lambda i: -sizes[i])[:20])
    surprise = [-v for v in base]
    print(f"    the 20 largest are on tokens of {mean([surprise[i] for i in largest]):.1f} nat in the "
          f"mean (all tokens: {mean(surprise):.1f}); rank correlation of size with improbability "
          f"{rank_correlation(sizes, surprise):.2f}")
    for name, values in others.items():
        theirs = [abs(a - b) for a, b in zip(values, base)]
        print(f"    rank correlation with the sizes of {name}: {rank_correlation(sizes, theirs):.2f}; "
              f"theirs on the same 20 are {mean([theirs[i] for i in largest]) / mean(theirs):.1f} times "
              f"their mean")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("--lapidary", type=pathlib.Path, default=ROOT / "build" / "lapidary")
    parser.add_argument("--compute", nargs="+", choices=MAX_MEAN, default=list(MAX_MEAN))
    parser.add_argument("--kv-type", nargs="+", choices=("auto", "int8"), default=["auto", "int8"])
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=0, help="only the first so many; 0: all")
    args = parser.parse_args()
    expected = json.loads((HERE / "expected_270m.json").read_text())
    ids = expected["ids"][:args.tokens or None]
    cut = lambda values: values[:len(ids) - 1]
    base = cut(expected["transformers_fp32"])
    print(f"{len(ids)} tokens; differences from transformers in fp32")
    for name in ("transformers_fp32", "transformers_bf16", "llama_cpp"):
        report(name.replace("_", " "), cut(expected[name]), base)
    failed = False
    for compute, kv_type in itertools.product(args.compute, args.kv_type):
        values = score(args.lapidary, args.gguf, ids, compute, kv_type, args.tp)
        name = f"lapidary {compute}" + (", int8 KV" if kv_type == "int8" else "")
        differences, worst = report(name, values, base)
        for i in worst:
            print(f"    token {i + 1}: {values[i]:.4f}, transformers {base[i]:.4f} in fp32 and "
                  f"{expected['transformers_bf16'][i]:.4f} in bf16, llama.cpp "
                  f"{expected['llama_cpp'][i]:.4f}")
        if compute != "fp32" or kv_type == "int8":
            explain(differences, base, {"transformers in bf16": cut(expected["transformers_bf16"]),
                                        "llama.cpp": cut(expected["llama_cpp"])})
        max_mean = MAX_MEAN_INT8_KV if kv_type == "int8" else MAX_MEAN[compute]
        max_single = math.inf if kv_type == "int8" else MAX_SINGLE.get(compute, math.inf)
        if abs(mean(differences)) > max_mean:
            print(f"  FAILED: mean difference above {max_mean}")
            failed = True
        if abs(differences[worst[0]]) > max_single:
            print(f"  FAILED: a token differs by more than {max_single}")
            failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
