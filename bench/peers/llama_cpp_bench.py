"""Decode and prefill speed against llama.cpp: same file, same threads, same run, turn by turn.

    python3 -m venv .venv-peers && .venv-peers/bin/pip install -r bench/peers/requirements.txt
    .venv-peers/bin/python bench/peers/llama_cpp_bench.py models/gemma-3-270m-q4_k_m.gguf

Lapidary is measured from outside, as a client sees it: `lapidary serve`, asked with `lapidary generate
--server`. Times are differences (129 tokens minus 1; a prompt of 512 minus one of 1), so starting the
client and the connection cancel out; the rest of the serving path does not. llama.cpp is measured
inside its process: one `eval` of the prompt, then `eval` and argmax per token. The best of all rounds
counts, for both. Peak memory is VmHWM, for Lapidary summed over its processes.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPT = 512
DECODE = 128
VOCABULARY = 200000  # prompts are random ids below this


def random_prompt(length, seed):
    rng = random.Random(seed)
    return [2] + [rng.randrange(1000, VOCABULARY) for _ in range(length - 1)]


def peak_bytes(pid):
    for line in pathlib.Path("/proc", str(pid), "status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def children_of(pid):
    listed = pathlib.Path("/proc", str(pid), "task", str(pid), "children").read_text()
    return [int(child) for child in listed.split()]


class Lapidary:
    name = "lapidary"

    def __init__(self, args):
        self.binary = str(args.lapidary)
        self.folder = tempfile.TemporaryDirectory()
        address_file = pathlib.Path(self.folder.name, "address")
        self.process = subprocess.Popen(
            [self.binary, "serve", str(args.gguf), "--port", "0", "--metrics-port", "0",
             "--address-file", str(address_file), "--threads", str(args.threads), "--compute",
             args.compute, "--max-running", "8", "--max-context", "2048", "--kv-memory", "64MiB",
             "--log-level", "warning"], stderr=subprocess.DEVNULL)
        while not address_file.exists() or len(address_file.read_text().splitlines()) < 2:
            if self.process.poll() is not None:
                sys.exit("lapidary serve ended while starting")
            time.sleep(0.05)
        self.address = address_file.read_text().splitlines()[0]

    def _seconds(self, prompt, tokens):
        start = time.perf_counter()
        subprocess.run([self.binary, "generate", "--server", self.address, "--prompt-ids",
                        ",".join(map(str, prompt)), "--max-tokens", str(tokens), "--temperature",
                        "0", "--ignore-eos", "--json"], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    def measure(self, seed):
        one = self._seconds(random_prompt(1, seed), 1)
        prefill = self._seconds(random_prompt(PROMPT, seed), 1) - one
        short = random_prompt(16, seed)
        first = self._seconds(short, 1)
        decode = self._seconds(short, 1 + DECODE) - first
        return {"prefill": (PROMPT - 1) / prefill, "decode": DECODE / decode}

    def peak(self):
        return sum(peak_bytes(pid) for pid in children_of(self.process.pid))

    def close(self):
        self.process.terminate()
        self.process.wait()


class LlamaCpp:
    name = "llama.cpp"

    def __init__(self, args):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--peer", str(args.gguf), "--threads", str(args.threads),
             *(["--no-extra-buffers"] if args.no_extra_buffers else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            sys.exit("llama.cpp did not start")

    def measure(self, seed):
        self.process.stdin.write(f"{seed}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def peak(self):
        return peak_bytes(self.process.pid)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve_peer(args):
    """llama.cpp in this process: one measurement per line on stdin."""
    import llama_cpp
    import numpy as np

    if args.no_extra_buffers:
        defaults = llama_cpp.llama_cpp.llama_model_default_params

        def without():
            params = defaults()
            params.use_extra_bufts = False
            return params

        llama_cpp.llama_cpp.llama_model_default_params = without
    model = llama_cpp.Llama(str(args.gguf), n_ctx=2048, n_batch=512, n_ubatch=512,
                            n_threads=args.threads, n_threads_batch=args.threads, verbose=False)
    vocabulary = model.n_vocab()

    def best():
        logits = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax())

    print("ready", flush=True)
    for line in sys.stdin:
        model.reset()
        start = time.perf_counter()
        model.eval(random_prompt(PROMPT, int(line)))
        prefill = time.perf_counter() - start
        model.reset()
        model.eval(random_prompt(16, int(line)))
        start = time.perf_counter()
        for _ in range(DECODE):
            model.eval([best()])
        decode = time.perf_counter() - start
        print(json.dumps({"prefill": PROMPT / prefill, "decode": DECODE / decode}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("--lapidary", type=pathlib.Path, default=ROOT / "build" / "lapidary")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--compute", default="int8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-extra-buffers", action="store_true",
                        help="for a llama.cpp built with AMX on a machine that shows AMX and forbids it")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        serve_peer(args)
        return
    programs = [Lapidary(args), LlamaCpp(args)]
    best = {p.name: {"prefill": 0.0, "decode": 0.0} for p in programs}
    for seed in range(args.rounds):
        for program in programs if seed % 2 == 0 else programs[::-1]:
            for kind, speed in program.measure(seed).items():
                best[program.name][kind] = max(best[program.name][kind], speed)
    print(f"{args.gguf.name}, {args.threads} threads, best of {args.rounds}, tokens per second")
    print(f"{'':12} {'prefill ' + str(PROMPT):>12} {'decode':>9} {'peak memory':>12}")
    for p in programs:
        print(f"{p.name:12} {best[p.name]['prefill']:12.1f} {best[p.name]['decode']:9.1f} "
              f"{p.peak() / 2**20:8.0f} MiB")
    ours, theirs = best["lapidary"], best["llama.cpp"]
    print(f"{'ratio':12} {ours['prefill'] / theirs['prefill']:11.2f}x "
          f"{ours['decode'] / theirs['decode']:8.2f}x")
    for p in programs:
        p.close()


if __name__ == "__main__":
    main()
